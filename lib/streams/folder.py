"""A task from images at PART/CLASS/IMAGE: in a folder of one's own, or in a ZIP archive that tools/datasets made."""

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from lib.common.errors import UserError
from lib.streams.cuts import SHARES, by_class
from lib.streams.images import is_image, open_file
from lib.streams.ingest import content_of
from lib.streams.task import PARTS, Example, Source

# How people call the parts.
NAMES = {"training": "train", "val": "dev", "valid": "dev", "validation": "dev", "testing": "test"}
NAMES |= {part: part for part in PARTS}
EXPECTED = "expected train/<class>/<image>, with dev (or val, valid, validation) and test if any"
# What systems leave behind, beside hidden files.
LEFT_BEHIND = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}


class FolderSource(Source):
    """Images in a folder for each class; what is missing of dev and test is cut from train."""

    every_class_trains = True

    def __init__(self, folder: Path):
        self.folder = folder
        found = [child for child in _children(folder) if child.is_dir()]
        named = {child: NAMES.get(child.name.lower()) for child in found}
        self.folders = {part: child for child, part in reversed(named.items()) if part}
        if "train" not in self.folders:
            raise UserError(f"{folder} has no folder train: {EXPECTED}.")
        for child, part in named.items():
            if part is None:
                raise UserError(f"{shown(child)} is no part of a task: {EXPECTED}. Move it or remove it.")
            if child != self.folders[part]:
                raise UserError(f"{child} and {self.folders[part]} are both {part}: {EXPECTED}. Remove one.")
        train = self.folders["train"]
        self.names = _classes(train)
        self.num_classes = len(self.names)
        for other in (place / name for place in self.folders.values() for name in _classes(place)):
            if other.name not in self.names:
                raise UserError(f"{shown(other)} is a class that {train} has not: add images there, or remove it.")

    def classes(self) -> tuple[str, ...]:
        return tuple(map(shown, self.names))

    def content(self) -> str:
        return content_of((file for part in self.folders for file, _ in self._images(part)), self.folder)

    def parts(self) -> Mapping[str, Sequence[Example]]:
        parts = {
            part: [Example(shown(file), label, partial(open_file, file)) for file, label in self._images(part)]
            for part in self.folders
        }
        whole, least = parts["train"], self.num_classes + 3 - len(self.folders)
        if len(whole) < least:
            raise UserError(
                f"{self.folders['train']} has {len(whole)} images of {self.num_classes} classes: expected at "
                f"least {least}, one of each class and one for each part that is cut from it. Add images."
            )
        shares = SHARES[tuple(sorted(self.folders.keys() - {"train"}))]
        for part, places in by_class([example.label for example in whole], shares).items():
            parts[part] = [whole[place] for place in places]
        return _mixed(dict(sorted(parts.items())))

    def _images(self, part: str) -> Iterator[tuple[Path, int]]:
        for label, name in enumerate(self.names):
            if (folder := self.folders[part] / name).is_dir():
                yield from ((file, label) for file in _files(folder))


class ArchiveSource(Source):
    """Images in a ZIP archive, in the parts that it has."""

    def __init__(self, file: Path):
        self.file = file
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} is no ZIP archive that can be read ({error}): make it anew.") from error
        self.entries = [entry for entry in entries if entry.filename.split("/")[0] in PARTS]
        self.names = sorted({entry.filename.split("/")[1] for entry in self.entries})
        self.num_classes = len(self.names)

    def classes(self) -> tuple[str, ...]:
        return tuple(self.names)

    def content(self) -> str:
        """A hash of the files' names, sizes and checksums, as the archive lists them."""
        listed = sorted(f"{entry.filename} {entry.file_size} {entry.CRC}\n" for entry in self.entries)
        return hashlib.sha256("".join(listed).encode()).hexdigest()

    def parts(self) -> Mapping[str, Sequence[Example]]:
        parts: dict[str, list[Example]] = {}
        for entry in self.entries:
            part, name, _ = entry.filename.split("/")
            image = partial(_image, self.file, entry.filename)
            parts.setdefault(part, []).append(Example(f"{self.file}: {entry.filename}", self.names.index(name), image))
        return _mixed(parts)


def _mixed(parts: dict[str, list[Example]]) -> dict[str, list[Example]]:
    rng = np.random.default_rng(0)
    return {part: [examples[place] for place in rng.permutation(len(examples))] for part, examples in parts.items()}


@cache
def _opened(file: Path, process: int) -> zipfile.ZipFile:
    # One for each process: a forked one would share the place in the file with its parent.
    return zipfile.ZipFile(file)


def _image(file: Path, name: str) -> Image.Image:
    return Image.open(io.BytesIO(_opened(file, os.getpid()).read(name)))


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
        return [(text, int(number or -1)) for text, number in re.findall(r"(\D*)(\d*)", path.name)], path.name

    try:
        found = sorted(folder.iterdir(), key=natural)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): make it readable.") from error
    kept = [child for child in found if child.name[0] != "." and child.name.lower() not in LEFT_BEHIND]
    for child in kept:
        if not child.exists():
            raise UserError(f"{shown(child)} is a link to nothing: restore what it names, or remove it.")
    return kept


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The images below a folder, also through links; `above` holds the real folders that it lies in."""
    real = folder.resolve()
    if real in above:
        raise UserError(f"{shown(folder)} is a link to a folder that it lies in: remove it.")
    for child in _children(folder):
        if child.is_dir():
            yield from _files(child, above | {real, *real.parents})
        elif child.is_file() and is_image(child):
            yield child
