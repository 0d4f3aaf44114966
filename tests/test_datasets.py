"""tools/datasets: copies of data sets become tasks, in the benchmark's parts; damage is said."""

import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.common.errors import UserError
from lib.common.paths import ROOT
from lib.streams import load_stream
from lib.streams.archive import ArchiveSource
from tools.datasets import prepare as preparing
from tools.datasets.prepare import archive_of, cut, distinct, pictures, prepare

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("INGEST_CACHE", str(tmp_path / "cache"))


def pixels(side: int = 12, channels: int = 3) -> np.ndarray:
    shape = (side, side, channels) if channels > 1 else (side, side)
    return RNG.integers(0, 256, shape, np.uint8)


def image(file: Path, channels: int = 3) -> np.ndarray:
    """Write a random image in the format that the name asks for; return its pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = pixels(channels=channels)
    Image.fromarray(values).save(file)
    return values


def small(name: str, monkeypatch, count: int) -> None:
    """Take a copy of `count` images for the whole of a data set."""
    known = {name: {"parts": {"train": count}, "sha256": ""}}
    monkeypatch.setattr(preparing, "copies", lambda: known)


def read_back(name: str) -> dict[str, list[tuple[str, bytes]]]:
    """What the archive holds: part -> class and content of each image."""
    found: dict[str, list] = {}
    with zipfile.ZipFile(archive_of(name)) as archive:
        for entry in archive.namelist():
            if entry != "about.json":
                part, label, _ = entry.split("/")
                found.setdefault(part, []).append((label, archive.read(entry)))
    return found


def every(found: dict[str, list]) -> Counter:
    return Counter(one for part in found.values() for one in part)


# --- parts ------------------------------------------------------------------------------------------


def test_official_test_images_stay_and_the_rest_is_cut_as_the_benchmark_cuts(tmp_path, monkeypatch):
    written = {"train": Counter(), "test": Counter()}
    for part, count in (("train", 20), ("test", 6)):
        for number in range(count):
            file = tmp_path / f"copy/{part}/{number % 2}/{number}.png"
            image(file, channels=1)
            written[part][str(number % 2), file.read_bytes()] += 1
    small("MNIST", monkeypatch, 26)
    prepare("MNIST", tmp_path / "copy")
    found = read_back("MNIST")
    assert {part: len(images) for part, images in found.items()} == {
        "train": 14,
        "dev": 3,
        "dev_test": 3,
        "test": 6,
    }
    assert Counter(found.pop("test")) == written["test"] and every(found) == written["train"]


def test_the_archive_reads_as_a_task_with_the_images_it_was_made_of(tmp_path, monkeypatch):
    truth = {}
    for kind in ("pos", "neg"):
        for number in range(20):
            values = image(tmp_path / f"copy/{kind}/{kind}-{number}.pgm", channels=1)
            truth[values.tobytes()] = ["neg", "pos"].index(kind)
        image(tmp_path / f"copy/{kind}/{kind}-0.jpeg")  # of no use: the copy's own thumbnails
    small("UIUC cars", monkeypatch, 40)
    prepare("UIUC cars", tmp_path / "copy")
    stream = load_stream("nevis/short", missing="skip")
    (task,) = stream.tasks
    assert (task.name, task.year, task.num_classes, len(stream.left_out)) == ("UIUC cars", 2006, 2, 28)
    data = task.read(12)
    seen = {}
    for part in vars(data).values():
        for values, label in zip(part.images.numpy(), part.labels.tolist(), strict=True):
            seen[values[..., 0].tobytes()] = label
    unread = read_back("UIUC cars")["dev_test"]
    assert seen.items() <= truth.items() and len(truth) - len(seen) == len(unread) > 0
    assert task.classes == ("neg", "pos")
    assert task.content == load_stream("nevis/short", missing="skip").tasks[0].content


def test_content_follows_the_images_and_not_where_they_lie(tmp_path, monkeypatch):
    contents = []
    for copy, change in (("a", None), ("b", None), ("c", 3)):
        rng = np.random.default_rng(0)
        for number in range(20):
            values = rng.integers(0, 256, (8, 8), np.uint8)
            values[0, 0] ^= number == change
            file = tmp_path / copy / ("pos" if number % 2 else "neg") / f"{number}.pgm"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
        monkeypatch.setenv("DATASETS", str(tmp_path / f"made of {copy}"))
        small("UIUC cars", monkeypatch, 20)
        prepare("UIUC cars", tmp_path / copy)
        contents.append(
            (ArchiveSource(archive_of("UIUC cars")).content(), archive_of("UIUC cars").read_bytes())
        )
    assert contents[0] == contents[1] and contents[0][0] != contents[2][0]


def test_pictures_that_repeat_are_left_out_once(tmp_path):
    for number in range(4):
        image(tmp_path / f"a/{number}.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/9.png").write_bytes((tmp_path / "a/2.png").read_bytes())
    found = pictures(sorted(tmp_path.glob("*/*.png")))
    assert [Path(kept.where).name for kept in distinct(found)] == ["0.png", "1.png", "2.png", "3.png"]


def test_a_cut_loses_no_picture_and_repeats_none(tmp_path):
    for number in range(200):
        image(tmp_path / f"{number % 3}/{number}.png")
    found = pictures(sorted(tmp_path.glob("*/*.png")))
    parts = cut(found)
    assert sorted(p.where for part in parts.values() for p in part) == sorted(p.where for p in found)
    sizes = {part: len(chosen) / 200 for part, chosen in parts.items()}
    assert sizes == pytest.approx({"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.2}, abs=0.08)


# --- what is refused --------------------------------------------------------------------------------


def test_what_cannot_be_prepared_is_said_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"Unknown data set 'Mnist': expected one of .*MNIST"):
        prepare("Mnist", tmp_path)
    with pytest.raises(UserError, match=r"nowhere is no folder"):
        prepare("MNIST", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no file train/.*--list"):
        prepare("MNIST", tmp_path)
    image(tmp_path / "train/0/0.png")
    image(tmp_path / "test/0/0.png")
    with pytest.raises(UserError, match=r"The copy of MNIST has 2 images: expected 70,000\. It is not whole"):
        prepare("MNIST", tmp_path)
    assert not archive_of("MNIST").exists()


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_damaged_image_is_named_and_nothing_is_left_behind(tmp_path, monkeypatch, damage):
    for number in range(20):
        image(tmp_path / f"copy/pos/{number}.pgm", channels=1)
    broken = tmp_path / "copy/pos/7.pgm"
    broken.write_bytes(damage(broken.read_bytes()))
    small("UIUC cars", monkeypatch, 20)
    with pytest.raises(
        UserError, match=r"7\.pgm cannot be read .*: it is damaged, or not what its name says"
    ):
        prepare("UIUC cars", tmp_path / "copy")
    assert list(archive_of("UIUC cars").parent.iterdir()) == []


def test_one_that_is_there_is_not_made_again_and_other_images_are_remarked(tmp_path, monkeypatch):
    for number in range(20):
        image(tmp_path / f"copy/pos/{number}.pgm", channels=1)
    small("UIUC cars", monkeypatch, 20)
    first = prepare("UIUC cars", tmp_path / "copy")
    assert "train" in first and "not the images of the public copy" in first
    before = archive_of("UIUC cars").stat()
    assert "already" in prepare("UIUC cars", tmp_path / "copy")
    assert archive_of("UIUC cars").stat() == before


def test_a_killed_preparation_leaves_no_archive_and_is_done_again(tmp_path):
    for number in range(1050):
        image(tmp_path / f"copy/{'pos' if number % 2 else 'neg'}/{number}.pgm", channels=1)
    folder = archive_of("UIUC cars").parent
    command = [sys.executable, "-m", "tools.datasets", str(tmp_path / "copy"), "UIUC cars"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not any(folder.glob(".*")) and run.poll() is None:
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not archive_of("UIUC cars").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "2 classes" in again.stdout and sum(map(len, read_back("UIUC cars").values())) == 1050
