"""The whole system on a copy of the repository: make, edits, kills, and nbval on stored outputs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from helpers import few_images
from pandas.testing import assert_frame_equal
from PIL import Image

from lib.common.paths import ROOT
from lib.runs.profiles import arms_of

pytestmark = pytest.mark.slow

ARMS = list(arms_of("smoke"))
# What the Makefile draws of every profile.
DRAWN = re.search(r"(?m)^DRAWN := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text())[1].replace("\\", "").split()


class Project:
    """A copy of the tracked and the new files, with the packages of the interpreter that runs the tests."""

    def __init__(self, root: Path):
        self.root = root
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        # An environment of links, so that the copy's stamps say "set up" and nothing is installed.
        environment = root / ".venv"
        environment.mkdir()
        for entry in Path(sys.prefix).iterdir():
            if not entry.name.startswith("stamp"):
                (environment / entry.name).symlink_to(entry)
        command = """echo "$PWD $(cat requirements.txt pyproject.toml | cksum)" > .venv/stamp
            for extra in test cluster browser; do cksum < pyproject.toml > .venv/stamp-$extra; done"""
        subprocess.run(command, shell=True, cwd=root, check=True)
        made_by_make = ("MAKE", "MFLAGS", "PROFILE", "JOBS")
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(made_by_make)}
        self.environment = inherited | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *command: str) -> tuple[int, str]:
        process = self.start(*command)
        output, _ = process.communicate(timeout=1800)
        return process.returncode, output

    def make(self, *arguments: str) -> str:
        status, output = self.run("make", "figures", "PROFILE=smoke", *arguments)
        assert status == 0, output
        return output

    def edit(self, name: str, line: str) -> None:
        with (self.root / name).open("a") as file:
            file.write(f"\n{line}\n")

    def times(self, folder: str) -> dict[str, int]:
        files = (file for file in (self.root / folder).rglob("*") if file.is_file())
        return {str(file.relative_to(self.root)): file.stat().st_mtime_ns for file in files}

    def records(self) -> pd.DataFrame:
        arms = [pd.read_parquet(self.root / "build/smoke/arms" / f"{arm}.parquet") for arm in ARMS]
        return pd.concat(arms, ignore_index=True).drop(columns="seconds")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A copy, below a name with spaces and umlauts, in which `make -j2 figures PROFILE=smoke` has run once.

    Tests leave it finished.
    """
    root = tmp_path_factory.mktemp("project") / "ein Projekt, größer"
    root.mkdir()
    project = Project(root)
    project.make("-j2")
    return project


def test_figures_come_with_source_data_and_provenance(project):
    folder = project.root / "figures/smoke"
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"{name}.{kind}" for name in DRAWN for kind in ("pdf", "png", "csv", "json")
    )
    for name in DRAWN:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(folder / f"{name}.csv")) >= 2
        assert {"notebook", "commit", "packages"} <= json.loads((folder / f"{name}.json").read_text()).keys()
    fronts = pd.read_csv(folder / "02_the_front.csv")
    # At half of the reference's pixels nothing is dense.
    families = {"fewer pixels", "pruned, probe", "pruned, fine-tuned", "other network"}
    assert set(fronts["family"]) == families and set(fronts["budget"]) == {4, 16}
    # Of what is pruned: there, learners share one network.
    found = pd.read_csv(folder / "08_learners.csv")
    assert set(found["learner"]) == {"norms", "from the nearest task", "fine-tuned, rates searched"}


def test_executed_notebooks_are_complete_and_silent(project):
    notebooks = [*(project.root / "build/smoke").glob("*/[!.]*.ipynb")]
    assert len(notebooks) == len(ARMS) + len(DRAWN)
    for file in notebooks:
        for cell in nbformat.read(file, 4).cells:
            assert cell.cell_type != "code" or cell.execution_count
            assert not [out for out in cell.get("outputs", []) if out.get("name") == "stderr"]


def test_arms_spend_the_same_compute(project):
    limits = project.records().pivot_table(
        "limit_macs", ["event", "budget"], ["backbone", "ratio", "criterion", "learner", "trials"]
    )
    assert limits.shape[1] == len(ARMS) and (limits.nunique(axis=1) == 1).all()


def test_verify_measures_what_the_profile_can(project):
    status, output = project.run("make", "verify", "PROFILE=smoke")
    assert status == 0, output
    assert re.search(r"smoke: \d+ not measured here, 2 reproduced\.", output)


def test_second_make_changes_no_file(project):
    before = {**project.times("build"), **project.times("figures")}
    project.make()
    assert {**project.times("build"), **project.times("figures")} == before


def test_edited_plots_are_redrawn_without_training(project):
    arms, runs = project.times("build/smoke/arms"), project.times("build/runs")
    figures = project.times("figures/smoke")
    project.edit("notebooks/style.py", "len('an edit')")
    project.make()
    assert project.times("build/smoke/arms") == arms and project.times("build/runs") == runs
    redrawn = project.times("figures/smoke")
    drawings = [name for name in figures if not name.endswith(".json")]  # what that says of them is as before
    assert redrawn.keys() == figures.keys() and drawings
    assert all(redrawn[name] > figures[name] for name in drawings)


def test_edited_comment_does_nothing(project):
    before = {**project.times("build"), **project.times("figures")}
    project.edit("lib/learning/training.py", "# A remark.")
    project.make()
    assert {**project.times("build"), **project.times("figures")} == before


def test_edited_training_is_retrained_and_a_kill_changes_nothing(project):
    """The edit changes the code and no number; the whole process group is killed after some events."""
    records, arms = project.records(), project.times("build/smoke/arms")
    project.edit("lib/learning/training.py", "len('an edit')")
    process = project.start("make", "-j2", "figures", "PROFILE=smoke")
    runs, deadline = project.root / "build/runs", time.monotonic() + 300
    while len(list(runs.glob("*/events/[!.]*.json"))) < 4:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    project.make()
    assert_frame_equal(project.records(), records, check_exact=True)
    retrained = project.times("build/smoke/arms")
    assert all(
        retrained[f"build/smoke/arms/{arm}.{kind}"] > arms[f"build/smoke/arms/{arm}.{kind}"]
        for arm in ARMS
        for kind in ("ipynb", "parquet")
    )


@pytest.mark.parametrize(
    ("fields", "said"), [("ratio = 1.5", r"ratio=1\.5"), ("ratio = 0.0, device = 'cuda'", "=cuda")]
)
def test_failing_arm_fails_make_with_one_sentence(project, fields, said):
    if "cuda" in fields and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    profiles = project.root / "notebooks/profiles.toml"
    before = profiles.read_text()
    profiles.write_text(before.replace("[smoke.arms]\n", f"[smoke.arms]\nbad = {{ {fields} }}\n"))
    status, output = project.run("make", "figures", "PROFILE=smoke")
    profiles.write_text(before)
    assert status != 0 and "Traceback" not in output
    assert re.search(rf"(?m)^Error: .*{said}.*", output)
    project.make()


@pytest.mark.parametrize(("target", "profile"), [("figures", "nope"), ("rerun", "nope"), ("figures", "smoke pocket")])
def test_unknown_profile_is_one_sentence(project, target, profile):
    status, output = project.run("make", target, f"PROFILE={profile}")
    assert status != 0 and "Traceback" not in output
    sentences = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1 and "smoke" in sentences[0]
    assert not (project.root / "build/nope").exists()


def test_make_alone_lists_the_targets(project):
    status, output = project.run("make")
    assert status == 0
    assert {"figures", "test", "test-all", "lint", "clean"} <= {line.split()[0] for line in output.splitlines()}


def test_the_nevis_profile_runs_what_is_here_and_draws_it(project, tmp_path, monkeypatch):
    """On a CPU, on a data set that is two tasks of the benchmark and one that is a third, with few images."""
    for name, task in {"MNIST": "mnist", "Fashion MNIST": "fashion_mnist"}.items():
        few = few_images(task, 60, 20, 20)
        for part in ("train", "dev", "test"):
            split = getattr(few, part)
            for place, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
                file = tmp_path / "folders" / name / part / str(int(label)) / f"{place}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.numpy()).save(file)
    monkeypatch.setitem(project.environment, "DATASETS", str(tmp_path))
    profiles = project.root / "notebooks/profiles.toml"
    before, mark, nevis = profiles.read_text().partition("[benchmark.common]\n")
    smaller = re.sub(r"(?m)^budgets = .*", "budgets = [4, 16]", nevis.replace("images = 512", "images = 16"))
    # For speed: no groups but the first, of which half of the arms.
    smaller = re.sub(r"(?sm)^\[nevis\.ladder\].*?(?=^# How results)", "[nevis.long]\ndense = [32]\n\n", smaller)
    smaller = re.sub(r"(?m)^(pixels_96|probe_\d+_\d+px) = .*\n", "", smaller)
    profiles.write_text(before + mark + smaller)
    try:
        status, output = project.run("make", "-j2", "rerun", "PROFILE=nevis")
    finally:
        profiles.write_text(before + mark + nevis)
    assert status == 0, output
    records = pd.read_parquet(project.root / "paper/records/nevis/pruned_50.parquet")
    assert records.drop_duplicates("event")["task"].tolist() == ["MNIST", "MNIST", "Fashion MNIST"]
    assert "Stanford Cars" in records["left_out"].iloc[0] and set(records["stream"]) == {"nevis/short"}
    drawn = {file.stem for file in (project.root / "figures/nevis").glob("*.pdf")}
    assert drawn == {*DRAWN, "03_best_size"} - {"07_the_stream"}


def nbval(project: Project, file: Path) -> tuple[int, str]:
    return project.run(".venv/bin/python", "-m", "pytest", "--nbval", str(file), "-p", "no:cacheprovider", "-q")


def test_nbval_sees_a_changed_number(project):
    """A notebook whose outputs are compared, and one whose last printed number was changed."""
    file = next((project.root / "notebooks").glob("01_*.ipynb"))
    content = nbformat.read(file, 4)
    outputs = [out for cell in content.cells for out in cell.get("outputs", []) if out.output_type == "stream"]
    assert outputs, f"{file.name} carries no outputs: run `make notebooks`"
    status, output = nbval(project, file)
    assert status == 0, output
    outputs[-1].text = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), outputs[-1].text)
    changed = file.with_name("changed.ipynb")
    nbformat.write(content, changed)
    status, output = nbval(project, changed)
    changed.unlink()
    assert status == 1 and "1 failed" in output
