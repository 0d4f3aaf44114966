"""The explorer in a real browser: JupyterLab in Debian's Chromium, without a screen."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from lib.common.paths import ROOT

selenium = pytest.importorskip("selenium", reason="needs the extra `browser`: pip install '.[browser]'")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's chromium and chromium-driver",
    ),
]
PICTURE = ".jp-OutputArea-output img.widget-image"
SUMMARY = ".jp-OutputArea-output .widget-html-content"


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab, started as `make lab` starts it, on a copy of the notebooks."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    as_made = re.search(r"(?m)^LAB := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.token=t",
        "--ServerApp.port=0",
        "--LabApp.expose_app_in_browser=True",
        *as_made[1].split(),
    ]
    home = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "PYTHONPATH": str(ROOT)}
    log_file = tmp_path / "log"
    with log_file.open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=os.environ | home)
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"http://(localhost|127\.0\.0\.1):\d+/", (tmp_path / "log").read_text())):
                assert time.monotonic() < deadline and server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
            yield found[0]
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1600"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def errors_in_the_console(browser) -> list[str]:
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_the_start_page_opens_and_nothing_pops_up(lab, browser):
    browser.get(f"{lab}?token=t")
    WebDriverWait(browser, 120).until(lambda b: "01_what_pruning_removes" in b.page_source)
    time.sleep(5)  # JupyterLab asks about its news a moment after it has opened
    assert not browser.find_elements(By.CSS_SELECTOR, ".Toastify__toast, .jp-Dialog")


def test_the_picture_follows_the_slider_and_a_curve_grows(lab, browser):
    wait = WebDriverWait(browser, 240)
    browser.get(f"{lab}lab/tree/notebooks/explore.ipynb?token=t")
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, ".jp-CodeCell"))
    wait.until(lambda b: "Python 3 (ipykernel) | Idle" in b.page_source)  # the kernel is up
    errors_in_the_console(browser)  # what JupyterLab itself says at its start
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    picture = wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, PICTURE))[0]
    first = picture.get_attribute("src")
    before = browser.find_element(By.CSS_SELECTOR, SUMMARY).text
    assert "million MACs" in before and picture.size["width"] > 300

    handle = browser.find_element(By.CSS_SELECTOR, ".widget-slider .noUi-handle")
    ActionChains(browser).click(handle).send_keys(Keys.ARROW_RIGHT).perform()  # to 55 %
    wait.until(lambda b: b.find_element(By.CSS_SELECTOR, PICTURE).get_attribute("src") != first)
    wait.until(lambda b: b.find_element(By.CSS_SELECTOR, SUMMARY).text != before)
    assert browser.find_element(By.CSS_SELECTOR, ".widget-slider .widget-readout").text == "55%"

    browser.find_element(By.CSS_SELECTOR, ".jp-OutputArea-output button.mod-primary").click()
    wait.until(lambda b: "dense images ..." in b.find_elements(By.CSS_SELECTOR, SUMMARY)[3].text)
    long_wait = WebDriverWait(browser, 300)
    said = long_wait.until(
        lambda b: (text := b.find_elements(By.CSS_SELECTOR, SUMMARY)[3].text).startswith("16: error") and text
    )
    assert len(re.findall(r"error 0\.\d{3}", said)) == 3
    assert browser.find_elements(By.CSS_SELECTOR, PICTURE)[1].size["height"] > 100
    assert not errors_in_the_console(browser)
