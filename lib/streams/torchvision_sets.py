"""Tasks from data sets that torchvision's loaders read. Nothing is downloaded; `how_to_get` says how.

The parts are cut as Nevis'22 cuts the same data sets, or ones that come with the same parts.
"""

import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.common.errors import UserError
from lib.common.vision import torchvision
from lib.streams import cuts
from lib.streams.ingest import content_of
from lib.streams.task import Example, Place

Cut = Callable[[Sequence, dict[str, float]], dict[str, np.ndarray]]


def _voc_tags(data: Any) -> list[tuple[int, ...]]:
    numbers = {name: number for number, name in enumerate(LOADERS["VOC2007"].names)}

    def tags(file: str) -> tuple[int, ...]:
        found = ElementTree.parse(file).iterfind("object/name")
        return tuple(sorted({numbers[name.text or ""] for name in found}))

    return [tags(file) for file in data.annotations]


def _faces(data: Any) -> list[int]:
    """People of five images or more, numbered anew; the others get -1."""
    counts = Counter(data.targets)
    numbers = {person: i for i, person in enumerate(sorted(p for p, n in counts.items() if n >= 5))}
    return [numbers.get(person, -1) for person in data.targets]


# What Loader.labels may say beside an attribute of the loader's data set.
LABELS: dict[str, Callable[[Any], Sequence]] = {
    "celeba tags": lambda data: [tuple(row.nonzero().flatten().tolist()) for row in data.attr],
    "faces": _faces,
    "of each item": lambda data: [data[place][1] for place in range(len(data))],
    "of samples": lambda data: [label for _, label in data._samples],
    "voc tags": _voc_tags,
}


TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
PARTS: dict[str, dict[str, dict[str, Any]]] = TABLE["parts"]
NAMES = ("classes", "categories", "attr_names")  # where loaders keep the names of their classes


@dataclass(frozen=True)
class Loader:
    """How torchvision gives one data set: its classes, its files, and the parts that it comes with.

    `files` are patterns below the root, `fixed` arguments of the constructor for all parts. `cut` divides
    "train", in `shares` where they are not the usual ones, and "test" in `test_shares`.
    """

    num_classes: int
    files: str
    labels: str
    parts: str = "all"
    cut: str = "by_count"
    shares: dict[str, float] | None = None
    test_shares: dict[str, float] | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    loader: str = ""  # where it is not the data set's name
    kind: str = "classification"
    names: Sequence[str] = ()  # of the classes, where the loader does not know them
    downloads: bool = True  # whether torchvision can download it

    def labels_of(self, data: Any) -> Sequence:
        """The labels of a loader's data set."""
        return LABELS[self.labels](data) if self.labels in LABELS else getattr(data, self.labels)

    def shares_of(self, part: str) -> dict[str, float]:
        """The parts that a part of the data set is cut into."""
        if part == "train":
            return self.shares or cuts.SHARES[tuple(name for name in PARTS[self.parts] if name != "train")]
        return (part == "test" and self.test_shares) or {part: 1.0}


LOADERS = {name: Loader(**row) for name, row in TABLE["sets"].items()}


def how_to_get(name: str, root: Path) -> str:
    """What to call, once, to download a data set to where it is looked for."""
    row = LOADERS[name]
    call = f"lib.common.vision.torchvision.datasets.{row.loader or name}"
    if not row.downloads:
        return f"{call} says which files to put into {root}"
    listed = [
        ", ".join(f"{key}={value!r}" for key, value in {**row.fixed, **arguments}.items())
        for arguments in PARTS[row.parts].values()
    ]
    parts = " and with ".join(listed)
    return f"{call}({str(root)!r}, download=True{', ' if parts else ''}{parts})"


class TorchvisionSource:
    """A data set that a loader of torchvision reads from `root`."""

    every_class_trains = False  # chance may leave a rare class without one, as it does in Nevis'22

    def __init__(self, name: str, root: Path):
        self.name, self.root, self.row = name, root, LOADERS[name]
        self.kind, self.num_classes = self.row.kind, self.row.num_classes

    @classmethod
    def at(cls, name: str, root: Path) -> Place:
        """The place of the data set `name` below `root`. Raises UserError for one that is not known."""
        if name not in LOADERS:
            raise UserError(f"torchvision:{name} is unknown: expected one of {', '.join(LOADERS)}.")
        is_there = all(any(root.glob(pattern)) for pattern in LOADERS[name].files.split())
        return Place(how_to_get(name, root), is_there, partial(cls, name, root))

    def classes(self) -> tuple[str, ...]:
        data = self._open("train")
        for names in (self.row.names, *(getattr(data, at, ()) for at in NAMES)):
            if len(names) == self.num_classes:
                return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)
        return tuple(map(str, range(self.num_classes)))

    def content(self) -> str:
        found = (file for pattern in self.row.files.split() for file in self.root.glob(pattern))
        return f"{self.name} {content_of(filter(Path.is_file, found), self.root)}"

    def parts(self) -> Mapping[str, Sequence[Example]]:
        cut: Cut = getattr(cuts, self.row.cut)
        parts: dict[str, Sequence[Example]] = {}
        for part in PARTS[self.row.parts]:
            data = self._open(part)
            labels = self.row.labels_of(data)
            places = cut(labels, self.row.shares_of(part))
            parts |= {name: self._examples(data, labels, found) for name, found in places.items()}
        return parts

    def _open(self, part: str) -> Any:
        loader = getattr(torchvision.datasets, self.row.loader or self.name)
        download = {"download": False} if self.row.downloads else {}
        try:
            return loader(str(self.root), **self.row.fixed, **PARTS[self.row.parts][part], **download)
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
