"""Digits and letters."""

import gzip
import struct
from pathlib import Path

import numpy as np
import scipy.ndimage
from PIL import Image

from lib.common.errors import UserError
from lib.streams.cuts import SHARES, by_count
from tools.datasets.prepare import Parts, Picture, cut, dataset, distinct, drawn, find, one, package, pictures, reading

_WITH_TEST = SHARES[("test",)]


@dataset("MNIST", source="rasbt/mnist-pngs", official=70_000)
def mnist(source: Path) -> Parts:
    """{train,test}/DIGIT/NUMBER.png, the number being the image's place in the original file."""
    return cut(_mnist(source, "train"), _WITH_TEST, by_count) | {"test": _mnist(source, "test")}


def _mnist(source: Path, part: str) -> list[Picture]:
    return pictures(sorted(find(source, f"{part}/[0-9]/*.png"), key=lambda file: int(file.stem)))


@dataset(
    "MNIST-rot",
    source="rasbt/mnist-pngs",
    official=70_000,
    differs="Other angles, for those of the benchmark follow the order in which its parts are read.",
)
def mnist_rot(source: Path) -> Parts:
    """MNIST's training images rotated by a whole number of degrees; the test images as they are."""
    state = np.random.RandomState(99_999)

    def rotated(picture: Picture, angle: int) -> Picture:
        def read() -> np.ndarray:
            return scipy.ndimage.rotate(_pixels(picture), angle, reshape=False)

        return Picture(picture.where, picture.label, read)

    train = [rotated(picture, state.randint(0, 360)) for picture in _mnist(source, "train")]
    return cut(train, _WITH_TEST) | {"test": _mnist(source, "test")}


def _pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(picture.where).convert("L"))


@dataset("Fashion MNIST", source="Debian's package dataset-fashion-mnist", official=70_000)
def fashion_mnist(source: Path) -> Parts:
    """{train,t10k}-{images-idx3,labels-idx1}-ubyte, with .gz or without."""
    return cut(_idx(source, "train"), _WITH_TEST, by_count) | {"test": _idx(source, "t10k")}


@dataset(
    "NotMNIST",
    source="davidflanagan/notMNIST-to-MNIST",
    official=18_724,
    differs="The test part of this copy alone, without 196 images that repeat another.",
)
def not_mnist(source: Path) -> Parts:
    """t10k-{images-idx3,labels-idx1}-ubyte, with .gz or without."""
    return cut(distinct(_idx(source, "t10k")))


def _idx(source: Path, part: str) -> list[Picture]:
    file = one(source, f"**/{part}-images-idx3-ubyte*")
    images, labels = _array(file), _array(one(source, f"**/{part}-labels-idx1-ubyte*"))
    if images.ndim != 3 or len(images) != len(labels):
        raise UserError(f"{file} has not one image per label: get it anew.")
    return drawn(images, labels, file)


def _array(file: Path) -> np.ndarray:
    """An array of bytes from an IDX file: two zeros, its type, the dimensions' number and sizes, values."""
    with reading(file), (gzip.open if file.suffix == ".gz" else open)(file, "rb") as opened:
        content = opened.read()
        zeros, kind, dimensions = struct.unpack(">HBB", content[:4])
        if zeros or kind != 8:
            raise ValueError("no IDX file of bytes")
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


@dataset("USPS", source="niuers/Learning-From-Data-A-Short-Course", official=9_298)
def usps(source: Path) -> Parts:
    """usps.h5: train and test, each with data (N, 256) from 0 to 1 and target (N,)."""
    h5py, file = package("h5py"), one(source, "**/usps.h5")

    def read(part: str) -> list[Picture]:
        with reading(file), h5py.File(file) as opened:
            values, labels = opened[part]["data"][()], opened[part]["target"][()]
            return drawn((255 * values.reshape(-1, 16, 16)).round().astype(np.uint8), labels, file)

    return cut(read("train"), _WITH_TEST) | {"test": read("test")}


@dataset(
    "MNIST-m",
    source="ShichengChen/Domain-Adversarial-Training-of-Neural-Networks",
    official=68_002,
    differs="Each image has its own label; the benchmark's tool gives 9,001 training images the label of "
    "the test image of the same file name.",
)
def mnist_m(source: Path) -> Parts:
    """mnist_m_{train,test}/NUMBER.png and mnist_m_{train,test}_labels.txt, merged as the benchmark does."""
    found = []
    for part in ("train", "test"):
        file = one(source, f"**/mnist_m_{part}_labels.txt")
        with reading(file):
            labels = dict(line.split() for line in file.read_text().splitlines() if line.strip())
            images = find(file.parent, f"mnist_m_{part}/*.png")
            found += pictures(images, lambda image, labels=labels: str(int(labels[image.name])))
    return cut(distinct(found))


@dataset("Semeion", source="claytonkb/basic_nn", official=1_593)
def semeion(source: Path) -> Parts:
    """semeion.data: on each line 256 values of 0 or 1, then a 1 at the digit's place among ten."""
    file = one(source, "**/semeion.data")
    with reading(file):
        table = np.loadtxt(file)
        images = (255 * table[:, :256].reshape(-1, 16, 16)).astype(np.uint8)
        labels = table[:, 256:266].argmax(axis=1)
    return cut(drawn(images, labels, file))


@dataset(
    "Chars74K",
    source="rfstdh/100image",
    official=12_503,
    differs="Photographed characters alone, of 36 of 62 classes, at 100 px, 7 that repeat another left out; "
    "the benchmark has those written by hand and by fonts too.",
)
def chars74k(source: Path) -> Parts:
    """English/Img/{GoodImg,BadImag}/Bmp/SampleCLASS/*.png"""
    files = find(source, "**/English/Img/GoodImg/Bmp/Sample*/*.png", "**/English/Img/BadImag/Bmp/Sample*/*.png")
    return cut(distinct(pictures(files)))
