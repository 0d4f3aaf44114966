"""Tasks and streams: what a learner sees, whatever the images come from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lib.streams.sources import Source


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, 3) as uint8, and labels: classes (N,) int64 or tags (N, C) float 0/1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class TaskData:
    """A task's images at one size, in its fixed parts."""

    train: Split
    dev: Split
    test: Split
    dev_test: Split | None = None  # Nevis'22 has one where it cuts the parts itself


@dataclass(frozen=True)
class Task:
    """One task of a stream. `read` gives its images at a side in pixels; `content` is a hash of them."""

    name: str
    year: int
    domain: str
    kind: str  # "classification" or "multi-label"
    num_classes: int
    content: str
    read: Callable[[int], TaskData]


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they are learnt, and the names of those that were not here."""

    name: str
    tasks: tuple[Task, ...]
    left_out: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """A hash of what the tasks hold and of their order."""
        listed = "\n".join(f"{task.name} {task.content}" for task in self.tasks)
        return hashlib.sha256(listed.encode()).hexdigest()


@dataclass(frozen=True)
class Listed:
    """A task as a stream lists it. `how` says where it is or how to get it; without `open` it is not here."""

    name: str
    year: int
    domain: str
    kind: str
    num_classes: int | None
    how: str
    open: Callable[[], Source] | None


Lister = Callable[..., list[Listed]]
STREAMS: dict[str, Lister] = {}


def stream(name: str):
    """Register the decorated function, which lists the tasks of the stream `name`.

    It gets what a user writes behind the name, split at slashes, as arguments.
    """

    def register(list_rows: Lister) -> Lister:
        STREAMS[name] = list_rows
        return list_rows

    return register
