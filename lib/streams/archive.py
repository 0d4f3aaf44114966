"""A task from a ZIP archive of images: PART/CLASS/IMAGE, as tools/datasets makes them."""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from lib.common.errors import UserError
from lib.streams.task import PARTS, Example, Place


class ArchiveSource:
    """Images in a ZIP archive, in the parts that it has."""

    kind = "classification"
    every_class_trains = False  # chance may leave a rare class without one, as it does in Nevis'22

    def __init__(self, file: Path):
        self.file = file
        try:
            with zipfile.ZipFile(file) as archive:
                self.entries = [entry for entry in archive.infolist() if entry.filename.split("/")[0] in PARTS]
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} is no ZIP archive that can be read ({error}): make it anew.") from error
        self.names = sorted({entry.filename.split("/")[1] for entry in self.entries})
        self.num_classes = len(self.names)

    @classmethod
    def at(cls, file: Path) -> Place:
        """The place of an archive."""
        return Place(f"{file} (see `python -m tools.datasets --list`)", file.is_file(), partial(cls, file))

    def classes(self) -> tuple[str, ...]:
        return tuple(self.names)

    def content(self) -> str:
        """A hash of the files' names, sizes and checksums, as the archive lists them."""
        listed = sorted(f"{entry.filename} {entry.file_size} {entry.CRC}\n" for entry in self.entries)
        return hashlib.sha256("".join(listed).encode()).hexdigest()

    def parts(self) -> Mapping[str, Sequence[Example]]:
        numbers = {name: number for number, name in enumerate(self.names)}
        parts: dict[str, list[Example]] = {}
        for entry in self.entries:
            part, name, _ = entry.filename.split("/")
            where = f"{self.file}: {entry.filename}"
            image = partial(_image, self.file, entry.filename)
            parts.setdefault(part, []).append(Example(where, numbers[name], image))
        rng = np.random.default_rng(0)
        return {part: [examples[place] for place in rng.permutation(len(examples))] for part, examples in parts.items()}


@cache
def _opened(file: Path, process: int) -> zipfile.ZipFile:
    # One for each process: a forked one would share the place in the file with its parent.
    return zipfile.ZipFile(file)


def _image(file: Path, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(_opened(file, os.getpid()).read(name)))
    except (zipfile.BadZipFile, zlib.error) as error:
        raise OSError(str(error)) from error
