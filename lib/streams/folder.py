"""A task from a folder of images: train/<class>/*, and dev/ and test/ likewise where they are there."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lib.common.errors import UserError
from lib.streams.cuts import SHARES
from lib.streams.ingest import content_of
from lib.streams.task import Example, Place

# What is cut from train for the parts that do not come with it.
CUTS = {
    (): SHARES[()],
    ("test",): SHARES[("test",)],
    ("dev",): {"train": 0.80, "test": 0.20},
    ("dev", "test"): {"train": 1.0},
}


class FolderSource:
    """Images in a folder a class. What of dev and test is missing is cut from train, class by class."""

    kind = "classification"
    every_class_trains = True

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / "train").is_dir():
            raise UserError(
                f"{folder} has no folder train: expected train/<class>/<image>, with dev and test if any."
            )
        self.names = _subfolders(folder / "train")
        self.num_classes = len(self.names)
        self.given = tuple(part for part in ("dev", "test") if (folder / part).is_dir())
        for part in self.given:
            if unknown := sorted(set(_subfolders(folder / part)) - set(self.names)):
                raise UserError(
                    f"{folder / part / unknown[0]} is a class that {folder / 'train'} has not: add training "
                    "images of it, or remove it."
                )

    @classmethod
    def at(cls, folder: Path) -> Place:
        """The place of a task's folder."""
        return Place(f"images in {folder}/train/<class>", folder.is_dir(), partial(cls, folder))

    def classes(self) -> tuple[str, ...]:
        return tuple(self.names)

    def content(self) -> str:
        files = [file for part in ("train", *self.given) for file in _files(self.folder / part)]
        return content_of(files, self.folder)

    def parts(self) -> Mapping[str, Sequence[Example]]:
        parts: dict[str, list[Example]] = {part: self._examples(part) for part in self.given}
        shares = CUTS[self.given]
        parts |= {part: [] for part in shares}
        rng = np.random.default_rng(0)
        of_class: dict[int, list[Example]] = {}
        for example in self._examples("train"):
            of_class.setdefault(example.labels[0], []).append(example)
        for examples in of_class.values():
            order = rng.permutation(len(examples))
            ends = (np.cumsum(list(shares.values())) * len(examples)).round().astype(int)
            ends[0] = max(1, ends[0])  # a class always has a training image
            for part, chosen in zip(shares, np.split(order, ends[:-1]), strict=True):
                parts[part] += [examples[place] for place in chosen]
        return {
            part: [examples[i] for i in rng.permutation(len(examples))] for part, examples in parts.items()
        }

    def _examples(self, part: str) -> list[Example]:
        numbers = {name: number for number, name in enumerate(self.names)}
        root = self.folder / part
        return [
            Example(str(file), numbers[file.relative_to(root).parts[0]], partial(Image.open, file))
            for file in _files(root)
            if len(file.relative_to(root).parts) > 1
        ]


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
