"""Faces, each class a person."""

from collections import Counter
from pathlib import Path

import scipy.io

from lib.streams.cuts import SHARES, by_last_of_class
from tools.datasets.prepare import Parts, cut, dataset, drawn, find, one, pictures, reading

FEWEST = 5  # images of a person that the benchmark keeps


@dataset("LFW", source="baileyfriend/Gender-Image-Classifier@9aaaad06", official=5_985, differs="Grey, not colour.")
def lfw(source: Path) -> Parts:
    """lfw/PERSON/PERSON_NUMBER.jpg; people of five images and more."""
    found = pictures(find(source, "**/lfw/*/*.jpg"))
    counts = Counter(picture.label for picture in found)
    found = [picture for picture in found if counts[picture.label] >= FEWEST]
    numbers = {person: number for number, person in enumerate(sorted(counts))}

    def last_of_person(labels: list[str], shares: dict[str, float]) -> dict:
        return by_last_of_class([numbers[label] for label in labels], shares)

    return cut(found, SHARES[()], last_of_person)


@dataset(
    "Extended YaleB",
    source="Uranium2/recognition@55008b5f",
    official=16_128,
    differs="The cropped, frontal faces of 38 people, 2,414 images, cut at random; the benchmark has 28 "
    "people in nine poses, and other poses for test.",
)
def extended_yaleb(source: Path) -> Parts:
    """CroppedYale/yaleBPERSON/*.pgm, without those under ambient light alone."""
    files = find(source, "**/CroppedYale/yaleB*/*.pgm")
    return cut(pictures(file for file in files if "Ambient" not in file.stem))


@dataset(
    "Olivetti Face Dataset",
    source="sjgershm/DBM",
    official=410,
    differs="400 images of 40 people at 64 px; the benchmark's copy has 41 people.",
)
def olivetti(source: Path) -> Parts:
    """olivettifaces.mat: faces (4096, 400), each column an image, ten of a person after one another."""
    file = one(source, "**/olivettifaces.mat")
    with reading(file):
        columns = scipy.io.loadmat(file)["faces"].astype("uint8")
        images = columns.T.reshape(-1, 64, 64).transpose(0, 2, 1)
    return cut(drawn(images, [f"{number // 10 + 1:02d}" for number in range(len(images))], file))
