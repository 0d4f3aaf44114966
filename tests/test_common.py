"""What every room leans on: names in one sentence, folders, commits, progress."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.common import provenance as module
from lib.common.errors import UserError, choose
from lib.common.paths import ROOT, folder_from
from lib.common.progress import report
from lib.common.provenance import provenance


def test_a_known_name_passes_and_an_unknown_one_is_one_sentence_with_those_there_are():
    choose("criterion", "l1", {"l1": 1, "l2": 2})
    with pytest.raises(UserError) as error:
        choose("criterion", "l3", (name for name in ("l1", "l2")))
    assert str(error.value) == "Unknown criterion 'l3': expected one of l1, l2."


@pytest.mark.parametrize("name", [None, 3, ["l1"], {}, float("nan"), "L1", ""])
def test_no_value_of_another_type_is_a_name(name):
    with pytest.raises(UserError, match="Unknown criterion"):
        choose("criterion", name, ["l1"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "default"), ("", "default"), ("/a/b c", "/a/b c"), ("ü/x", f"{ROOT}/ü/x"), ("~/x", "/home/me/x")],
)
def test_a_variable_names_a_folder_from_wherever_it_is_read(monkeypatch, tmp_path, value, expected):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv("INGEST_CACHE", raising=False)
    else:
        monkeypatch.setenv("INGEST_CACHE", value)
    assert folder_from("INGEST_CACHE", ROOT / "default") == ROOT / expected


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository with one commit that holds lib/a.py; what provenance asks git about."""
    root = tmp_path / "a checkout, ü"
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "a.py").write_text("A = 1\n")
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], [*me, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    monkeypatch.setattr(module, "LIB", root / "lib")
    return root


def head(root: Path) -> str:
    command = ["git", "-c", "safe.directory=*", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_is_the_checkout_s_and_says_whether_lib_was_changed(checkout):
    assert provenance()["commit"] == head(checkout)
    (checkout / "notes").write_text("")
    assert provenance()["commit"] == head(checkout)
    (checkout / "lib" / "b.py").write_text("")
    assert provenance()["commit"] == f"{head(checkout)} with changes"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_commit_of_another_owner_s_checkout(checkout):
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 1234, 1234)
    assert provenance()["commit"] == head(checkout)


def test_text_has_line_feeds_whatever_git_is_told(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    command = ["git", "-c", "safe.directory=*", "-c", "core.autocrlf=true"]
    copy = tmp_path / "copy"
    subprocess.run([*command, "clone", "-q", "--depth=1", ROOT.as_uri(), copy], check=True)
    listed = subprocess.run([*command, "ls-files", "--eol"], cwd=copy, capture_output=True, text=True, check=True)
    kinds = {line.split()[1] for line in listed.stdout.splitlines()}
    assert "w/lf" in kinds and kinds <= {"w/lf", "w/none", "w/-text"}


def test_a_hook_s_variables_name_no_other_repository(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    commit = provenance()["commit"]
    monkeypatch.undo()
    assert commit == head(checkout)


def test_a_copy_within_someone_s_checkout_has_no_commit(checkout, monkeypatch):
    shutil.copytree(checkout / "lib", checkout / "vendored" / "lib")
    monkeypatch.setattr(module, "LIB", checkout / "vendored" / "lib")
    assert provenance()["commit"] == "not a git checkout"


def test_without_git_or_processor_s_file_the_rest_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "Path", lambda name: tmp_path / "missing")
    told = provenance()
    assert told["commit"] == "not a git checkout" and isinstance(told["processor"], str)
    assert 10 < told["peak_memory_mb"] < 1 << 20 and told["python"] == sys.version.split()[0]


@pytest.mark.parametrize("name", ["missing/file", ".", "file"])
def test_progress_is_told_where_it_can_be_and_stops_nobody(tmp_path, monkeypatch, name):
    monkeypatch.setenv("PROGRESS_FILE", str(tmp_path / name))
    report("naïve caf\udce9")
    assert name != "file" or (tmp_path / "file").read_text(encoding="utf-8") == "naïve caf?\n"
