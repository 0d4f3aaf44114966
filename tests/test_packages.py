"""What is imported is listed, pinned and installed: requirements.txt, the extras, and the package itself."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from lib.common.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = {"lib", "tools", "paper", *(file.stem for file in (ROOT / "notebooks").glob("*.py"))}
# Which extras the files of a folder may import from, beside requirements.txt.
FOLDERS = {
    "lib": ["nevis"],
    "paper": [],
    "notebooks": [],
    "tools": ["data", "cluster"],
    "tests": ["test", "nevis", "cluster", "browser"],
}


def normal(requirement: str) -> str:
    """A requirement as pip compares it: lower case, dashes."""
    name, _, version = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def pins(lines: list[str]) -> dict[str, str]:
    return dict(normal(line).split("==") for line in lines if "==" in line)


def requirements() -> tuple[dict[str, str], dict[str, str]]:
    """The pins of what the project uses itself, and of what that needs."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    direct, needed = re.sub(r"(?m)\s*#.*$", "", text).strip().split("\n\n")
    return pins(direct.split()), pins(needed.split())


def imported(folder: str) -> dict[str, str]:
    """The foreign packages that a folder's code and notebooks import, each with a file that does."""
    found = {}
    for file in sorted((ROOT / folder).rglob("*")):
        if file.suffix == ".py":
            code = file.read_text(encoding="utf-8")
        elif file.suffix == ".ipynb" and not file.name.startswith("."):
            cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
            code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
            code = re.sub(r"(?m)^[%!].*$", "", code)
        else:
            continue
        for node in ast.walk(ast.parse(code)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.split(".")[0]: str(file.relative_to(ROOT)) for name in names}
    beside = {file.stem for file in (ROOT / folder).rglob("*.py")}
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names | OWN | beside}


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_listed_as_used(folder):
    direct, _ = requirements()
    listed = direct.keys() | {name for extra in FOLDERS[folder] for name in pins(EXTRAS[extra])}
    here = {**packages_distributions(), "google": ["protobuf"], "google_crc32c": ["google-crc32c"]}
    named = {"dask_jobqueue": "dask-jobqueue", "torch_pruning": "torch-pruning", "libarchive": "libarchive-c"}
    for name, file in imported(folder).items():
        owners = {re.sub(r"[-_.]+", "-", owner).lower() for owner in here.get(name, [named.get(name, name)])}
        assert owners & listed, f"{file} imports {name}, which is no direct requirement"


def test_everything_is_pinned_once_and_to_one_version():
    direct, needed = requirements()
    assert not direct.keys() & needed.keys()
    everything = direct | needed
    for lines in (PROJECT["dependencies"], *EXTRAS.values()):
        for line in lines:
            assert re.fullmatch(r"[\w.-]+==[\w.]+|compute-optimal-transfer\[nevis\]", line), line
        for name, version in pins(lines).items():
            assert everything.get(name, version) == version, name
            everything.setdefault(name, version)
    assert pins(PROJECT["dependencies"]).items() <= direct.items()


def test_what_only_tests_or_builds_is_not_among_what_runs():
    direct, needed = requirements()
    heavy = {"onnx", "onnxruntime", "onnxscript", "torch-pruning", "mlxtend", "protobuf", "dask", "selenium"}
    assert not heavy & (direct.keys() | needed.keys())


def test_the_named_packages_are_there_for_conda_too():
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "-r requirements.txt" in lines
    named = {"torch", "torchvision", "jupyterlab", "papermill", "matplotlib", "seaborn", "ptflops", "nbval"}
    assert named <= requirements()[0].keys()


@pytest.mark.slow
def test_the_library_installs_into_an_empty_environment_and_works_there(tmp_path):
    """With its dependencies, weights and stream, and with nothing written beside the packages."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-cache-dir", ROOT], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True, stdout=subprocess.DEVNULL)
    code = """
import lib, pathlib
from lib.networks import load_backbone
from lib.pruning import load_pruned, plan_pruning
from lib.runs import RunSpec, run_stream
from lib.streams import list_tasks, load_stream
net = load_backbone("resnet26_64")
plan = plan_pruning(net, ratio=0.5)
plan.save(plan.apply(net), "small")
load_pruned("small")
assert len(list_tasks("pocket")) == len(load_stream("pocket").tasks) == 14
records = run_stream(RunSpec(backbone="resnet26_64", ratio=0.5, learner="probe", budgets=BUDGETS,
    tasks=["mnist"], train_images=64, evaluation_images=32), out="runs")
assert records["error_test"].between(0, 1).all() and len(records) == 1
print(pathlib.Path(lib.__file__).parents[1])
"""
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "INGEST_CACHE")}
    done = subprocess.run(
        [python, "-c", code.replace("BUDGETS", "[8.0]")], cwd=empty, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    packages = Path(done.stdout.strip())
    assert packages.is_relative_to(tmp_path / "venv")
    assert sorted(path.name for path in empty.iterdir()) == ["build", "runs", "small"]
    assert not (packages / "build").exists()
