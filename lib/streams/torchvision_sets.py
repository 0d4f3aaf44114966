"""Tasks from data sets that torchvision's loaders read. Nothing is downloaded; `how_to_get` says how.

The parts are cut as Nevis'22 cuts the same data sets, or ones that come with the same parts.
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.common.errors import UserError
from lib.common.vision import torchvision
from lib.streams.cuts import SHARES, by_count, by_last_of_class, by_lot
from lib.streams.task import Example

Labels = Callable[[Any], Sequence]  # of a loader's data set, decoding nothing
Cut = Callable[[Sequence, dict[str, float]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Loader:
    """How torchvision gives one data set: its classes, its files, and the parts that it comes with.

    `arguments` are the constructor's for each part, `fixed` those for all; `files` is a pattern below the
    root. `cut` divides "train", in `shares` where they are not the usual ones, and "test" in `test_shares`.
    """

    num_classes: int
    files: str
    labels: Labels
    arguments: dict[str, dict[str, Any]]
    cut: Cut = by_count
    shares: dict[str, float] | None = None
    test_shares: dict[str, float] | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    loader: str = ""  # where it is not the data set's name
    kind: str = "classification"
    downloads: bool = True  # whether torchvision can download it


def _second(samples: str) -> Labels:
    """The labels of a loader that keeps pairs of path and label."""
    return lambda data: [label for _, label in getattr(data, samples)]


_targets, _private, _y, _labels = (attrgetter(name) for name in ("targets", "_labels", "y", "labels"))
_TRAINS = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_TRAINVAL_TEST = {"train": {"split": "trainval"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "dev_test": {"split": "val"}, "test": {"split": "test"}}
_WITH_VALID = {**_THREE, "dev_test": {"split": "valid"}}
_ALL: dict[str, dict[str, Any]] = {"train": {}}

_VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def _voc_tags(data: Any) -> list[tuple[int, ...]]:
    def tags(file: str) -> tuple[int, ...]:
        names = {found.text for found in ElementTree.parse(file).iterfind("object/name")}
        return tuple(sorted(_VOC_CLASSES.index(name) for name in names))

    return [tags(file) for file in data.annotations]


def _celeba_tags(data: Any) -> list[tuple[int, ...]]:
    return [tuple(row.nonzero().flatten().tolist()) for row in data.attr]


def _faces(data: Any) -> list[int]:
    """People of five images or more, numbered anew; the others get -1."""
    counts = Counter(data.targets)
    numbers = {person: i for i, person in enumerate(sorted(p for p, n in counts.items() if n >= 5))}
    return [numbers.get(person, -1) for person in data.targets]


def _voc(year: str, parts: dict[str, str], **cut: dict[str, float]) -> Loader:
    arguments = {part: {"year": year, "image_set": image_set} for part, image_set in parts.items()}
    files = f"VOCdevkit/VOC{year}/**/*"
    return Loader(20, files, _voc_tags, arguments, loader="VOCDetection", kind="multi-label", **cut)


LOADERS = {
    "Caltech101": Loader(101, "caltech101/101_ObjectCategories/**/*", _y, _ALL),
    "Caltech256": Loader(257, "caltech256/**/*", _y, _ALL, by_lot),
    "CelebA": Loader(40, "celeba/**/*", _celeba_tags, _WITH_VALID, kind="multi-label"),
    "CIFAR10": Loader(10, "cifar-10-batches-py/*", _targets, _TRAINS),
    "CIFAR100": Loader(100, "cifar-100-python/*", _targets, _TRAINS),
    "DTD": Loader(47, "dtd/**/*", _private, _THREE),
    "EMNIST": Loader(47, "EMNIST/raw/*balanced*", _targets, _TRAINS, fixed={"split": "balanced"}),
    "EuroSAT": Loader(10, "eurosat/**/*", _targets, _ALL),
    "FashionMNIST": Loader(10, "FashionMNIST/raw/*ubyte", _targets, _TRAINS),
    "FGVCAircraft": Loader(
        70, "fgvc-aircraft-2013b/**/*", _private, _TRAINVAL_TEST, by_lot, fixed={"annotation_level": "family"}
    ),
    "Flowers102": Loader(102, "flowers-102/**/*", _private, _THREE),
    "Food101": Loader(101, "food-101/**/*", _private, _TRAIN_TEST, by_lot),
    "GTSRB": Loader(43, "gtsrb/**/*", _second("_samples"), _TRAIN_TEST, by_lot),
    "ImageNet": Loader(
        1000,
        "train/**/*",
        _targets,
        {"train": {"split": "train"}, "test": {"split": "val"}},
        shares={"train": 0.90, "dev": 0.05, "dev_test": 0.05},
        downloads=False,
    ),
    "KMNIST": Loader(10, "KMNIST/raw/*ubyte", _targets, _TRAINS),
    "LFWPeople": Loader(423, "lfw-py/**/*", _faces, _ALL, by_last_of_class),
    "MNIST": Loader(10, "MNIST/raw/*ubyte", _targets, _TRAINS),
    "OxfordIIITPet": Loader(37, "oxford-iiit-pet/**/*", _private, _TRAINVAL_TEST),
    "PCAM": Loader(2, "pcam/*", lambda data: [data[i][1] for i in range(len(data))], _THREE),
    "SEMEION": Loader(10, "semeion.data", _labels, _ALL, by_lot),
    "StanfordCars": Loader(196, "stanford_cars/**/*", _second("_samples"), _TRAIN_TEST, by_lot),
    "STL10": Loader(10, "stl10_binary/*", _labels, _TRAIN_TEST),
    "SUN397": Loader(397, "SUN397/**/*", _private, _ALL),
    "SVHN": Loader(10, "*_32x32.mat", _labels, _TRAIN_TEST),
    "USPS": Loader(10, "usps*.bz2", _targets, _TRAINS, by_lot),
    "VOC2007": _voc("2007", {"train": "train", "dev_test": "val", "test": "test"}),
    "VOC2012": _voc(
        "2012",
        {"train": "train", "test": "val"},
        shares={"train": 0.80, "dev": 0.20},
        test_shares={"dev_test": 0.50, "test": 0.50},
    ),
}


def is_there(name: str, root: Path) -> bool:
    """Whether files of the data set `name` are below `root`; they are not looked into."""
    return any(root.glob(LOADERS[name].files))


def how_to_get(name: str, root: Path) -> str:
    """What to call, once, to download a data set to where it is looked for."""
    row = LOADERS[name]
    call = f"lib.common.vision.torchvision.datasets.{row.loader or name}"
    if not row.downloads:
        return f"{call} says which files to put into {root}"
    listed = [
        ", ".join(f"{key}={value!r}" for key, value in {**row.fixed, **arguments}.items())
        for arguments in row.arguments.values()
    ]
    parts = " and with ".join(listed)
    return f"{call}({str(root)!r}, download=True{', ' if parts else ''}{parts})"


class TorchvisionSource:
    """A data set that a loader of torchvision reads from `root`."""

    every_class_trains = False  # chance may leave a rare class without one, as it does in Nevis'22

    def __init__(self, name: str, root: Path):
        self.name, self.root, self.row = name, root, LOADERS[name]
        self.kind, self.num_classes = self.row.kind, self.row.num_classes

    def content(self) -> str:
        """A hash of the files' names and sizes, which are the same wherever the data set was downloaded."""
        digest = hashlib.sha256(self.name.encode())
        for file in sorted(self.root.glob(self.row.files)):
            if file.is_file():
                digest.update(f"{file.relative_to(self.root)} {file.stat().st_size}\n".encode())
        return digest.hexdigest()

    def parts(self) -> dict[str, Sequence[Example]]:
        parts = {}
        for part, arguments in self.row.arguments.items():
            data = self._open(arguments)
            labels = self.row.labels(data)
            shares = {part: 1.0}
            if part == "train":
                given = tuple(name for name in self.row.arguments if name != "train")
                shares = self.row.shares or SHARES[given]
            elif part == "test" and self.row.test_shares:
                shares = self.row.test_shares
            places = self.row.cut(labels, shares)
            parts |= {name: self._examples(data, labels, found) for name, found in places.items()}
        return parts

    def _open(self, arguments: dict[str, Any]) -> Any:
        loader = getattr(torchvision.datasets, self.row.loader or self.name)
        download = {"download": False} if self.row.downloads else {}
        try:
            return loader(str(self.root), **self.row.fixed, **arguments, **download)
        except Exception as error:  # each loader has its own
            raise UserError(
                f"torchvision cannot read {self.name} in {self.root} ({error}): get it with "
                f"`{how_to_get(self.name, self.root)}`."
            ) from error

    def _examples(self, data: Any, labels: Sequence, places: np.ndarray) -> list[Example]:
        order = np.random.default_rng(0).permutation(places)
        single = self.kind == "classification"
        return [
            Example(
                f"{self.name}, image {place}",
                int(labels[place]) if single else labels[place],
                partial(_image, data, int(place)),
            )
            for place in order
        ]


def _image(data: Any, place: int) -> Image.Image:
    return data[place][0]
