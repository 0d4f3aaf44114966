"""Decode any image to RGB of one size."""

import fcntl
import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from lib.common.errors import UserError
from lib.common.files import write_json
from lib.common.paths import BUILD, folder_from
from lib.common.progress import report
from lib.runs.stamps import hash_of
from lib.streams.task import PARTS, Example, Source, Split, Task, TaskData

_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)


class UnreadableImage(ValueError):
    """An image that cannot be decoded, with the reason."""


def decode(open_image: Callable[[], Image.Image], image_size: int) -> np.ndarray:
    """The image that `open_image` opens, as uint8 RGB (image_size, image_size, 3), squashed to a square.

    The first frame of several, turned as its EXIF says, over white where it is transparent, 16 bits scaled
    down to 8. Raises UnreadableImage, also for one of more pixels than Pillow takes for harmless.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = open_image()
        if image.format == "JPEG":
            # A large one is decoded at half its size or less.
            image.draft(None, (2 * image_size, 2 * image_size))
        image = _rgb(ImageOps.exif_transpose(image))
        if image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(image)
    except _UNREADABLE as error:
        raise UnreadableImage(str(error)) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        if image.mode.startswith("I"):
            values = values / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


# So many images that cannot be read are left out of a task; more is an error.
MOST_UNREADABLE, MOST_UNREADABLE_SHARE = 10, 0.01


def task_from(source: Source, name: str, year: int, domain: str) -> Task:
    """The task whose images `source` gives; they are ingested when it is first read at a size."""
    read = partial(_read, source, name)
    return Task(name, year, domain, source.kind, source.num_classes, source.content(), read)


def cache_folder() -> Path:
    """Where ingested tasks lie: the environment's INGEST_CACHE, or build/cache."""
    return folder_from("INGEST_CACHE", BUILD / "cache")


def _read(source: Source, name: str, image_size: int) -> TaskData:
    folder = cache_folder() / f"{source.content()[:24]}-{image_size}-{hash_of([Path(__file__)])[:8]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder.parent}: {error.strerror}. Expected a writable folder for ingested "
            "images: set INGEST_CACHE to another."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_sound(folder):
            _ingest(source, name, image_size, folder)
        stamp = (folder / "entry.json").stat().st_mtime_ns
    return _opened(folder, stamp)


@cache
def _opened(folder: Path, stamp: int) -> TaskData:
    """The entry's parts over memory maps; `stamp` is the time at which it was made."""
    parts = {
        part: Split(*(_mapped(folder / f"{part}-{what}.npy") for what in ("images", "labels")))
        for part in json.loads((folder / "entry.json").read_text())["counts"]
    }
    return TaskData(**parts)


def _mapped(file: Path) -> torch.Tensor:
    # Copy on write: torch takes no read-only memory, and nothing that is written reaches the file.
    return torch.from_numpy(np.load(file, mmap_mode="c"))


_checked: set[tuple[Path, int]] = set()


def _is_sound(folder: Path) -> bool:
    """Whether the entry is there and its files are what was written, checked once a process."""
    entry = folder / "entry.json"
    try:
        key = (folder, entry.stat().st_mtime_ns)
        if key not in _checked:
            sums = json.loads(entry.read_text())["sha256"]
            if any(_digest(folder / name) != digest for name, digest in sums.items()):
                return False
            _checked.add(key)
        return True
    except (OSError, ValueError, KeyError):
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _ingest(source: Source, name: str, image_size: int, folder: Path) -> None:
    parts = source.parts()
    _check_classes(name, source, parts)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        unreadable: list[str] = []
        counts = {}
        for part in (part for part in PARTS if part in parts):
            examples = parts[part]
            kept = _write_images(examples, image_size, temporary / f"{part}-images.npy", unreadable)
            labels = _labels([examples[place] for place in kept], source)
            np.save(temporary / f"{part}-labels.npy", labels)
            counts[part] = len(kept)
        total = sum(len(examples) for examples in parts.values())
        if unreadable:
            few = "; ".join(unreadable[:3])
            if len(unreadable) > max(MOST_UNREADABLE, MOST_UNREADABLE_SHARE * total):
                raise UserError(
                    f"{len(unreadable)} of {total} images of the task {name!r} cannot be read, such as "
                    f"{few}: restore or remove them."
                )
            report(f"{name}: {len(unreadable)} of {total} images cannot be read and are left out: {few}")
        empty = [part for part, count in counts.items() if not count]
        if empty:
            raise UserError(
                f"The task {name!r} has no image in its part {empty[0]!r}: expected at least one."
            )
        files = sorted(temporary.glob("*.npy"))
        sums = {file.name: _digest(file) for file in files}
        write_json(temporary / "entry.json", {"counts": counts, "left_out": unreadable, "sha256": sums})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"Cannot ingest the task {name!r} into {folder.parent}: {error}. Free space, or set "
            "INGEST_CACHE to another folder, and run again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_images(
    examples: Sequence[Example], image_size: int, file: Path, unreadable: list[str]
) -> list[int]:
    """Write the images that can be read, one after the other, and return their places."""
    pixels = file.with_suffix(".raw")
    kept = []
    with pixels.open("wb") as out:
        for place, example in enumerate(examples):
            try:
                out.write(decode(example.open, image_size).tobytes())
                kept.append(place)
            except UnreadableImage as error:
                unreadable.append(f"{example.where} ({error})")
    # The header comes first and holds the count, which is known only now.
    shape = (len(kept), image_size, image_size, 3)
    with file.open("wb") as out, pixels.open("rb") as raw:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        shutil.copyfileobj(raw, out, 16 << 20)
    pixels.unlink()
    return kept


def _labels(examples: list[Example], source: Source) -> np.ndarray:
    if source.kind == "classification":
        return np.array([example.label for example in examples], np.int64)
    tags = np.zeros((len(examples), source.num_classes), np.float32)
    for row, example in zip(tags, examples, strict=True):
        row[list(example.label)] = 1
    return tags


def _check_classes(name: str, source: Source, parts: dict[str, Sequence[Example]]) -> None:
    if source.num_classes < 2:
        raise UserError(
            f"The task {name!r} has {source.num_classes} class: expected two or more to tell apart."
        )
    single = source.kind == "classification"
    seen = {label for example in parts["train"] for label in ([example.label] if single else example.label)}
    missing = sorted(set(range(source.num_classes)) - seen)
    if missing and source.every_class_trains:
        raise UserError(
            f"The task {name!r} has no training image of class {missing[0]}: expected at least one of "
            f"each of its {source.num_classes} classes. Add some, or remove the class."
        )
