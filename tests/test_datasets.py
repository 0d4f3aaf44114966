"""tools/datasets: copies of data sets become tasks, in the benchmark's parts; damage is said."""

import gzip
import io
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from lib.common.errors import UserError
from lib.common.paths import ROOT
from lib.streams import load_stream
from lib.streams.folder import ArchiveSource
from tools.datasets import __main__, objects, table
from tools.datasets import prepare as preparing
from tools.datasets.__main__ import listing
from tools.datasets.prepare import RECIPES, archive_of, copies, cut, distinct, pictures, prepare

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
    assert {part: len(images) for part, images in found.items()} == {"train": 14, "dev": 3, "dev_test": 3, "test": 6}
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
    for part in (data.train, data.dev, data.test):
        for values, label in zip(part.images.numpy(), part.labels.tolist(), strict=True):
            seen[values[..., 0].tobytes()] = label
    unread = {pixels_of(content) for _, content in read_back("UIUC cars")["dev_test"]}
    assert seen == {pixels: label for pixels, label in truth.items() if pixels not in unread}
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
        contents.append((ArchiveSource(archive_of("UIUC cars")).content(), archive_of("UIUC cars").read_bytes()))
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


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_a_damaged_image_is_named_and_nothing_is_left_behind(tmp_path, monkeypatch, damage):
    for number in range(20):
        image(tmp_path / f"copy/pos/{number}.pgm", channels=1)
    broken = tmp_path / "copy/pos/7.pgm"
    broken.write_bytes(damage(broken.read_bytes()))
    small("UIUC cars", monkeypatch, 20)
    with pytest.raises(UserError, match=r"7\.pgm cannot be read .*: it is damaged, or not what its name says"):
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


# --- the layout of each copy ------------------------------------------------------------------------
# Each function below writes a small copy of a data set and returns, beside its name, what must come of it:
# class and pixels of the images of each official part, "all" where the benchmark cuts everything anew.

Truth = dict[str, list[tuple[str, bytes]]]


def files(folder: Path, names: dict[str, str], channels: int = 3) -> list[tuple[str, bytes]]:
    """Write an image per name, whose class is the value; return classes and pixels."""
    for name in names:
        image(folder / name, channels)
    return [(label, pixels_of((folder / name).read_bytes())) for name, label in names.items()]


def pixels_of(content: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(content))).tobytes()


def class_folders(folder: Path, suffix: str, count: int = 20, channels: int = 3) -> list[tuple[str, bytes]]:
    names = {f"{'abc'[number % 3]}/{number}{suffix}": "abc"[number % 3] for number in range(count)}
    return files(folder, names, channels)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def digits(count: int, side: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, bytes]]]:
    values, labels = RNG.integers(0, 256, (count, side, side), np.uint8), RNG.integers(0, 10, count, np.uint8)
    return (values, labels, [(str(label), image.tobytes()) for image, label in zip(values, labels, strict=True)])


def cifar10(copy: Path) -> tuple[str, Truth]:
    return "CIFAR 10", {part: class_folders(copy / part, ".jpg") for part in ("train", "test")}


def cifar100(copy: Path) -> tuple[str, Truth]:
    return "CIFAR 100", {part: class_folders(copy / part, ".png") for part in ("train", "test")}


def fashion_mnist(copy: Path) -> tuple[str, Truth]:
    truth = {}
    for name, part, count in (("train", "train", 40), ("t10k", "test", 12)):
        values, labels, truth[part] = digits(count, 28)
        (copy / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(values)))
        (copy / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return "Fashion MNIST", truth


def not_mnist(copy: Path) -> tuple[str, Truth]:
    values, labels, truth = digits(40, 28)
    values[7], labels[7] = values[3], labels[3]  # one that repeats another
    (copy / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(values)))
    (copy / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return "NotMNIST", {"all": truth[:7] + truth[8:]}


def usps(copy: Path) -> tuple[str, Truth]:
    h5py = pytest.importorskip("h5py")
    truth = {}
    (copy / "data").mkdir()
    with h5py.File(copy / "data/usps.h5", "w") as file:
        for part, count in (("train", 40), ("test", 12)):
            values, labels, truth[part] = digits(count, 16)
            file[f"{part}/data"] = values.reshape(count, -1).astype(np.float32) / 255
            file[f"{part}/target"] = labels.astype(np.int32)
    return "USPS", truth


def mnist_m(copy: Path) -> tuple[str, Truth]:
    truth = []
    for part, count in (("train", 30), ("test", 10)):
        names = {f"mnist_m_{part}/{number:08d}.png": str((number + len(part)) % 10) for number in range(count)}
        truth += files(copy / "mnist_m", names)  # names of train and test are the same, their classes are not
        lines = [f"{Path(name).name} {label}\n" for name, label in names.items()]
        (copy / f"mnist_m/mnist_m_{part}_labels.txt").write_text("".join(lines))
    return "MNIST-m", {"all": truth}


def semeion(copy: Path) -> tuple[str, Truth]:
    bits, labels = RNG.integers(0, 2, (40, 256)), RNG.integers(0, 10, 40)
    rows = np.hstack([bits, np.eye(10, dtype=int)[labels]])
    (copy / "semeion.data").write_text("".join(" ".join(map("{:.4f}".format, row)) + " \n" for row in rows))
    truth = zip(map(str, labels), (255 * bits).astype(np.uint8), strict=True)
    return "Semeion", {"all": [(label, values.tobytes()) for label, values in truth]}


def chars74k(copy: Path) -> tuple[str, Truth]:
    kept = {
        f"English/Img/{kind}/Bmp/Sample{number % 4:03d}/{number}.png": f"Sample{number % 4:03d}"
        for kind in ("GoodImg", "BadImag")
        for number in range(20)
    }
    image(copy / "RotatedEnglish/Img/GoodImg/Bmp/Sample001/1.png")
    return "Chars74K", {"all": files(copy, kept)}


def extended_yaleb(copy: Path) -> tuple[str, Truth]:
    names = {f"CroppedYale/yaleB0{n % 3}/yaleB0{n % 3}_P00A+{n:03d}.pgm": f"yaleB0{n % 3}" for n in range(30)}
    image(copy / "CroppedYale/yaleB00/yaleB00_P00_Ambient.pgm", channels=1)
    (copy / "CroppedYale/yaleB00/yaleB00_P00A-035E+15.pgm.bad").touch()
    return "Extended YaleB", {"all": files(copy, names, channels=1)}


def olivetti(copy: Path) -> tuple[str, Truth]:
    images = RNG.integers(0, 256, (30, 64, 64), np.uint8)
    columns = np.stack([values.T.flatten() for values in images], axis=1).astype(np.float64)
    scipy.io.savemat(copy / "olivettifaces.mat", {"faces": columns, "p": 1})
    truth = [(f"{number // 10 + 1:02d}", values.tobytes()) for number, values in enumerate(images)]
    return "Olivetti Face Dataset", {"all": truth}


def scenes15(copy: Path) -> tuple[str, Truth]:
    truth = class_folders(copy / "data/train", ".jpg") + class_folders(copy / "data/test", ".jpg")
    (copy / "data/train/c/again.jpg").write_bytes((copy / "data/train/a/0.jpg").read_bytes())
    (copy / "data/.DS_Store").touch()
    return "15 Scenes", {"all": truth}


def isic(copy: Path) -> tuple[str, Truth]:
    truth, kinds = {}, ["nevus", "melanoma", "seborrheic keratosis"]
    for folder, part, count in (("Training", "train", 30), ("Validation", "dev_test", 9), ("Test_v2", "test", 12)):
        names = {f"ISIC-2017_{folder}_Data/ISIC_{n:07d}.jpg": kinds[n * n % 3] for n in range(count)}
        truth[part] = files(copy, names)
        rows = [
            [Path(name).stem if part == "test" else number, kind == kinds[1], kind == kinds[2]]
            for number, (name, kind) in enumerate(names.items(), 1)
        ]
        text = "image_id,melanoma,seborrheic_keratosis\n"
        text += "".join(f"{name},{float(one)},{float(other)}\n" for name, one, other in rows) + ",,\n"
        (copy / f"ISIC-2017_{folder}_Part3_GroundTruth.csv").write_text(text)
    return "ISBI-ISIC 2017 melanoma classification challenge", truth


def dtd(copy: Path) -> tuple[str, Truth]:
    return "DTD", {"all": class_folders(copy / "images", ".jpg", 60)}


def landsat(copy: Path) -> tuple[str, Truth]:
    truth = {}
    (copy / "data").mkdir()
    for suffix, part, count in (("trn", "train", 40), ("tst", "test", 12)):
        values, labels = RNG.integers(50, 200, (count, 9, 4), np.uint8), RNG.integers(1, 8, count)
        lines = [" ".join(map(str, [*v.flatten(), label])) for v, label in zip(values, labels, strict=True)]
        if part == "train":
            lines.insert(0, "\t".join(map(str, range(1, 38))))
        (copy / f"data/sat.{suffix}").write_text("\n".join(lines) + "\n")
        truth[part] = [(str(label), v[:, :3].tobytes()) for v, label in zip(values, labels, strict=True)]
    return "LandSat UCI repo", truth


def pacs(copy: Path) -> tuple[str, Truth]:
    train = class_folders(copy / "PACS/photo", ".png") + class_folders(copy / "PACS/cartoon", ".png")
    train += class_folders(copy / "PACS/art_painting", ".jpg")
    test = class_folders(copy / "PACS/sketch", ".png")
    return "PACS", {"train and dev": train, "test and dev_test": test}


def stanford_cars(copy: Path) -> tuple[str, Truth]:
    names = {f"cars_train/{number}.jpg": f"{number * number % 7 + 1:03d}" for number in range(1, 41)}
    (copy / "train_perfect_preds.txt").parent.mkdir(exist_ok=True)
    (copy / "train_perfect_preds.txt").write_text("".join(f"{int(label)}\n" for label in names.values()))
    return "Stanford Cars", {"all": files(copy, names)}


def gtsrb(copy: Path) -> tuple[str, Truth]:
    train = {f"GTSRB/Final_Training/Images/{n % 3:05d}/{n:05d}.ppm": f"{n % 3:05d}" for n in range(40)}
    test = {f"GTSRB/Final_Test/Images/{n:05d}.ppm": f"{n * n % 3:05d}" for n in range(12)}
    truth = {"train": files(copy, train), "test": files(copy, test)}
    rows = [f"{Path(name).name};53;54;6;5;48;49;{int(label)}\n" for name, label in test.items()]
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    (copy / "GTSRB/Final_Test/GT-final_test.csv").write_text(header + "".join(rows))
    return "German Traffic Sign Recognition Benchmark", truth


def coil20(copy: Path) -> tuple[str, Truth]:
    names = {f"dataset/obj{n % 3 + 9}__{n}.png": f"obj{n % 3 + 9}" for n in range(40)}
    return "COIL 20", {"all": files(copy, names, channels=1)}


def mpeg7(copy: Path) -> tuple[str, Truth]:
    names = {f"shapes/{'apple' if n % 2 else 'device1'}-{n}.png": ["device1", "apple"][n % 2] for n in range(40)}
    return "MPEG-7", {"all": files(copy, names, channels=1)}


def mpeg7_packed(copy: Path) -> tuple[str, Truth]:
    pytest.importorskip("libarchive")
    name, truth = mpeg7(copy)
    with zipfile.ZipFile(copy / "mpeg7shapeB-PNG.rar", "w") as archive:  # libarchive goes by what a file holds
        for file in copy.glob("shapes/*"):
            archive.write(file, file.name)
    shutil.rmtree(copy / "shapes")
    return name, truth


COPIES = [cifar10, cifar100, fashion_mnist, not_mnist, usps, mnist_m, semeion, chars74k, extended_yaleb]
COPIES += [olivetti, scenes15, isic, dtd, landsat, pacs, stanford_cars, gtsrb, coil20, mpeg7, mpeg7_packed]
# official part -> the parts that the benchmark cuts it into
CUT = {
    "all": ("train", "dev", "dev_test", "test"),
    "train": ("train", "dev", "dev_test"),
    "train beside dev_test": ("train", "dev"),
    "train and dev": ("train", "dev"),
    "test and dev_test": ("dev_test", "test"),
}


@pytest.mark.parametrize("write", COPIES, ids=lambda write: write.__name__)
def test_each_copy_gives_its_images_and_classes_in_the_benchmark_s_parts(tmp_path, monkeypatch, write):
    (tmp_path / "copy").mkdir()
    name, truth = write(tmp_path / "copy")
    small(name, monkeypatch, sum(map(len, truth.values())))
    prepare(name, tmp_path / "copy")
    found = {
        part: [(label, pixels_of(content)) for label, content in images] for part, images in read_back(name).items()
    }
    for official, images in truth.items():
        key = "train beside dev_test" if official == "train" and "dev_test" in truth else official
        together = [image for part in CUT.get(key, (official,)) for image in found.pop(part)]
        assert Counter(together) == Counter(images)
    assert not found


def test_of_each_person_the_last_two_images_are_for_test(tmp_path, monkeypatch):
    names = {
        f"lfw/{person}/{person}_{number:04d}.jpg": person
        for person, count in (("Ann_B", 7), ("Ann_C", 4), ("Cy_D", 5))
        for number in range(1, count + 1)
    }
    files(tmp_path / "copy", names)
    small("LFW", monkeypatch, 12)
    prepare("LFW", tmp_path / "copy")
    expected = {
        "train": {("Ann_B", 1), ("Ann_B", 2), ("Ann_B", 3), ("Cy_D", 1)},
        "dev": {("Ann_B", 4), ("Cy_D", 2)},
        "dev_test": {("Ann_B", 5), ("Cy_D", 3)},
        "test": {("Ann_B", 6), ("Ann_B", 7), ("Cy_D", 4), ("Cy_D", 5)},
    }
    content = {
        part: Counter(
            (person, (tmp_path / f"copy/lfw/{person}/{person}_{number:04d}.jpg").read_bytes())
            for person, number in images
        )
        for part, images in expected.items()
    }
    assert {part: Counter(images) for part, images in read_back("LFW").items()} == content


@pytest.mark.parametrize(
    ("name", "each", "folder"),
    [("Caltech 101", 30, "101_ObjectCategories/{}"), ("Stanford Dogs", 100, "Images/n0208562{}-breed")],
)
def test_of_each_class_the_same_number_trains_and_the_rest_is_tested(tmp_path, monkeypatch, name, each, folder):
    names = {
        f"{folder.format(kind)}/{number}.jpg": Path(folder.format(kind)).name
        for kind in (0, 1)
        for number in range(each + 5 + kind)
    }
    files(tmp_path / "copy", names)
    if name == "Stanford Dogs":  # as `git hash-object` names the placeholder
        grey = tmp_path / "copy" / f"{folder.format(1)}/grey.jpg"
        image(grey)
        git = subprocess.run(["git", "hash-object", grey], capture_output=True, text=True, check=True)
        monkeypatch.setattr(objects, "PLACEHOLDER", git.stdout.strip())
    small(name, monkeypatch, len(names))
    prepare(name, tmp_path / "copy")
    found = read_back(name)
    written = Counter((label, (tmp_path / "copy" / file).read_bytes()) for file, label in names.items())
    assert every(found) == written
    learnt = Counter(label for part in ("train", "dev", "dev_test") for label, _ in found[part])
    assert set(learnt.values()) == {each} and len(learnt) == 2
    assert [len(found[part]) for part in ("train", "dev")] == [int(2 * each * 0.7), int(2 * each * 0.15)]


def test_mnist_rot_turns_training_images_alone(tmp_path, monkeypatch):
    rows, columns = np.mgrid[:28, :28]
    blob = (255 * np.exp(-((rows - 9.0) ** 2 / 8 + (columns - 15.0) ** 2 / 40))).astype(np.uint8)
    for number in range(10):
        for part in ("train", "test"):
            file = tmp_path / f"copy/{part}/{number}/{number}.png"
            file.parent.mkdir(parents=True)
            Image.fromarray(blob).save(file)
    small("MNIST-rot", monkeypatch, 20)
    prepare("MNIST-rot", tmp_path / "copy")
    found = read_back("MNIST-rot")
    assert all(pixels_of(content) == blob.tobytes() for _, content in found["test"])
    # Another library's rotation, by every degree: one of them is near each image.
    turned = [np.asarray(Image.fromarray(blob).rotate(angle, Image.Resampling.BICUBIC), float) for angle in range(360)]
    best = []
    for part in ("train", "dev", "dev_test"):
        for _, content in found.get(part, []):
            values = np.asarray(Image.open(io.BytesIO(content)), float)
            distances = [np.abs(values - other).mean() for other in turned]
            best.append(int(np.argmin(distances)))
            assert min(distances) < 1 and np.median(distances) > 5
    assert len(best) == 10 and len(set(best)) > 6


# --- the page -----------------------------------------------------------------------------------------


def test_the_page_has_the_numbers_of_the_copies():
    assert table.page() == table.PAGE.read_text()
    assert set(copies()) == set(RECIPES)
    short = table.events("nevis/short").set_index("name")
    assert len(short) == 14 and short.loc["MNIST", "years"] == "2004, 2018"
    assert (short["images"] <= short["official"]).all()
    assert short.loc["Stanford Cars", ["train", "dev", "test"]].tolist() == [4506, 988, 1645]
    assert len(table.absent("nevis/short")) == 14
    listed = listing()
    assert all(f"{name} is not here" in listed for name in RECIPES)


def test_a_further_data_set_is_one_function(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "RECIPES", dict(RECIPES))
    monkeypatch.setattr(__main__, "RECIPES", preparing.RECIPES)

    @preparing.dataset("Brodatz", source="owner/repository", official=20)
    def brodatz(source: Path) -> preparing.Parts:
        """textures/CLASS/*.png"""
        return cut(pictures(preparing.find(source, "**/textures/*/*.png")))

    assert "Brodatz is not here" in listing() and "owner/repository: all 20" in listing()
    truth = class_folders(tmp_path / "copy/textures", ".png")
    assert "3 classes" in prepare("Brodatz", tmp_path / "copy")
    assert Counter(label for label, _ in every(read_back("Brodatz"))) == Counter(label for label, _ in truth)
    assert [task.name for task in load_stream("nevis/full", missing="skip").tasks] == ["Brodatz", "Brodatz"]
