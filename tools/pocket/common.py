"""What every task of the pocket stream is made with: packages, image fitting, splits."""

import hashlib
import importlib.metadata
import random
import shutil
import subprocess
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from lib.common.errors import UserError

SIDE = 160  # the largest that is kept: a smaller source keeps its own
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Sample:
    """One image, its label (tag indices for a multi-label task) and the source object it shows.

    Samples of one group never land in different splits.
    """

    image: Image.Image
    label: int | tuple[int, ...]
    group: str


@dataclass(frozen=True)
class Task:
    """A task's card and the function that collects its samples, in a reproducible order."""

    name: str
    collect: "Collector"
    year: int
    year_reason: str
    domain: str
    title: str
    packages: list[str]
    upstream: str
    licence: str
    attribution: str
    notes: str
    classes: list[str]
    by_class: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    kind: str = "classification"
    quality: int | None = None  # of WebP; None is lossless
    sizes: tuple[int, int, int] = (700, 200, 300)

    @property
    def label_of(self) -> dict[str, int]:
        """The class of every name that `by_class` lists."""
        return {name: label for label, names in enumerate(self.by_class.values()) for name in names}


Collector = Callable[["Sources", Task], list[Sample]]
CARDS = tomllib.loads(Path(__file__).with_name("tasks.toml").read_text("utf-8"))
TASKS: list[Task] = []


def task(name: str) -> Callable[[Collector], Collector]:
    """Register the decorated function as the collector of the task `name` of tasks.toml."""

    def register(collect: Collector) -> Collector:
        card = {"classes": list(CARDS[name].get("by_class", ())), **CARDS[name]}
        TASKS.append(Task(name, collect, **card))
        return collect

    return register


@dataclass
class Sources:
    """Debian packages, downloaded once into `cache` and unpacked there."""

    cache: Path
    versions: dict[str, str] = field(default_factory=dict)

    def deb(self, package: str) -> Path:
        """The folder in which the Debian package's files are unpacked."""
        self.cache.mkdir(parents=True, exist_ok=True)
        archive = self._archive(package)
        self.versions[package] = unquote(archive.name.split("_")[1])
        folder = self.cache / archive.stem
        if not folder.exists():
            partial = self.cache / f"{archive.stem}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _command(["dpkg-deb", "-x", str(archive.resolve()), str(partial.resolve())], self.cache)
            partial.rename(folder)
        return folder

    def _archive(self, package: str) -> Path:
        found = sorted(self.cache.glob(f"{package}_*.deb"))
        if not found:
            _command(["apt-get", "download", "-q", package], self.cache)
            found = sorted(self.cache.glob(f"{package}_*.deb"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise UserError(
                f"Expected one archive of {package} in {self.cache}, found {names}. "
                "Empty the cache folder and run again."
            )
        return found[0]

    def origin(self, of: Task) -> str:
        """The task's packages with the versions that were used, and where upstream is."""
        listed = []
        for package in of.packages:
            if package in self.versions:
                listed.append(f"Debian {package} {self.versions[package]}")
            else:
                listed.append(f"Python {package} {importlib.metadata.version(package)}")
        return f"{'; '.join(listed)}. Upstream: {of.upstream}"


def _command(arguments: list[str], folder: Path) -> None:
    try:
        subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(
            f"The command {arguments[0]} is missing. The pocket stream is built on Debian or Ubuntu, "
            "whose packages hold its images; the finished stream is part of the repository."
        ) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"`{' '.join(arguments)}` failed: {reason}. Run `apt-get update` once, check the "
            "package's name and the network, and run again."
        ) from error


def generator(name: str) -> random.Random:
    """A random generator that depends on the name only."""
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def fit(image: Image.Image, margin: float = 0.04, grey: bool = False, background: str = "white") -> Image.Image:
    """The image on a plain background, cut to what is opaque, padded to a square, at 160 px at most."""
    rgba = image.convert("RGBA")
    box = rgba.getchannel("A").point(lambda alpha: 255 * (alpha > 12)).getbbox()
    if box:
        rgba = rgba.crop(box)
    width, height = rgba.size
    side = round(max(width, height) * (1 + 2 * margin))
    canvas = Image.new("RGBA", (side, side), background)
    canvas.alpha_composite(rgba, ((side - width) // 2, (side - height) // 2))
    return shrunk(canvas.convert("L" if grey else "RGB"))


def shrunk(square: Image.Image) -> Image.Image:
    """The image at 160 px, or as it is where it has fewer."""
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS) if square.width > SIDE else square


def thumbnails(samples: Sequence[Sample], side: int = 16) -> np.ndarray:
    """Small grey versions, one row a sample, for finding near-duplicates."""
    small = [
        np.asarray(sample.image.convert("L").resize((side, side), Image.Resampling.BOX), np.float32)
        for sample in samples
    ]
    return np.stack(small).reshape(len(samples), -1) / 255


def drop_near_duplicates(samples: list[Sample], threshold: float = 0.07) -> list[Sample]:
    """One sample of every set that looks alike; none of a set whose labels disagree.

    Two images look alike when the root mean square difference of their thumbnails, mirrored or
    not, is under the threshold, or a third of the drawing's own contrast where it has little ink.
    """
    tiny = thumbnails(samples)
    mirrored = tiny.reshape(len(samples), 16, 16)[:, :, ::-1].reshape(len(samples), -1)
    contrast = tiny.std(axis=1)
    kept: list[int] = []
    clash: set[int] = set()
    for index in range(len(samples)):
        if kept:
            others = np.array(kept)
            distance = np.minimum(
                np.sqrt(((tiny[others] - tiny[index]) ** 2).mean(axis=1)),
                np.sqrt(((mirrored[others] - tiny[index]) ** 2).mean(axis=1)),
            )
            alike = others[distance < np.minimum(threshold, contrast[index] / 3)]
            if len(alike):
                clash.update(i for i in alike if samples[i].label != samples[index].label)
                continue
        kept.append(index)
    return [samples[index] for index in kept if index not in clash]


def split_samples(samples: list[Sample], of: Task) -> dict[str, list[Sample]]:
    """Train, dev and test, with whole groups in one split and each class shared out alike.

    Classes are as equal in size as the samples allow, and none is larger than twice its part. A
    multi-label sample counts as its rarest tag, and nothing is done to make tags equal.
    """
    draw = generator(of.name)
    classes = _strata(samples)
    available = {c: classes.count(c) for c in sorted(set(classes))}
    wanted = sum(of.sizes)
    most = _cap(list(available.values()), wanted) if of.kind == "classification" else wanted
    taken = {c: min(count, most) for c, count in available.items()}
    shrink = min(1.0, wanted / sum(taken.values()))
    room = {
        (c, split): round(shrink * count * size / wanted)
        for c, count in taken.items()
        for split, size in zip(SPLITS, of.sizes, strict=True)
    }
    left = dict(room)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[sample.group].append(index)
    names = sorted(groups)
    draw.shuffle(names)
    chosen: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for name in names:
        members = groups[name]
        need = {
            split: sum(left[classes[i], split] / max(1, room[classes[i], split]) for i in members) for split in SPLITS
        }
        split = max(SPLITS, key=lambda s: need[s])
        for index in members:
            if left[classes[index], split] > 0:
                left[classes[index], split] -= 1
                chosen[split].append(samples[index])
    for split in SPLITS:
        draw.shuffle(chosen[split])
    return chosen


def _strata(samples: list[Sample]) -> list[int]:
    """Each sample's class, or its rarest tag."""
    tags = Counter(tag for s in samples if not isinstance(s.label, int) for tag in s.label)
    return [s.label if isinstance(s.label, int) else min(s.label, key=lambda tag: (tags[tag], tag)) for s in samples]


def _cap(counts: list[int], wanted: int) -> int:
    """The smallest size to cut classes to that still leaves `wanted` samples, or twice their part."""
    part = -(-wanted // len(counts))
    for cap in range(part, 2 * part):
        if sum(min(cap, count) for count in counts) >= wanted:
            return cap
    return 2 * part


def files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """All files below the folder that match one of the patterns, sorted by name."""
    return sorted({path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()})
