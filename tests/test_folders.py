"""Folders of images as people have them: what lies beside the images, how it is named, linked and cut."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_stream_files import CLASSES, fill, stream_file

from lib.common.errors import UserError
from lib.streams import ingest, load_stream
from lib.streams.cuts import SHARES, by_class
from lib.streams.folder import FolderSource
from lib.streams.ingest import task_from


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INGEST_CACHE", str(tmp_path / "cache"))


def task(folder: Path):
    return task_from(FolderSource(folder), "fruit", 2020, "other")


def counts(folder: Path) -> dict[str, int]:
    return {part: len(found) for part, found in FolderSource(folder).parts().items()}


# --- what lies beside the images ----------------------------------------------------------------------

HIDDEN = [".ipynb_checkpoints", ".git", ".cache", "__MACOSX", "@eaDir", "$RECYCLE.BIN"]
LEFT = [".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "._0.png", "ehthumbs.db", "Icon\r", ".gitkeep"]
NO_IMAGES = ["labels.txt", "data.json", "a.csv", "a.xml", "README", "notes.md", "a.npy", "boxes.mat", "a.zip"]


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_folders_are_no_classes_and_hold_no_images(tmp_path, name):
    folder = fill(tmp_path / "fruit", {"train": 10, "test": 4})
    before = FolderSource(folder).content(), counts(folder)
    for place in (folder, folder / "train", folder / "train" / CLASSES[0], folder / "test" / CLASSES[1]):
        shutil.copytree(folder / "train" / CLASSES[0], place / name)
    assert (FolderSource(folder).content(), counts(folder)) == before
    assert task(folder).classes == tuple(sorted(CLASSES))


@pytest.mark.parametrize("name", LEFT + NO_IMAGES)
def test_what_is_no_image_is_not_read(tmp_path, name):
    folder = fill(tmp_path / "fruit", {"train": 10, "test": 4})
    before = FolderSource(folder).content(), counts(folder)
    for place in (folder, folder / "train", folder / "train" / CLASSES[0], folder / "test" / CLASSES[1]):
        (place / name).write_bytes(b"something else" * 9)
    assert (FolderSource(folder).content(), counts(folder)) == before
    assert len(task(folder).read(8).test) == 8


@pytest.mark.parametrize("name", ["a.PNG", "a.Jpg", "b.jpeg", "c", "d.001", "e.tif", "f.webp", "g.bmp", "h.gif"])
def test_images_of_any_name_are_read(tmp_path, name):
    folder = fill(tmp_path / "fruit", {"train": 10, "test": 4})
    kinds = {"tif": "TIFF", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "Jpg": "JPEG", "jpeg": "JPEG"}
    Image.new("RGB", (9, 9), "red").save(folder / "test" / CLASSES[0] / name, kinds.get(name[2:], "PNG"))
    assert counts(folder)["test"] == 9 and len(task(folder).read(8).test) == 9


def test_images_in_folders_of_a_class_are_of_that_class(tmp_path):
    folder = fill(tmp_path / "fruit", {"train": 10})
    shutil.copytree(folder / "train" / CLASSES[0], folder / "train" / CLASSES[0] / "more" / "still more")
    labels = Counter(example.label for found in FolderSource(folder).parts().values() for example in found)
    assert labels == {sorted(CLASSES).index(CLASSES[0]): 20, sorted(CLASSES).index(CLASSES[1]): 10}


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_image_in_no_class_is_refused(tmp_path, part):
    folder = fill(tmp_path / "fruit", {"train": 10, "test": 4})
    Image.new("RGB", (9, 9)).save(folder / part / "0.png")
    with pytest.raises(UserError, match=r"0\.png lies in no folder of a class: move it"):
        FolderSource(folder)


# --- how parts are called -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation", "Val", "VALIDATION", "Dev"])
@pytest.mark.parametrize("train", ["train", "Train", "training"])
def test_the_usual_names_of_parts_are_known(tmp_path, train, name):
    folder = fill(tmp_path / "fruit", {train: 10, name: 3, "Testing": 4})
    assert counts(folder) == {"train": 20, "dev": 6, "test": 8}
    assert {Path(example.where).parts[-3] for example in FolderSource(folder).parts()["dev"]} == {name}


@pytest.mark.parametrize("name", ["masks", "labels", "unlabeled", "holdout", "train2", "dev-test", "fold 1", "cat"])
def test_an_unknown_folder_beside_train_is_named(tmp_path, name):
    folder = fill(tmp_path / "fruit", {"train": 10, name: 3})
    with pytest.raises(UserError, match=rf"fruit/{name} is no part of a task: expected .*validation.*Move it"):
        FolderSource(folder)


def test_two_folders_for_a_part_are_refused(tmp_path):
    folder = fill(tmp_path / "fruit", {"train": 10, "val": 3, "dev": 3})
    with pytest.raises(UserError, match=r"val and .*dev are both dev"):
        FolderSource(folder)


@pytest.mark.parametrize("train", [None, "file", "Empty"])
def test_a_folder_without_train_is_refused(tmp_path, train):
    folder = fill(tmp_path / "fruit", {"test": 3})
    if train == "file":
        (folder / "train").write_text("")
    elif train:
        (folder / "train").mkdir()
    with pytest.raises(UserError, match=r"has no folder train|is a class that .*train has not"):
        FolderSource(folder)


def test_a_part_or_class_without_images_is_said(tmp_path):
    folder = fill(tmp_path / "fruit", {"train": 10})
    for name in CLASSES:
        (folder / "test" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="no image in its part 'test'"):
        task(folder).read(8)
    (folder / "train" / "pear").mkdir()
    with pytest.raises(UserError, match="no training image of class 'pear'"):
        task(folder).read(8)


# --- links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linked", ["class", "images", "part", "task", "below a class"])
def test_links_are_followed(tmp_path, linked):
    real = fill(tmp_path / "real", {"train": 10, "test": 4})
    expected = FolderSource(real).content(), counts(real)
    folder = tmp_path / "fruit"
    if linked == "task":
        folder.symlink_to(real)
    elif linked == "part":
        folder.mkdir()
        for part in ("train", "test"):
            (folder / part).symlink_to(real / part)
    else:
        for place in [path for path in real.glob("*/*") if path.is_dir()]:
            target = folder / place.relative_to(real)
            target.parent.mkdir(parents=True, exist_ok=True)
            if linked == "class":
                target.symlink_to(place)
            elif linked == "images":
                target.mkdir()
                for file in place.iterdir():
                    (target / file.name).symlink_to(file)
            else:
                target.mkdir()
                (target / "more").symlink_to(place)
    found = FolderSource(folder)
    assert counts(folder) == expected[1] and len(task(folder).read(8).test) == 8
    assert linked == "below a class" or found.content() == expected[0]


def test_a_link_in_a_circle_is_named(tmp_path):
    folder = fill(tmp_path / "fruit", {"train": 10})
    link = folder / "train" / CLASSES[0] / "again"
    for target in (folder, folder / "train", folder / "train" / CLASSES[0]):
        link.symlink_to(target)
        with pytest.raises(UserError, match=r"again is a link to a folder that it lies in: remove it"):
            FolderSource(folder).content()
        link.unlink()
    link.symlink_to(folder / "train" / CLASSES[1])
    (folder / "train" / CLASSES[1] / "and back").symlink_to(folder / "train" / CLASSES[0])
    with pytest.raises(UserError, match="is a link to a folder that it lies in"):
        FolderSource(folder).content()


@pytest.mark.parametrize("place", ["dev", f"train/{CLASSES[0]}/99.png", "train/pear", f"train/{CLASSES[0]}/more"])
def test_a_link_to_nothing_is_named(tmp_path, place):
    folder = fill(tmp_path / "fruit", {"train": 10})
    (folder / place).symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"{Path(place).name} is a link to nothing: restore"):
        FolderSource(folder).content()


# --- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        [str(number) for number in range(11)],
        [f"class {number}" for number in range(8, 12)],
        ["a2b10", "a2b9", "a10b1"],
        ["01", "1", "2"],
        ["Übung", "zebra", "Äpfel"],
    ],
)
def test_classes_are_in_the_order_of_their_numbers_and_named(tmp_path, names):
    for place, name in enumerate(names):
        (tmp_path / "my fruit" / "train" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (9, 9), 20 * place).save(tmp_path / "my fruit" / "train" / name / f"{number}.png")
    file = stream_file(tmp_path, 'name: a\ntasks: [{name: fruit, source: "folder:my fruit", year: 2020}]')
    (found,) = load_stream(file).tasks
    expected = names
    if names[0].startswith("a2"):
        expected = ["a2b9", "a2b10", "a10b1"]
    elif names[0] == "Übung":
        expected = ["zebra", "Äpfel", "Übung"]
    assert found.classes == tuple(expected) and found.num_classes == len(names)
    for split in vars(found.read(12)).values():
        assert split.images[:, 0, 0, 0].tolist() == [20 * names.index(expected[n]) for n in split.labels]


def test_names_that_are_no_utf_8_work_and_are_shown(tmp_path, monkeypatch):
    folder = fill(tmp_path / "fruit", {"train": 10})
    for label in CLASSES:
        place = os.fsencode(folder / "train" / label)
        os.rename(place + b"/0.png", place + b"/caf\xe9.png")
    os.rename(os.fsencode(folder / "train" / CLASSES[0]), os.fsencode(folder / "train") + b"/pomme \xe9\xff")
    monkeypatch.setattr(ingest, "SETTLED", -1)  # so that hashes are kept at once, under these names
    found = task(folder)
    assert found.classes == ("pomme \\xe9\\xff", CLASSES[1])
    assert len(found.read(8).train) == 11 and task(folder).content == found.content
    wheres = [example.where for examples in FolderSource(folder).parts().values() for example in examples]
    assert sum("caf\\xe9.png" in where for where in wheres) == 2
    place = os.fsencode(folder / "train" / CLASSES[1])
    for number in range(5):
        Path(os.fsdecode(place + b"/\xff%d.png" % number)).write_bytes(b"")
    monkeypatch.setenv("PROGRESS_FILE", str(tmp_path / "progress"))
    task(folder).read(8)
    assert "\\xff" in (tmp_path / "progress").read_text()


# --- the cut --------------------------------------------------------------------------------------------


OF_FOLDERS = [SHARES[()], SHARES[("test",)], SHARES[("dev",)], SHARES[("dev", "test")]]


@pytest.mark.parametrize("shares", OF_FOLDERS, ids=["none", "test", "dev", "both"])
@pytest.mark.parametrize("each", [[5] * 40, [2] * 30, [1] * 30 + [9] * 3, [1, 400], [50, 50], [7, 11, 3], [4, 1]])
def test_a_cut_is_even_over_the_whole_and_in_each_class(shares, each):
    labels = np.repeat(np.arange(len(each)), each)
    parts = by_class(labels, shares)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    found = {part: np.bincount(labels[places], minlength=len(each)) for part, places in parts.items()}
    assert (found["train"] >= 1).all()
    assert all(found[part].sum() >= 1 for part in shares if part != "dev_test")
    for part, share in shares.items():
        if len(labels) >= 60 and len(each) < share * len(labels):
            assert abs(found[part].sum() - share * len(labels)) < 1
            assert np.abs(found[part] - share * np.array(each)).max() <= 2.5
    again = by_class(labels, shares)
    assert all(np.array_equal(parts[part], again[part]) for part in parts)


def test_forty_classes_of_five_images_make_a_task(tmp_path):
    folder = fill(tmp_path / "fruit", {"train": 5}, [f"{number}" for number in range(40)])
    assert counts(folder) == {"train": 112, "dev": 24, "dev_test": 24, "test": 40}
    assert [len(split) for split in vars(task(folder).read(8)).values()] == [112, 24, 40]


@pytest.mark.parametrize(("given", "least"), [({}, 4), ({"test": 1}, 3), ({"val": 1}, 3), ({"val": 1, "test": 1}, 2)])
def test_the_smallest_task_that_works_is_said(tmp_path, given, least):
    folder = fill(tmp_path / "fruit", {"train": 1, **given})
    for number in range(least - 2):
        if least > 2:
            with pytest.raises(UserError, match=rf"has {2 + number} images of 2 classes: expected at least {least}"):
                task(folder).read(8)
        Image.new("RGB", (9, 9)).save(folder / "train" / CLASSES[number % 2] / f"more {number}.png")
    assert all(len(split) >= 1 for split in vars(task(folder).read(8)).values())


def test_shares_of_folders_are_the_benchmark_s_where_it_has_them():
    assert SHARES[()] == {"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.20}
    assert SHARES["test",] == {"train": 0.70, "dev": 0.15, "dev_test": 0.15}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in SHARES.values())


# --- formats that are not read --------------------------------------------------------------------------

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0" + b"\0" * 99


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("0.heic", HEIC, "HEIC is no format that Pillow reads: convert it to JPEG or PNG"),
        ("0.HEIC", HEIC, "HEIC is no format"),
        ("0.heif", HEIC, "HEIF is no format"),
        ("0.jpg", HEIC, "HEIC is no format"),
        ("0.svg", b"<svg></svg>", "SVG is no format"),
        ("0.jxl", b"\xff\x0a" + b"\0" * 40, "JXL is no format"),
        ("0.nef", b"II*\0\x08\0\0\0\0\0\0\0", "NEF is no format"),
        ("0.png", b"no image at all", "this is no format"),
        ("0.png", b"", "the file is empty"),
        ("0.heic", b"", "the file is empty"),
    ],
)
def test_a_format_that_is_not_read_is_said(tmp_path, name, content, said):
    folder = fill(tmp_path / "fruit", {"train": 10})
    for part in folder.glob("train/*"):
        for number in range(8):
            (part / f"{number}{name[1:]}").write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        task(folder).read(8)
    assert re.match(r"1\d of \d\d images of the task 'fruit' cannot be read", str(error.value))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
