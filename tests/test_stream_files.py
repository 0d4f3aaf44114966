"""Anyone's own tasks: folders of images and the files that list them."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lib.common.errors import UserError
from lib.runs.run import run_stream
from lib.runs.spec import RunSpec
from lib.streams import ingest, list_tasks, load_stream
from lib.streams.folder import FolderSource
from lib.streams.shipped import POCKET

NETWORK = {"backbone": "resnet18half_64", "repair": "none", "image_size": 32}
CLASSES = ["яблоко", "two words"]


def fill(folder: Path, counts: dict[str, int], classes: list[str] = CLASSES) -> Path:
    """`counts` images a class and part; each of a colour that tells its class, part and number apart."""
    for part, count in counts.items():
        for label, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                colour = (200 * label, number, 100 * (part == "test"))
                Image.new("RGB", (20, 12), colour).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INGEST_CACHE", str(tmp_path / "cache"))


def stream_file(folder: Path, text: str) -> str:
    file = folder / "stream.yaml"
    file.write_text(text)
    return str(file)


ONE = """
name: mine
tasks:
  - {name: fruit, source: "folder:my fruit", year: 2020}
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train": 50}, {"train": 56, "dev": 12, "dev_test": 12, "test": 20}),
        ({"train": 20, "test": 7}, {"train": 28, "dev": 6, "dev_test": 6, "test": 14}),
        ({"train": 20, "dev": 7}, {"train": 32, "dev": 14, "test": 8}),
        ({"train": 20, "dev": 3, "test": 7}, {"train": 40, "dev": 6, "test": 14}),
    ],
    ids=["none", "test", "dev", "both"],
)
def test_missing_parts_are_cut_from_train(tmp_path, given, expected):
    folder = fill(tmp_path / "my fruit", given)
    parts = FolderSource(folder).parts()
    assert {name: len(part) for name, part in parts.items()} == expected
    files = [example.where for part in parts.values() for example in part]
    assert sorted(files) == sorted(map(str, folder.rglob("*.png")))  # no image is lost or twice
    for part in parts.values():  # every part has both classes, in equal numbers, and mixed
        labels = [example.label for example in part]
        assert np.bincount(labels).tolist() == [len(part) // 2] * 2 and labels != sorted(labels)
    (task,) = load_stream(stream_file(tmp_path, ONE)).tasks
    for name, split in vars(task.read(32)).items():
        assert split.labels.tolist() == [example.label for example in parts[name]]
        colours = [np.asarray(example.open())[0, 0].tolist() for example in parts[name]]
        assert split.images[:, 0, 0].tolist() == colours


def test_the_cut_is_the_same_again_and_content_sees_changes(tmp_path):
    folder = fill(tmp_path / "my fruit", {"train": 10})
    first, again = (FolderSource(folder) for _ in range(2))
    assert [e.where for e in first.parts()["train"]] == [e.where for e in again.parts()["train"]]
    before = first.content()
    assert before == again.content()
    Image.new("RGB", (9, 9)).save(folder / "train" / CLASSES[0] / "3.png")
    assert FolderSource(folder).content() != before


def test_content_follows_the_bytes_and_no_time_or_place(tmp_path):
    folder = fill(tmp_path / "fruit", {"train": 3, "test": 2})
    before = FolderSource(folder).content()
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert FolderSource(copy).content() == before
    for file in copy.rglob("*.png"):
        os.utime(file, (1, 1))
    assert FolderSource(copy).content() == before
    assert FolderSource(folder.rename(tmp_path / "moved")).content() == before
    (file, other) = sorted(copy.rglob("*.png"))[:2]
    file.write_bytes(file.read_bytes()[:-1] + b"x")  # the same size
    os.utime(file, (1, 1))
    changed = FolderSource(copy).content()
    assert changed != before
    other.rename(other.with_name("renamed.png"))
    assert FolderSource(copy).content() not in (changed, before)
    (copy / "test" / CLASSES[0]).joinpath("0.png").rename(copy / "train" / CLASSES[0] / "new.png")
    assert FolderSource(copy).content() not in (changed, before)


def test_a_file_that_did_not_change_is_hashed_once(tmp_path, monkeypatch):
    folder = fill(tmp_path / "fruit", {"train": 3})
    hashed = []
    monkeypatch.setattr(ingest, "_digest", lambda file: hashed.append(file) or "0")
    monkeypatch.setattr(ingest, "SETTLED", -1)
    content = FolderSource(folder).content()
    assert FolderSource(folder).content() == content and len(hashed) == 6
    os.utime(hashed[0])
    assert FolderSource(folder).content() == content and len(hashed) == 7
    monkeypatch.setattr(ingest, "SETTLED", 10**12)  # what has just been written may be written again
    os.utime(hashed[0])
    for _ in range(2):
        assert FolderSource(folder).content() == content
    assert len(hashed) == 7 + 1 + 6


def test_a_folder_runs_from_its_stream_file_to_records(tmp_path):
    fill(tmp_path / "my fruit", {"train": 40})
    file = stream_file(tmp_path, ONE)
    spec = RunSpec(**NETWORK, ratio=0.5, stream=file, budgets=[64])
    (record,) = run_stream(spec, tmp_path / "runs").to_dict("records")
    assert (record["task"], record["year"], record["domain"]) == ("fruit", 2020, "other")
    assert record["steps"] > 0 and record["error_test"] <= 0.25  # red or not


def test_missing_tasks_are_listed_or_left_out(tmp_path):
    fill(tmp_path / "my fruit", {"train": 10})
    file = stream_file(
        tmp_path,
        ONE
        + """
  - {name: birds, source: "folder:birds", year: 2011}
  - {name: cars, source: "folder:cars", year: 2012, domain: vehicles}
""",
    )
    table = list_tasks(file).set_index("name")
    assert table["available"].to_dict() == {"fruit": True, "birds": False, "cars": False}
    assert str(tmp_path / "birds") in table.loc["birds", "how"] and table.loc["cars", "domain"] == "vehicles"
    with pytest.raises(UserError, match=r"2 of 3 tasks.*birds.*cars.*missing='skip'"):
        load_stream(file)
    stream = load_stream(file, missing="skip")
    assert [task.name for task in stream.tasks] == ["fruit"] and stream.left_out == ("birds", "cars")


def test_records_name_the_tasks_that_were_left_out(tmp_path):
    fill(tmp_path / "my fruit", {"train": 20})
    file = stream_file(tmp_path, ONE + '  - {name: birds, source: "folder:birds", year: 2011}\n')
    fields = {**NETWORK, "ratio": 0.0, "stream": file, "budgets": [8]}
    with pytest.raises(UserError, match="birds"):
        run_stream(RunSpec(**fields), tmp_path / "runs")
    (record,) = run_stream(RunSpec(**fields, missing="skip"), tmp_path / "runs").to_dict("records")
    assert record["left_out"] == "birds"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("", "holds nothing: expected `name` and `tasks`"),
        ("# later\n", "holds nothing"),
        ("- {name: a, source: 'folder:a', year: 2000}", "holds a list"),
        ("folder:a", "holds a str"),
        ("2000", "holds a int"),
        ("name: mine\ntasks:\n\t- {name: a, source: 'folder:a', year: 2000}", "spaces instead of tabs"),
        ("name: mine\ntasks: {}\ntasks: []", "'tasks' is given twice"),
        ("name: mine\ntasks: [{name: a, name: b, source: 'folder:a', year: 2000}]", "'name' is given twice"),
        ("name: mine\n---\nname: yours", "is not YAML"),
        ("name: mine", "tasks is not valid"),
        ("tasks: [{name: a, source: 'folder:a', year: 2000}]", "name is not valid"),
        ("name: 12\ntasks: [{name: a, source: 'folder:a', year: 2000}]", "name is not valid"),
        ("name: mine\ntasks: a", "tasks is not valid"),
        ("name: mine\ntasks: [a]", "tasks.0 is not valid"),
        ("name: mine\ntasks: [{name: '  ', source: 'folder:a', year: 2000}]", "tasks.0.name"),
        ("name: mine\ntasks: [{name: a, source: 'folder:a', year: true}]", "tasks.0.year"),
        ("name: mine\ntasks: [{name: a, source: 'folder:a', year: 2011.5}]", "tasks.0.year"),
        ("name: mine\ntasks: [{name: a, source: 'folder:a', year: 1492}]", "tasks.0.year"),
        ("name: mine\ntasks: [{name: a, source: 'folder:a', year: null}]", "tasks.0.year"),
        ("name: mine\ntasks: [{name: a, source: 'folder:a', year: 2011-05-01}]", "tasks.0.year"),
        ("name: mine\ntask: []", "tasks is not valid"),
        ("name: mine\ntasks: [{name: a, source: [a], year: 2000}]", "tasks.0.source"),
        ("name: mine\ntasks: [{name: a, source: 'folder:', year: 2000}]", "source 'folder:' of 'a' is unknown"),
        (
            "name: mine\ntasks:\n  - {name: a, source: 'folder:a', year: 2000}\n"
            "  - {name: ' a', source: 'folder:b', year: 2001}",
            "two tasks are called 'a'",
        ),
        ("name: mine\ntasks: []", "tasks is not valid"),
        ("name: mine\ntasks: [{name: a, source: 'folder:a'}]", "tasks.0.year"),
        ("name: mine\ntasks: [{name: a, source: 'folder:a', year: soon}]", "tasks.0.year"),
        ("name: mine\ntasks: [{name: a, source: 'folder:a', year: 2000, colour: red}]", "tasks.0.colour"),
        (
            "name: mine\ntasks: [{name: a, source: 'web:a', year: 2000}]",
            "source 'web:a' of 'a' is unknown: expected one of folder, nevis, torchvision",
        ),
        ("name: mine\ntasks: [{name: a, source: a, year: 2000}]", "source 'a' of 'a' is unknown"),
    ],
)
def test_a_bad_stream_file_is_refused_with_the_place(tmp_path, text, message):
    file = stream_file(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load_stream(file)
    assert file in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("written", ["plain", "BOM", "CRLF", "UTF-16", "quoted year", "upper case"])
def test_a_stream_file_is_read_however_it_is_written(tmp_path, written):
    fill(tmp_path / "my fruit", {"train": 10})
    expected = load_stream(stream_file(tmp_path, ONE))
    encoding = {"BOM": "utf-8-sig", "UTF-16": "utf-16"}.get(written, "utf-8")
    text = ONE.replace("\n", "\r\n") if written == "CRLF" else ONE
    text = text.replace("2020", "'2020'") if written == "quoted year" else text
    file = tmp_path / ("OTHER.YAML" if written == "upper case" else "other.yml")
    file.write_bytes(text.encode(encoding))
    stream = load_stream(file)
    assert (stream.name, stream.content, stream.tasks[0].year) == ("mine", expected.content, 2020)


def test_a_stream_file_is_the_same_however_its_path_is_spelt(tmp_path, monkeypatch):
    fill(tmp_path / "my fruit", {"train": 10})
    file = stream_file(tmp_path, ONE)
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("HOME", str(tmp_path))
    spelt = [file, Path(file), "../stream.yaml", "./../stream.yaml", Path("../stream.yaml"), "~/stream.yaml"]
    spelt += [f"{tmp_path}/below/../stream.yaml", tmp_path / "link" / "stream.yaml"]
    streams = [load_stream(path) for path in spelt]
    assert len({(stream.name, stream.content) for stream in streams}) == 1
    assert all(list_tasks(path)["available"].all() for path in spelt)


def test_places_are_relative_to_the_file_or_name_a_home_or_a_variable(tmp_path, monkeypatch):
    fill(tmp_path / "data" / "my fruit", {"train": 10})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IMAGES", str(tmp_path / "data"))
    (tmp_path / "below").mkdir()
    places = ["../data/my fruit", "~/data/my fruit", "$IMAGES/my fruit", "${IMAGES}/my fruit", " $IMAGES/my fruit"]
    contents = {
        load_stream(stream_file(tmp_path / "below", ONE.replace("folder:my fruit", f"folder:{place}"))).content
        for place in [*places, tmp_path / "data" / "my fruit"]
    }
    assert len(contents) == 1
    with pytest.raises(UserError, match=r"\$NOWHERE/my fruit"):
        load_stream(stream_file(tmp_path, ONE.replace("folder:", "folder:$NOWHERE/")))


@pytest.mark.parametrize("text", ["name: caf\xe9\ntasks: []".encode("latin-1"), b"\0\1\2", b"name: \xff"])
def test_a_file_that_is_no_text_is_refused(tmp_path, text):
    (tmp_path / "stream.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"stream\.yaml is not YAML"):
        load_stream(tmp_path / "stream.yaml")


def test_a_folder_called_like_a_file_is_refused(tmp_path):
    (tmp_path / "stream.yaml").mkdir()
    with pytest.raises(UserError, match=r"cannot be read .*expected the path of a stream file"):
        load_stream(tmp_path / "stream.yaml")


def test_an_absent_stream_file_is_refused():
    for name in ("nowhere.yaml", "~nobody-here/nowhere.yaml", Path("nowhere.yaml")):
        with pytest.raises(UserError, match=r"nowhere.yaml cannot be read"):
            load_stream(name)


def test_a_class_that_training_lacks_is_refused(tmp_path):
    folder = fill(tmp_path / "my fruit", {"train": 10, "test": 2})
    (folder / "test" / "pear").mkdir()
    with pytest.raises(UserError, match="pear"):
        load_stream(stream_file(tmp_path, ONE))
    with pytest.raises(UserError, match="no folder train"):
        FolderSource(tmp_path)


def test_pocket_reads_the_same_bytes_as_plain_pillow(tmp_path):
    """The cache changes no pixel: the file's images, decoded and resized here."""
    task = next(task for task in load_stream("pocket").tasks if task.name == "emoji")
    rows = pd.read_parquet(POCKET / "emoji.parquet").query("split == 'dev'")
    for size in (64, 48):
        pictures = (Image.open(io.BytesIO(image)).convert("RGB") for image in rows["image"])
        expected = np.stack([p if p.size == (size, size) else p.resize((size, size), 3) for p in pictures])
        assert torch.equal(task.read(size).dev.images, torch.from_numpy(expected))
