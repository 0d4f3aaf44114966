"""What is up to date is decided by content."""

import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from lib.common import paths
from lib.runs import profiles, stamps
from lib.runs.profiles import arms_of, write_stamps
from lib.runs.stamps import hash_of, training_hash

PROFILE = "smoke"


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A copy of the repository's code, which the stamps then look at."""
    for name in ("lib", "tools", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.parquet", "*.png", "*.safetensors")
        shutil.copytree(paths.ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(paths.ROOT / "requirements.txt", tmp_path)
    for module in (stamps, profiles):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(profiles, "BUILD", tmp_path / "build")
    monkeypatch.setattr(profiles, "PROFILES", tmp_path / "notebooks" / "profiles.toml")
    return tmp_path


def edit(file: Path, change) -> None:
    before = file.read_text()
    after = change(before)
    assert after != before
    file.write_text(after)


def change_a_number(code: str) -> str:
    """The first number assigned to a name becomes another."""
    return re.sub(r"= (\d+)\b", lambda found: f"= {int(found[1]) + 1}", code, count=1)


def add_a_comment(code: str) -> str:
    return code.replace("\n\n\n", "\n\n\n\n# A remark.\n", 1)


def stamps_of(root: Path) -> dict[str, str]:
    write_stamps(PROFILE)
    folder = root / "build" / PROFILE / "stamps"
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def changed(root: Path, file: str, change) -> set[str]:
    """Names of the stamps that differ after an edit."""
    before = stamps_of(root)
    edit(root / file, change)
    after = stamps_of(root)
    assert before.keys() == after.keys()
    return {name for name, text in before.items() if after[name] != text}


def training_stamps() -> set[str]:
    return {f"arms/{arm}.training" for arm in arms_of(PROFILE)}


def test_hash_ignores_comments_and_layout(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("x = 1\n\ndef f(a):\n    return a + 2\n")
    before = hash_of([file])
    file.write_text("# why\nx = 1  # one\n\n\ndef f(\n    a,\n):\n    return (a + 2)\n")
    assert hash_of([file]) == before
    file.write_text("x = 1\n\ndef f(a):\n    return a + 3\n")
    assert hash_of([file]) != before


def test_hash_of_other_files_sees_every_byte(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("{}")
    before = hash_of([file])
    file.write_text("{} ")
    assert hash_of([file]) != before


def test_stamps_keep_their_time_when_nothing_changed(copy):
    write_stamps(PROFILE)
    files = [file for file in (copy / "build").rglob("*") if file.is_file()]
    for file in files:
        os.utime(file, (1000, 1000))
    write_stamps(PROFILE)
    assert len(files) > 5 and all(file.stat().st_mtime == 1000 for file in files)


@pytest.mark.parametrize(
    "file", ["lib/evidence/figures/style.py", "lib/learning/training.py", "lib/networks/backbone.py"]
)
def test_comments_change_no_stamp(copy, file):
    assert changed(copy, file, add_a_comment) == set()


@pytest.mark.parametrize("file", ["lib/evidence/figures/style.py", "lib/evidence/records.py"])
def test_drawing_code_changes_the_drawing_alone(copy, file):
    assert changed(copy, file, change_a_number) == {"drawing"}


@pytest.mark.parametrize("file", ["lib/learning/training.py", "lib/runs/run.py", "lib/learning/learners.py"])
def test_training_code_changes_every_arm_and_no_drawing(copy, file):
    assert changed(copy, file, lambda code: code + "\nEXTRA = 1\n") == training_stamps()


@pytest.mark.parametrize(
    "file", ["lib/networks/macs.py", "lib/pruning/criteria.py", "lib/networks/backbone.py"]
)
def test_code_that_notebooks_look_at_networks_with_changes_the_drawing_too(copy, file):
    assert changed(copy, file, lambda code: code + "\nEXTRA = 1\n") == training_stamps() | {"drawing"}


@pytest.mark.parametrize("file", ["tools/pocket/build.py", "tools/execute.py", "tools/estimate.py"])
def test_other_code_changes_nothing(copy, file):
    assert changed(copy, file, lambda code: code + "\nEXTRA = 1\n") == set()


@pytest.mark.parametrize("package", ["torch", "timm", "numpy", "pillow", "scikit-learn"])
def test_pin_of_a_package_that_makes_numbers_changes_every_arm(copy, package):
    """Pillow decodes and resizes the images; scikit-learn computes average precision."""

    def other_version(text: str) -> str:
        return re.sub(rf"(?m)^{package}==\S+", f"{package}==0.0.1", text)

    assert changed(copy, "requirements.txt", other_version) == training_stamps()


def test_pin_of_another_package_changes_nothing(copy):
    assert changed(copy, "requirements.txt", lambda text: text.replace("ruff==", "ruff==9")) == set()


def test_cards_of_the_stream_change_every_arm(copy):
    def other_image(text: str) -> str:
        return re.sub(r'"sha256": "\w', '"sha256": "-', text, count=1)

    assert changed(copy, "lib/streams/pocket/cards.json", other_image) == training_stamps()


def test_weights_count_for_their_own_backbone_only(copy):
    before = training_hash("resnet26_64"), training_hash("efficientnet_lite0")
    weights = copy / "lib" / "networks" / "weights" / "resnet26_64.safetensors"
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"other weights")
    assert training_hash("resnet26_64") != before[0]
    assert training_hash("efficientnet_lite0") == before[1]


def test_parameters_of_an_arm_change_that_arm_alone(copy):
    arm, fields = next(reversed(arms_of(PROFILE).items()))
    ratio = f"ratio = {fields['ratio']}"

    def other_ratio(text: str) -> str:
        head, tail = text.split(f"\n{arm} = ", 1)
        return f"{head}\n{arm} = {tail.replace(ratio, 'ratio = 0.125', 1)}"

    assert changed(copy, "notebooks/profiles.toml", other_ratio) == {f"arms/{arm}.json"}


def test_prose_and_outputs_of_a_notebook_change_nothing(copy):
    file = "notebooks/experiment.ipynb"
    assert changed(copy, file, lambda text: text.replace("**Shows**", "**Tells**", 1)) == set()
    assert changed(copy, file, lambda text: text.replace("import", "import  ", 1)) == {"notebooks/experiment"}


def test_arms_that_a_profile_runs_with_more_seeds_or_budgets_are_in_it():
    for name, tables in tomllib.loads(profiles.PROFILES.read_text()).items():
        arms = arms_of(name)
        assert tables.get("seeds", {}).keys() | tables.get("long", {}).keys() <= arms.keys()
        for arm, budgets in tables.get("long", {}).items():
            assert arms[arm]["budgets"] == sorted({*arms[arm]["budgets"], *budgets})


def test_a_seed_of_an_arm_differs_in_the_seed_alone_and_budgets_are_added_in_order():
    arms = arms_of("paper")
    assert arms["channel_90-seed1"] == {**arms["channel_90"], "seed": 1, "budgets": arms["l1_50"]["budgets"]}
    assert arms["channel_90"]["budgets"] == [*arms["l1_50"]["budgets"], 4.0, 8.0]
