"""Tasks from data sets that torchvision's loaders read. Nothing is downloaded; `how_to_get` says how.

The parts are cut as Nevis'22 cuts the same data sets, or ones that come with the same parts.
"""

import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from lib.common.errors import UserError
from lib.common.vision import torchvision
from lib.streams import cuts
from lib.streams.ingest import content_of
from lib.streams.task import Example, Source

TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
PARTS: dict[str, dict[str, dict[str, Any]]] = TABLE["parts"]
# data set -> how torchvision gives it; the table says what each field means
LOADERS = {name: SimpleNamespace(**{**TABLE["usual"], **row}) for name, row in TABLE["sets"].items()}
NAMES = ("classes", "categories", "attr_names")  # where loaders keep the names of their classes


def _voc_tags(data: Any) -> list[tuple[int, ...]]:
    numbers = {name: number for number, name in enumerate(LOADERS["VOC2007"].names)}
    found = ([node.text for node in ElementTree.parse(file).iterfind("object/name")] for file in data.annotations)
    return [tuple(sorted({numbers[name] for name in names})) for names in found]


def _faces(data: Any) -> list[int]:
    """People of five images or more, numbered anew; the others get -1."""
    counts = Counter(data.targets)
    numbers = {person: i for i, person in enumerate(sorted(p for p, n in counts.items() if n >= 5))}
    return [numbers.get(person, -1) for person in data.targets]


# What `labels` of a data set may say beside an attribute of its loader.
LABELS: dict[str, Callable[[Any], Sequence]] = {
    "celeba tags": lambda data: [tuple(row.nonzero().flatten().tolist()) for row in data.attr],
    "faces": _faces,
    "of each item": lambda data: [data[place][1] for place in range(len(data))],
    "of samples": lambda data: [label for _, label in data._samples],
    "voc tags": _voc_tags,
}


def is_there(name: str, root: Path) -> bool:
    """Whether the data set `name` lies in `root`. Raises UserError for one that is not known."""
    if name not in LOADERS:
        raise UserError(f"torchvision:{name} is unknown: expected one of {', '.join(LOADERS)}.")
    return all(any(root.glob(pattern)) for pattern in LOADERS[name].files.split())


def how_to_get(name: str, root: Path) -> str:
    """What to call, once, to download a data set to where it is looked for."""
    row = LOADERS[name]
    call = f"lib.common.vision.torchvision.datasets.{row.loader or name}"
    if not row.downloads:
        return f"{call} says which files to put into {root}"
    asked = ({**row.fixed, **arguments} for arguments in PARTS[row.parts].values())
    parts = " and with ".join(", ".join(f"{key}={value!r}" for key, value in part.items()) for part in asked)
    return f"{call}({str(root)!r}, download=True{', ' if parts else ''}{parts})"


class TorchvisionSource(Source):
    """A data set that a loader of torchvision reads from `root`."""

    def __init__(self, name: str, root: Path):
        self.name, self.root, self.row = name, root, LOADERS[name]
        self.kind, self.num_classes = self.row.kind, self.row.num_classes

    def classes(self) -> tuple[str, ...]:
        data = self._open("train")
        known = [self.row.names, *(getattr(data, attribute, ()) for attribute in NAMES), range(self.num_classes)]
        names = next(names for names in known if len(names) == self.num_classes)
        return tuple(", ".join(name) if isinstance(name, (list, tuple)) else str(name) for name in names)

    def content(self) -> str:
        found = (file for pattern in self.row.files.split() for file in self.root.glob(pattern))
        return f"{self.name} {content_of(filter(Path.is_file, found), self.root)}"

    def parts(self) -> Mapping[str, Sequence[Example]]:
        parts: dict[str, Sequence[Example]] = {}
        row, others = self.row, tuple(part for part in PARTS[self.row.parts] if part != "train")
        for part in PARTS[row.parts]:
            data = self._open(part)
            found = LABELS[row.labels](data) if row.labels in LABELS else getattr(data, row.labels)
            labels = [label if isinstance(label, tuple) else int(label) for label in found]
            shares = row.shares.get(part, cuts.SHARES[others] if part == "train" else {part: 1.0})
            for name, places in getattr(cuts, row.cut)(labels, shares).items():
                order = np.random.default_rng(0).permutation(places).tolist()
                parts[name] = [Example(f"{self.name}, image {i}", labels[i], partial(_image, data, i)) for i in order]
        return parts

    def _open(self, part: str) -> Any:
        loader = getattr(torchvision.datasets, self.row.loader or self.name)
        download = {"download": False} if self.row.downloads else {}
        try:
            return loader(str(self.root), **self.row.fixed, **PARTS[self.row.parts][part], **download)
        except Exception as error:  # each loader has its own
            how = how_to_get(self.name, self.root)
            raise UserError(
                f"torchvision cannot read {self.name} in {self.root} ({error}): get it with `{how}`."
            ) from error


def _image(data: Any, place: int) -> Image.Image:
    return data[place][0]
