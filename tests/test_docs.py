"""What README and docs/ say is there is there, and their examples run."""

import re
import tomllib

import pytest

from lib.common.paths import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/])(?:lib|tools|paper|notebooks|tests|docs)/[\w./]*\w", text))
    linked = {link.split("#")[0] for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)} - {""}
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in linked if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_targets_that_are_named_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {*re.findall(r"(?m)^([a-z-]+):", makefile), *(f"setup-{extra}" for extra in EXTRAS)}
    assert set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))) <= targets


def test_examples_of_the_library_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = [block for block in BLOCKS if "run_stream" not in block]
    assert len(blocks) >= 3
    for block in blocks:
        exec(block, names)
    assert len(names["data"].train) and names["small"].pruned


def test_example_of_a_run_is_a_valid_spec():
    (block,) = [block for block in BLOCKS if "run_stream" in block]
    asked = []
    names = {"run_stream": lambda spec, out: asked.append(spec)}
    exec(block.replace("RunSpec, run_stream", "RunSpec"), names)
    assert asked[0].backbone
