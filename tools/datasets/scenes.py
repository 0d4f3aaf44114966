"""Scenes, textures, skin and land."""

import csv
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.streams.cuts import SHARES, by_count
from tools.datasets.prepare import Parts, Picture, cut, dataset, distinct, drawn, find, one, pictures, reading


@dataset(
    "15 Scenes",
    source="lionelmessi6410/Scene-Recognition-with-Bag-of-Words",
    official=4_485,
    differs="18 images that repeat another are left out.",
)
def scenes15(source: Path) -> Parts:
    """{train,test}/CLASS/*.jpg, which the benchmark merges and cuts anew."""
    return cut(distinct(pictures(find(source, "**/train/*/*.jpg", "**/test/*/*.jpg"))))


@dataset(
    "ISBI-ISIC 2017 melanoma classification challenge",
    source="walidbousseta/image_mining, labels of soumyavishwakarma/MelanomaDetection",
    official=2_750,
    differs="At 256 px. 6 images repeat another; as in the benchmark, they stay.",
)
def isic(source: Path) -> Parts:
    """ISIC-2017_{Training,Validation,Test_v2}_Data/*.jpg; for each, ..._Part3_GroundTruth.csv beside it."""
    train = cut(_lesions(source, "Training"), SHARES[("dev_test", "test")], by_count)
    return train | {"dev_test": _lesions(source, "Validation"), "test": _lesions(source, "Test_v2")}


def _lesions(source: Path, part: str) -> list[Picture]:
    images = sorted(find(source, f"**/ISIC-2017_{part}_Data/*.jpg"))
    file = one(source, f"**/ISIC-2017_{part}_Part3_GroundTruth.csv")
    with reading(file), file.open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["image_id"]]
        kinds = [
            ("melanoma", "seborrheic keratosis", "nevus")[
                0 if float(row["melanoma"]) else 1 if float(row["seborrheic_keratosis"]) else 2
            ]
            for row in rows
        ]
    if len(rows) != len(images):
        raise UserError(f"{file} has {len(rows)} rows for {len(images)} images: get both anew.")
    # The public copy of the lists has numbers for names, in the order of the names.
    named = {row["image_id"]: kind for row, kind in zip(rows, kinds, strict=True)}
    return [
        Picture(str(image), named.get(image.stem, kind), image.read_bytes)
        for image, kind in zip(images, kinds, strict=True)
    ]


@dataset(
    "DTD",
    source="pan8915/DeepTexture",
    official=5_640,
    differs="10 of 47 classes; cut at random in parts of the official sizes.",
)
def dtd(source: Path) -> Parts:
    """images/CLASS/*.jpg"""
    shares = {"train": 0.8 / 3, "dev": 0.2 / 3, "dev_test": 1 / 3, "test": 1 / 3}
    return cut(pictures(find(source, "**/images/*/*.jpg")), shares, by_count)


@dataset("LandSat UCI repo", source="YannisSch/Statlog_Landstat_Satellite_Project", official=6_435)
def landsat(source: Path) -> Parts:
    """sat.{trn,tst}: on each line 3x3 pixels of four bands and the class; the first three bands are kept."""
    return cut(_patches(source, "trn"), SHARES[("test",)]) | {"test": _patches(source, "tst")}


def _patches(source: Path, part: str) -> list[Picture]:
    file = one(source, f"**/sat.{part}")
    with reading(file):
        table = np.loadtxt(file)
        table = table[table[:, -1] > 0]
        if table[0, :3].tolist() == [1, 2, 3]:  # this copy counts its columns in a first line
            table = table[1:]
        images = table[:, :36].reshape(-1, 3, 3, 4)[..., :3].astype(np.uint8)
        return drawn(images, table[:, -1].astype(int), file)
