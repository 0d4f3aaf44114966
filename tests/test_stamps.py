"""What is up to date is decided by content."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lib.common import paths
from lib.common.errors import UserError
from lib.runs import profiles, stamps
from lib.runs.profiles import arms_of
from lib.runs.spec import RunSpec
from lib.runs.stamps import drawing_hash, hash_of, training_hash
from tools import stamps as make_stamps

PROFILE = "smoke"


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A copy of the repository's code, which the stamps then look at."""
    for name in ("lib", "paper", "tools", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.parquet", "*.png", "*.safetensors")
        shutil.copytree(paths.ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(paths.ROOT / "requirements.txt", tmp_path)
    for module in (stamps, profiles, make_stamps):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(stamps, "LIB", tmp_path / "lib")
    for module in (profiles, make_stamps):
        monkeypatch.setattr(module, "BUILD", tmp_path / "build")
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
    make_stamps.write_stamps(PROFILE)
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
    make_stamps.write_stamps(PROFILE)
    files = [file for file in (copy / "build").rglob("*") if file.is_file()]
    for file in files:
        os.utime(file, (1000, 1000))
    make_stamps.write_stamps(PROFILE)
    assert len(files) > 5 and all(file.stat().st_mtime == 1000 for file in files)


@pytest.mark.parametrize("file", ["notebooks/style.py", "lib/learning/training.py", "lib/networks/backbone.py"])
def test_comments_change_no_stamp(copy, file):
    assert changed(copy, file, add_a_comment) == set()


def drawings(*notebooks: str) -> set[str]:
    return {f"drawing/{notebook}" for notebook in notebooks}


def test_code_that_all_figures_share_changes_every_drawing_and_no_arm(copy):
    found = changed(copy, "notebooks/style.py", change_a_number)
    assert drawings("02_the_front", "05_zero_shot_fidelity", "08_learners") <= found
    assert all(name.startswith("drawing/") for name in found)


def test_code_that_trains_changes_every_arm_and_the_figures_that_are_measured_with_it(copy):
    """Not those that are drawn from records."""
    found = changed(copy, "lib/learning/training.py", change_a_number)
    assert training_stamps() <= found
    assert drawings("06_macs_and_measured_time", "experiment") <= found
    assert not drawings("02_the_front", "08_learners") & found


def test_a_module_beside_the_notebooks_changes_the_figures_of_those_that_import_it(copy):
    found = changed(copy, "notebooks/measured.py", lambda code: re.sub(r"rounds=\d", "rounds=9", code))
    texts = {file.stem: file.read_text() for file in (copy / "notebooks").glob("*.ipynb")}
    importing = {name for name, text in texts.items() if re.search("from (measured|explorer) import", text)}
    assert "06_macs_and_measured_time" in importing and found == drawings(*importing)


@pytest.mark.parametrize("file", ["lib/runs/run.py", "lib/learning/learners.py", "lib/networks/__init__.py"])
@pytest.mark.parametrize("code", ["print(1)", "EXTRA = 1", "def extra():\n    return 2"])
def test_a_module_that_trains_counts_whole_for_every_arm(copy, file, code):
    assert training_stamps() <= changed(copy, file, lambda before: f"{before}\n\n{code}\n")


def test_a_package_on_the_way_to_a_module_counts_by_what_runs_when_it_is_imported(copy):
    """What lib.runs imports when it is asked for a run does not make the figures old that look at records."""
    edit(copy / "lib" / "runs" / "__init__.py", lambda code: code + "\n\ndef extra():\n    import lib.pruning.plan\n")
    drawn = "02_the_front"
    assert not drawings(drawn) & changed(copy, "lib/pruning/plan.py", lambda code: code + "\nprint(1)\n")
    edit(copy / "lib" / "runs" / "__init__.py", lambda code: code + "\nimport lib.pruning.plan\n")
    assert drawings(drawn) <= changed(copy, "lib/pruning/plan.py", lambda code: code + "\nprint(2)\n")


@pytest.mark.parametrize("file", ["load.py", "folder.py", "shipped.py"])
def test_a_reader_of_streams_changes_figures_that_look_at_images_and_no_arm(copy, file):
    """What it reads is in the key of a run, by its content."""
    found = changed(copy, f"lib/streams/{file}", lambda code: code + "\nprint(1)\n")
    assert drawings("07_the_stream", "11_near_and_far") <= found and not training_stamps() & found


@pytest.mark.parametrize("file", ["tools/pocket/build.py", "tools/execute.py", "tools/estimate.py"])
def test_other_code_changes_nothing(copy, file):
    assert changed(copy, file, lambda code: code + "\nprint(1)\n") == set()


ADDED = {
    "lib/pruning/criteria.py": """
@criterion("mine")
def mine(evidence):
    return evidence
""",
    "lib/pruning/repairs.py": """
@repair("mine")
def mine(damage):
    return {}
""",
    "lib/learning/learners.py": """
@learner("mine")
def mine(job):
    import lib.evidence.records
    return independent(job)
""",
    "lib/networks/catalogue.py": """
@backbone("mine", None, offline=True)
def mine():
    return None
""",
}


@pytest.mark.parametrize("file", ADDED)
def test_what_is_registered_beside_the_others_makes_no_arm_old(copy, file):
    assert not training_stamps() & changed(copy, file, lambda code: code + ADDED[file])
    arm = {"ratio": 0.5, "backbone": "resnet26_64", "criterion": "mine", "repair": "mine", "learner": "mine"}
    named = training_hash(arm)
    edit(copy / file, lambda code: code.replace("mine(", "mine(_, "))
    if file != "lib/networks/catalogue.py":
        assert training_hash(arm) != named


def test_what_a_registered_function_calls_counts_though_it_is_registered_under_another_name(copy):
    edit(copy / "lib" / "learning" / "learners.py", lambda code: code + ADDED["lib/learning/learners.py"])
    arms = [{"ratio": 0.5, "backbone": "resnet26_64", "learner": name} for name in ("mine", "probe")]
    before = [training_hash(arm) for arm in arms]
    edit(copy / "lib" / "learning" / "learners.py", lambda code: code.replace('r("independent"', 'r("independent", 3'))
    assert [training_hash(arm) == hash for arm, hash in zip(arms, before, strict=True)] == [False, True]


def test_a_row_of_a_table_of_networks_counts_for_its_own_network(copy):
    def other(text: str) -> str:
        return text.replace('*("resnet18", "resnet34"', '*("resnet152", "resnet34"')

    arms = [{"ratio": 0, "backbone": name} for name in ("resnet18", "resnet50")]
    before = [training_hash(arm) for arm in arms]
    edit(copy / "lib" / "networks" / "catalogue.py", other)
    assert [training_hash(arm) == hash for arm, hash in zip(arms, before, strict=True)] == [False, True]


def test_a_criterion_counts_for_the_arms_that_name_it(copy):
    """The default counts for arms that name none, the dense ones of another profile."""
    arms = [{"ratio": 0.5, "backbone": "resnet26_64", "criterion": name} for name in ("l1", "l2")]
    before = [training_hash(arm) for arm in arms]
    edit(copy / "lib" / "pruning" / "criteria.py", lambda code: code.replace('@criterion("l1")', '@criterion("l1", 1)'))
    assert [training_hash(arm) == hash for arm, hash in zip(arms, before, strict=True)] == [False, True]


@pytest.mark.parametrize("name", ["criterion", "repair", "learner"])
def test_fields_that_an_arm_leaves_out_count_as_their_defaults(name):
    arm = {"backbone": "resnet26_64", "ratio": 0.5}
    default = RunSpec.model_fields[name].default
    assert training_hash(arm) == training_hash(arm | {name: default})
    spec = RunSpec(**arm, budgets=[2])
    assert training_hash(arm) == training_hash(spec.model_dump())


def test_windows_line_ends_change_no_stamp(copy):
    before = stamps_of(copy)
    for file in copy.rglob("*"):
        if file.suffix in (".py", ".json", ".toml", ".txt", ".ipynb", ".yaml") and "build" not in file.parts:
            file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert stamps_of(copy) == before


def test_docstrings_annotations_and_the_words_of_a_refusal_do_not_count(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("def f(a):\n    if a < 0:\n        raise UserError('no')\n    return a\n")
    before = hash_of([file])
    file.write_text(
        '"""About."""\n\n\ndef f(a: int) -> int:\n    """The same."""\n    if a < 0:\n'
        "        raise UserError(f'{a} is below 0') from None\n    return a\n"
    )
    assert hash_of([file]) == before


HASHES = """
from lib.common.paths import ROOT
from lib.runs.profiles import arms_of
from lib.runs.stamps import drawing_hash, training_hash
print([training_hash(fields) for fields in arms_of("paper").values()])
print([drawing_hash(notebook) for notebook in sorted((ROOT / "notebooks").glob("*.ipynb"))])
"""
PYTHONS = sorted(Path.home().glob(".pyenv/versions/3.1[123]*/bin/python"))


@pytest.mark.skipif(len(PYTHONS) < 2, reason="needs other versions of Python under ~/.pyenv")
def test_hashes_are_the_same_on_every_version_of_python():
    """By the standard library alone: those have no packages."""
    found = {
        subprocess.run([python, "-c", HASHES], cwd=paths.ROOT, text=True, capture_output=True, check=True).stdout
        for python in (sys.executable, *PYTHONS)
    }
    assert len(found) == 1 and len(found.pop()) > 40 * 64


@pytest.mark.parametrize("package", ["torch", "timm", "numpy", "pillow", "scikit-learn"])
def test_pin_of_a_package_that_makes_numbers_changes_every_arm(copy, package):
    """Pillow decodes and resizes the images; scikit-learn computes average precision."""

    def other_version(text: str) -> str:
        return re.sub(rf"(?m)^{package}==\S+", f"{package}==0.0.1", text)

    assert changed(copy, "requirements.txt", other_version) == training_stamps()


def test_pin_of_another_package_changes_nothing(copy):
    def newer(text: str) -> str:
        return text.replace("jupyterlab==", "jupyterlab==9")

    assert changed(copy, "requirements.txt", newer) == set()


def test_cards_of_the_stream_change_every_arm(copy):
    def other_image(text: str) -> str:
        return re.sub(r'"sha256": "\w', '"sha256": "-', text, count=1)

    assert changed(copy, "lib/streams/pocket/cards.json", other_image) == training_stamps()


def test_weights_count_for_their_own_backbone_only(copy):
    arms = [{"backbone": name, "ratio": 0.5} for name in ("resnet26_64", "efficientnet_lite0")]
    before = [training_hash(arm) for arm in arms]
    weights = copy / "lib" / "networks" / "weights" / "resnet26_64.safetensors"
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"other weights")
    assert training_hash(arms[0]) != before[0]
    assert training_hash(arms[1]) == before[1]


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
    drawn = "notebooks/02_the_front.ipynb"
    assert drawing_hash(copy / drawn) == drawing_hash(paths.ROOT / drawn)


def test_arms_that_a_profile_runs_with_more_seeds_or_budgets_are_in_it():
    for name, tables in tomllib.loads(profiles.PROFILES.read_text()).items():
        arms = arms_of(name)
        assert tables.get("seeds", {}).keys() | tables.get("long", {}).keys() <= arms.keys()
        for arm, budgets in tables.get("long", {}).items():
            assert arms[arm]["budgets"] == sorted({*arms[arm]["budgets"], *budgets})


def test_a_seed_of_an_arm_differs_in_the_seed_alone_and_budgets_are_added_in_order():
    arms = arms_of("paper")
    assert arms["probe_random_25-seed1"] == {**arms["probe_random_25"], "seed": 1}
    longer = tomllib.loads(profiles.PROFILES.read_text())["paper"]["long"]["pruned_50"]
    assert longer and arms["pruned_50"]["budgets"] == [*arms["norms_50"]["budgets"], *longer]


def test_the_pocket_profile_is_the_paper_s_on_fewer_test_images():
    pocket, paper = arms_of("pocket"), arms_of("paper")
    for arm, fields in pocket.items():
        assert fields.pop("evaluation_images") == 100 and "evaluation_images" not in paper[arm]
        assert fields.items() <= (paper[arm] | {"budgets": fields["budgets"]}).items()
        assert set(fields["budgets"]) <= set(paper[arm]["budgets"])


# --- profiles that users write --------------------------------------------------------------------

FAMILY = """
[old.common]
backbone = "resnet18half_64"
budgets = [16]
seed = 1
[old.arms]
dense = { ratio = 0.0 }
[old.seeds]
dense = [7]

[child]
extends = "old"
[child.common]
budgets = [64]
[child.arms]
half = { ratio = 0.5 }

[grandchild]
extends = "child"
[grandchild.common]
image_size = 32
[grandchild.more]
most = { ratio = 0.75, seed = 3 }
[grandchild.long]
half = [256, 16, 64]
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write the profiles file that is then looked at."""
    monkeypatch.setattr(profiles, "PROFILES", tmp_path / "profiles.toml")
    return (tmp_path / "profiles.toml").write_text


def test_a_profile_has_what_the_one_that_it_extends_has_and_so_on(written):
    written(FAMILY)
    shared = {"backbone": "resnet18half_64", "seed": 1, "budgets": [64], "image_size": 32}
    assert arms_of("grandchild") == {
        "dense": {**shared, "ratio": 0.0},
        "half": {**shared, "ratio": 0.5, "budgets": [16, 64, 256]},
        "most": {**shared, "ratio": 0.75, "seed": 3},
        "dense-seed7": {**shared, "ratio": 0.0, "seed": 7},
    }
    assert list(arms_of("grandchild", "more")) == ["most"]
    older = {"backbone": "resnet18half_64", "budgets": [16], "seed": 1, "ratio": 0.0}
    assert arms_of("old")["dense"] == older


WRONG = [
    ("[p.seeds]\ndens = [1]\n", "'dens'", "dense"),
    ("[p.long]\ndens = [64]\n", "'dens'", "dense"),
    ("[p.more]\nx = { raito = 0.5 }\n", "'raito'", "ratio"),
    ("[p.common]\nbudget = [64]\n", "'budget'", "budgets"),
    ("[q]\nextends = 'p'\n[r]\nextends = 'none'\n", "none", "p"),
    ("[p.more]\nx = 3\n", "p.more", "not valid"),
    ("[p.seeds]\ndense = 1\n", "p.seeds", "not valid"),
    ("[p.more\n", "TOML", "line"),
]


@pytest.mark.parametrize(("text", "value", "expected"), WRONG)
def test_what_is_wrong_in_a_profile_is_named(written, text, value, expected):
    written("[p.arms]\ndense = { ratio = 0.0 }\n" + text)
    with pytest.raises(UserError) as error:
        arms_of("r" if "[r]" in text else "p")
    message = str(error.value)
    assert value in message and expected in message and "\n" not in message


def test_a_profile_that_extends_itself_is_refused(written):
    written("[a]\nextends = 'b'\n[b]\nextends = 'a'\n")
    with pytest.raises(UserError, match="PROFILE=a"):
        arms_of("a")


def test_paths_in_a_profile_are_relative_to_it(written, tmp_path, monkeypatch):
    """Also as Notepad saves the file, with a mark before the text, and from any folder."""
    common = '\ufeff[p.common]\nstream = "data/stream.yaml"\nweights = "../mine.pth"\n'
    written(common + "[p.arms]\na = {}\nb = { stream = 'nevis/short' }\n", encoding="utf-8")
    monkeypatch.chdir("/")
    arms = arms_of("p")
    assert arms["a"]["stream"] == str(tmp_path / "data" / "stream.yaml") and arms["b"]["stream"] == "nevis/short"
    assert arms["a"]["weights"] == str(tmp_path.parent / "mine.pth")


def test_own_weights_and_streams_change_the_stamp_of_their_arm_alone(copy):
    for name in ("mine.pth", "stream.yaml"):
        (copy / "notebooks" / name).write_text("1")
    own = "own_{0} = {{ ratio = 0.0, {0} = '{1}' }}\n"
    text = "[smoke.arms]\n" + own.format("weights", "mine.pth") + own.format("stream", "stream.yaml")
    edit(copy / "notebooks" / "profiles.toml", lambda toml: toml.replace("[smoke.arms]\n", text))
    for name, arm in (("mine.pth", "own_weights"), ("stream.yaml", "own_stream")):
        assert changed(copy, f"notebooks/{name}", lambda _: "22") == {f"arms/{arm}.training"}
