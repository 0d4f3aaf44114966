"""Read a task once: its images, decoded to one size, lie in a cache under the hash of what they are."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from lib.common.errors import UserError
from lib.common.files import locked, write_json
from lib.common.paths import BUILD, folder_from
from lib.common.progress import report
from lib.streams.images import UnreadableImage, decode
from lib.streams.task import PARTS, Example, Source, Split, Task, TaskData

# Raise it with any change of a pixel, a label or a part that a source gives: it is in every task's content.
DECODER = 1
# So many images that cannot be read are left out of a task; more is an error.
MOST_UNREADABLE, MOST_UNREADABLE_SHARE = 10, 0.01
# A file younger than so many nanoseconds may change again unseen: clocks of file systems are coarse.
SETTLED = 2_000_000_000


def cache_folder() -> Path:
    """Where ingested tasks lie: the environment's INGEST_CACHE, or build/cache."""
    return folder_from("INGEST_CACHE", BUILD / "cache")


def task_from(source: Source, name: str, year: int, domain: str) -> Task:
    """The task whose images `source` gives; they are ingested when it is first read at a size."""
    content = hashlib.sha256(f"{DECODER} {source.content()}".encode()).hexdigest()
    read = partial(_read, source, name, content)
    return Task(name, year, domain, source.kind, source.num_classes, content, read, source.classes)


def content_of(files: Iterable[Path], root: Path) -> str:
    """A hash of the files' contents and of their names below `root`: the same for a copy elsewhere.

    A file is read once: its hash is kept in the cache until its size or a time of it changes.
    """
    kept = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.json"
    try:
        known = json.loads(kept.read_bytes())
    except (OSError, ValueError):
        known = {}
    found, total, now = {}, hashlib.sha256(), time.time_ns()
    for file in sorted(files):
        name, status = str(file.relative_to(root)), file.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        digest = known[name][-1] if known.get(name, [])[:-1] == state else _digest(file)
        if now - status.st_ctime_ns > SETTLED:
            found[name] = [*state, digest]
        total.update(os.fsencode(f"{name}\0{digest}\n"))
    if found != known:
        write_json(kept, found)
    return total.hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read(source: Source, name: str, content: str, image_size: int) -> TaskData:
    folder = cache_folder() / f"{content[:24]}-{image_size}"
    with locked(folder.with_suffix(".lock"), "set INGEST_CACHE to another"):
        try:
            return _opened(folder)
        except (FileNotFoundError, ValueError, KeyError):  # not there, or not what was written
            _ingest(source, name, image_size, folder)
            return _opened(folder)


@cache
def _opened(folder: Path) -> TaskData:
    """The entry's parts over memory maps. Raises where a file of it is missing or not what was written."""
    entry = json.loads((folder / "entry.json").read_bytes())
    if any(_digest(folder / file) != digest for file, digest in entry["sha256"].items()):
        raise ValueError("a file is damaged")

    def mapped(name: str) -> torch.Tensor:
        # Copy on write: torch takes no read-only memory, and nothing that is written reaches the files.
        return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))

    return TaskData(*(Split(mapped(f"{part}-images"), mapped(f"{part}-labels")) for part in PARTS))


def _ingest(source: Source, name: str, image_size: int, folder: Path) -> None:
    found = source.parts()
    parts = {part: found.get(part, ()) for part in PARTS}
    single, tags = source.kind == "classification", np.arange(source.num_classes)
    unreadable: list[str] = []
    _check(name, source, parts, unreadable)
    try:
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True) as path:
            temporary, kept = Path(path), {}
            for part, examples in parts.items():
                kept[part] = _write_images(examples, image_size, temporary / f"{part}-images.npy", unreadable)
                labels = [example.label if single else np.isin(tags, example.label) for example in kept[part]]
                np.save(temporary / f"{part}-labels.npy", np.array(labels, np.int64 if single else np.float32))
            _check(name, source, kept, unreadable)
            sums = {file.name: _digest(file) for file in sorted(temporary.glob("*.npy"))}
            write_json(temporary / "entry.json", {"left_out": unreadable, "sha256": sums})
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"Cannot ingest the task {name!r} into {folder.parent}: {error}. Free space, or set "
            "INGEST_CACHE to another folder, and run again."
        ) from error


def _write_images(examples: Sequence[Example], image_size: int, file: Path, unreadable: list[str]) -> list[Example]:
    """Write the images that can be read, one after the other, and return their examples."""
    about, side = {"descr": "|u1", "fortran_order": False}, image_size
    kept = []
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, about | {"shape": (len(examples), side, side, 3)})
        for example in examples:
            try:
                out.write(decode(example.open, side).tobytes())
                kept.append(example)
            except UnreadableImage as error:
                unreadable.append(f"{example.where} ({error})")
        out.seek(0)  # a header has room for any count: numpy pads it, so that arrays can grow
        np.lib.format.write_array_header_1_0(out, about | {"shape": (len(kept), side, side, 3)})
    return kept


def _check(name: str, source: Source, parts: Mapping[str, Sequence[Example]], unreadable: list[str]) -> None:
    """Raise UserError where the parts do not make a task; name what cannot be read where they do without it."""
    if source.num_classes < 2:
        raise UserError(f"The task {name!r} has {source.num_classes} class: expected two or more to tell apart.")
    total, few = sum(map(len, parts.values())) + len(unreadable), "; ".join(unreadable[:3])
    said = f"{len(unreadable)} of {total} images of the task {name!r} cannot be read"
    if len(unreadable) > max(MOST_UNREADABLE, MOST_UNREADABLE_SHARE * total):
        raise UserError(f"{said}, such as {few}: restore or remove them.")
    seen = np.hstack([(), *(example.label for example in parts["train"])]).tolist()
    missing = set(range(source.num_classes)).difference(seen)
    if missing and source.every_class_trains:
        raise UserError(
            f"The task {name!r} has no training image of class {source.classes()[min(missing)]!r}: expected at "
            f"least one of each of its {source.num_classes} classes. Add some, or remove the class."
        )
    if empty := [part for part, examples in parts.items() if not examples]:
        raise UserError(f"The task {name!r} has no image in its part {empty[0]!r}: expected at least one.")
    if unreadable:
        report(f"{said} and are left out: {few}")
