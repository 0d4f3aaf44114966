"""What every data set is prepared with: pictures, parts, checks, and the archive that holds a task."""

import hashlib
import importlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.common.errors import UserError, choose
from lib.common.files import atomic_path
from lib.streams.cuts import SHARES, by_lot
from lib.streams.nevis import datasets_folder

Cut = Callable[[Sequence, dict[str, float]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Picture:
    """One image of a copy: where it is, its class, and how to get it: a file's bytes, or uint8 pixels."""

    where: str
    label: str
    read: Callable[[], bytes | np.ndarray]

    def digest(self) -> bytes:
        """A hash of its pixels or its file."""
        return _digest(self.read())


def _digest(content: bytes | np.ndarray) -> bytes:
    return hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).digest()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


Parts = dict[str, list[Picture]]


@dataclass(frozen=True)
class Recipe:
    """How one data set is made into a task.

    `source` is the public copy that it was written for, `official` the number of images that the benchmark's
    copy has, and `differs` says what else is different from it.
    """

    name: str
    source: str
    official: int
    differs: str
    parts: Callable[[Path], Parts]


RECIPES: dict[str, Recipe] = {}


def dataset(name: str, *, source: str, official: int, differs: str = "") -> Callable:
    """Register the decorated function, which gives the parts of the data set `name` from a folder."""

    def register(parts: Callable[[Path], Parts]) -> Callable[[Path], Parts]:
        RECIPES[name] = Recipe(name, source, official, differs, parts)
        return parts

    return register


@cache
def copies() -> dict[str, dict]:
    """What the public copies gave: name -> classes, images of each part, and a hash of them all."""
    return json.loads((Path(__file__).parent / "copies.json").read_text())


def archive_of(name: str) -> Path:
    """Where the task `name` is put, and looked for by lib/streams."""
    return datasets_folder() / "folders" / f"{name}.zip"


def prepare(name: str, source: Path) -> str:
    """Make the archive of the task `name` from a copy in the folder `source`; return a line about it.

    One that is there is kept. Raises UserError for a folder that does not hold the data set, holds a part of
    it, or has an image that cannot be read.
    """
    choose("data set", name, RECIPES)
    archive = archive_of(name)
    if archive.exists():
        return f"{name}: is at {archive} already; remove it to make it anew."
    if not source.is_dir():
        raise UserError(f"{source} is no folder: expected the unpacked or checked-out copy of {name}.")
    parts = RECIPES[name].parts(source)
    _check_count(name, parts)
    with atomic_path(archive) as temporary:
        about = _write(parts, name, temporary)
        known = about["sha256"] == copies().get(name, {}).get("sha256")
        if not known:
            _check_images(temporary, parts)
    counts = ", ".join(f"{part} {count:,}" for part, count in about["parts"].items())
    remark = "" if known else " These are not the images of the public copy, so results may differ from its."
    return f"{name}: {about['classes']} classes; {counts}; {archive.stat().st_size / 1e6:.0f} MB.{remark}"


def _check_count(name: str, parts: Parts) -> None:
    found = sum(len(pictures) for pictures in parts.values())
    expected = {RECIPES[name].official, sum(copies().get(name, {}).get("parts", {}).values()) or found}
    if found not in expected:
        numbers = " or ".join(f"{number:,}" for number in sorted(expected))
        raise UserError(
            f"The copy of {name} has {found:,} images: expected {numbers}. It is not whole, or another data "
            "set: unpack or check it out anew."
        )


def _write(parts: Parts, name: str, file: Path) -> dict:
    """Write the archive. The hash in what is returned is of labels, parts and pixels or files, in order."""
    digest = hashlib.sha256()
    with (
        zipfile.ZipFile(file, "w") as archive,
        tqdm(total=sum(map(len, parts.values())), desc=name, unit=" images", disable=None) as progress,
    ):
        for part, pictures in parts.items():
            for number, picture in enumerate(pictures):
                with reading(picture.where):
                    content = picture.read()
                digest.update(f"{part} {picture.label} ".encode() + _digest(content))
                is_file = isinstance(content, bytes)
                suffix = Path(picture.where).suffix.lower() if is_file else ".png"
                entry = f"{part}/{picture.label}/{number:06d}{suffix}"
                # ZipInfo has a fixed date, so that the same copy gives the same bytes.
                archive.writestr(zipfile.ZipInfo(entry), content if is_file else _png(content))
                progress.update()
        labels = {picture.label for pictures in parts.values() for picture in pictures}
        about = {
            "name": name,
            "classes": len(labels),
            "parts": {part: len(pictures) for part, pictures in parts.items()},
            "sha256": digest.hexdigest(),
        }
        archive.writestr(zipfile.ZipInfo("about.json"), json.dumps(about, indent=1))
    return about


def _check_images(file: Path, parts: Parts) -> None:
    pictures = [picture for part in parts.values() for picture in part]
    with zipfile.ZipFile(file) as archive:
        for entry, picture in zip(archive.infolist(), pictures, strict=False):  # about.json is the last
            with reading(picture.where):
                Image.open(io.BytesIO(archive.read(entry))).load()


# --- what the functions are written with -----------------------------------------------------------


def package(name: str) -> ModuleType:
    """The package `name`, which only `make setup-data` installs."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # libarchive wants a library of the system beside
        raise UserError(f"The package {name} cannot be used ({error}): run `make setup-data`.") from error


@contextmanager
def reading(where: Path | str) -> Iterator[None]:
    """Say in one sentence which file cannot be read, whatever its reader raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each format has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{where} cannot be read ({reason}): it is damaged, or not what its name says. Get it anew."
        ) from error


def find(source: Path, *patterns: str) -> list[Path]:
    """The files that match any of the patterns, numbers in names in their order, hidden ones left out.

    Raises UserError where there are none.
    """
    found = {file for pattern in patterns for file in source.glob(pattern) if file.is_file()}
    kept = [file for file in found if not any(part.startswith(".") for part in file.relative_to(source).parts)]
    if not kept:
        raise UserError(
            f"{source} has no file {' or '.join(patterns)}: expected a copy laid out as "
            "`python -m tools.datasets --list` says."
        )
    return sorted(kept, key=_natural)


def _natural(file: Path) -> list:
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", str(file))]


def one(source: Path, *patterns: str) -> Path:
    """The first file that matches. Raises UserError where there is none."""
    return find(source, *patterns)[0]


def pictures(files: Iterable[Path], label: Callable[[Path], str] = lambda file: file.parent.name) -> list[Picture]:
    """A picture per file, by default of the class that its folder is called."""
    return [Picture(str(file), label(file), file.read_bytes) for file in files]


def drawn(images: np.ndarray, labels: Iterable, where: Path) -> list[Picture]:
    """A picture per image of an array, uint8 (N, H, W) or (N, H, W, 3)."""
    return [
        Picture(f"{where}, image {number}", str(label), lambda image=image: image)
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def distinct(found: list[Picture]) -> list[Picture]:
    """The pictures without those that repeat an earlier one, be it of another class."""
    first: dict[bytes, Picture] = {}
    for picture in found:
        first.setdefault(picture.digest(), picture)
    return list(first.values())


def cut(found: list[Picture], shares: dict[str, float] = SHARES[()], how: Cut = by_lot) -> Parts:
    """The pictures in parts of these shares."""
    places = how([picture.label for picture in found], shares)
    return {part: [found[place] for place in chosen] for part, chosen in places.items()}
