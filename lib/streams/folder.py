"""A task from a folder of images: train/<class>/*, and dev/ and test/ likewise where they are there."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.streams.cuts import SHARES, by_class
from lib.streams.images import is_image, open_file
from lib.streams.ingest import content_of
from lib.streams.task import Example, Place

# How people call the parts.
PARTS = {"training": "train", "val": "dev", "valid": "dev", "validation": "dev", "testing": "test"}
PARTS |= {part: part for part in PARTS.values()}
EXPECTED = "expected train/<class>/<image>, with dev (or val, valid, validation) and test if any"
# What is cut from train for the parts that do not come with it.
CUTS = {
    (): SHARES[()],
    ("test",): SHARES[("test",)],
    ("dev",): {"train": 0.80, "test": 0.20},
    ("dev", "test"): {"train": 1.0},
}
# What systems leave behind, beside hidden files.
LEFT_BEHIND = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}


class FolderSource:
    """Images in a folder for each class; what is missing of dev and test is cut from train."""

    kind = "classification"
    every_class_trains = True

    def __init__(self, folder: Path):
        self.folder = folder
        self.folders: dict[str, Path] = {}
        found = [child for child in _children(folder) if child.is_dir()]
        for child in found:
            if (part := PARTS.get(child.name.lower())) in self.folders:
                raise UserError(f"{child} and {self.folders[part]} are both {part}: {EXPECTED}. Remove one.")
            if part is not None:
                self.folders[part] = child
        if "train" not in self.folders:
            raise UserError(f"{folder} has no folder train: {EXPECTED}.")
        if others := [child for child in found if child not in self.folders.values()]:
            raise UserError(f"{shown(others[0])} is no part of a task: {EXPECTED}. Move it or remove it.")
        self.names = _classes(self.folders["train"])
        self.num_classes = len(self.names)
        for place in self.folders.values():
            if unknown := [name for name in _classes(place) if name not in self.names]:
                raise UserError(
                    f"{shown(place / unknown[0])} is a class that {self.folders['train']} has not: add "
                    "training images of it, or remove it."
                )

    @classmethod
    def at(cls, folder: Path) -> Place:
        """The place of a task's folder."""
        return Place(f"images in {folder}/train/<class>", folder.is_dir(), partial(cls, folder))

    def classes(self) -> tuple[str, ...]:
        return tuple(map(shown, self.names))

    def content(self) -> str:
        return content_of((file for part in self.folders for file, _ in self._images(part)), self.folder)

    def parts(self) -> Mapping[str, Sequence[Example]]:
        parts = {part: list(map(_example, self._images(part))) for part in self.folders}
        whole, least = parts["train"], self.num_classes + 3 - len(self.folders)
        if len(whole) < least:
            raise UserError(
                f"{self.folders['train']} has {len(whole)} images of {self.num_classes} classes: expected at "
                f"least {least}, one of each class and one for each part that is cut from it. Add images."
            )
        shares = CUTS[tuple(part for part in ("dev", "test") if part in self.folders)]
        for part, places in by_class([example.labels[0] for example in whole], shares).items():
            parts[part] = [whole[place] for place in places]
        rng = np.random.default_rng(0)
        return {part: [parts[part][i] for i in rng.permutation(len(parts[part]))] for part in sorted(parts)}

    def _images(self, part: str) -> Iterator[tuple[Path, int]]:
        for label, name in enumerate(self.names):
            folder = self.folders[part] / name
            if folder.is_dir():
                above = {folder.resolve(), *folder.resolve().parents}
                yield from ((file, label) for file in _files(folder, above))


def _example(found: tuple[Path, int]) -> Example:
    return Example(shown(found[0]), found[1], partial(open_file, found[0]))


def shown(path: Path | str) -> str:
    """A path as text that can be written anywhere: bytes that are no UTF-8 as \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _classes(folder: Path) -> list[str]:
    for child in _children(folder):
        if child.is_file() and is_image(child):
            raise UserError(f"{shown(child)} lies in no folder of a class: move it into one.")
    return [child.name for child in _children(folder) if child.is_dir()]


def _children(folder: Path) -> list[Path]:
    """What lies in a folder and was put there on purpose, numbers in names in their order."""

    def natural(path: Path) -> tuple:
        words = re.split(r"(\d+)", path.name)
        return [int(word) if place % 2 else word for place, word in enumerate(words)], path.name

    try:
        found = sorted(folder.iterdir(), key=natural)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): make it readable.") from error
    kept = [child for child in found if child.name[0] != "." and child.name.lower() not in LEFT_BEHIND]
    for child in kept:
        if not child.exists():
            raise UserError(f"{shown(child)} is a link to nothing: restore what it names, or remove it.")
    return kept


def _files(folder: Path, above: set[Path]) -> Iterator[Path]:
    """The images below a folder, also through links; `above` holds the real folders that it lies in."""
    for child in _children(folder):
        if child.is_dir():
            if (real := child.resolve()) in above:
                raise UserError(f"{shown(child)} is a link to a folder that it lies in: remove it.")
            yield from _files(child, above | {real})
        elif child.is_file() and is_image(child):
            yield child
