"""Files are written whole or not at all."""

import errno
import json
import os
import stat

import filelock
import pytest
import torch

from lib.common.errors import UserError
from lib.common.files import atomic_path, locked, save_tensors, write_json


def test_file_appears_whole_and_alone(tmp_path):
    target = tmp_path / "new" / "folder" / "table.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["table.csv"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "x.json", 1)
        save_tensors({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {mode}


def test_longest_name_a_file_may_have_is_written(tmp_path):
    write_json(tmp_path / ("ü" * 125 + ".json"), 1)
    assert len(os.listdir(tmp_path)) == 1
    with pytest.raises(UserError, match="Cannot write"):
        write_json(tmp_path / ("ü" * 126 + ".json"), 1)
    assert len(os.listdir(tmp_path)) == 1


def test_temporary_file_has_the_suffix_that_writers_look_at(tmp_path):
    with atomic_path(tmp_path / "figure.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
@pytest.mark.parametrize("old", ["old", None])
def test_exception_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error, old):
    target = tmp_path / "table.csv"
    if old is not None:
        target.write_text(old)
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert os.listdir(tmp_path) == (["table.csv"] if old else [])
    assert old is None or target.read_text() == old


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_full_disk_is_one_sentence_that_names_the_file(tmp_path, number):
    target = tmp_path / "table.csv"
    with pytest.raises(UserError, match=str(target)), atomic_path(target):
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []


def test_path_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")), atomic_path(tmp_path / "file" / "a" / "b.csv"):
        pass
    with pytest.raises(UserError, match=str(tmp_path / "file")), atomic_path(tmp_path / "file" / "b.csv"):
        pass


def test_path_of_a_folder_is_one_sentence_and_leaves_it(tmp_path):
    (tmp_path / "folder" / "below").mkdir(parents=True)
    with pytest.raises(UserError, match="Is a directory"), atomic_path(tmp_path / "folder"):
        pass
    assert os.listdir(tmp_path) == ["folder"]


def test_error_in_the_block_that_is_not_about_writing_is_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "table.csv"):
        (tmp_path / "missing").read_text()


def test_json_is_read_back(tmp_path):
    content = {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == content


def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert (tmp_path / "x.json").read_text() == "1\n"
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch, error):
    def acquire(self):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    refused = pytest.raises(UserError, match=r"Cannot write to .*lock.* choose another\.")
    with refused, locked(tmp_path / "run" / ".lock", "choose another"):
        raise AssertionError("the block was entered")


def test_a_folder_that_cannot_be_made_is_one_sentence_with_the_advice(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"choose another\."), locked(tmp_path / "file" / ".lock", "choose another"):
        pass
