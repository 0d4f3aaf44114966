"""Tasks and streams: what a learner sees, whatever the images come from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from lib.errors import UserError


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, 3) as uint8, and labels: classes (N,) int64 or tags (N, C) float 0/1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class TaskData:
    """A task's images at one size, in its three fixed parts."""

    train: Split
    dev: Split
    test: Split


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
    """Tasks in the order in which they are learnt."""

    name: str
    tasks: tuple[Task, ...]

    @property
    def content(self) -> str:
        """A hash of what the tasks hold and of their order."""
        listed = "\n".join(f"{task.name} {task.content}" for task in self.tasks)
        return hashlib.sha256(listed.encode()).hexdigest()


_STREAMS: dict[str, tuple[Callable[[], Stream], Callable[[], pd.DataFrame]]] = {}


def stream(name: str, list_tasks: Callable[[], pd.DataFrame]):
    """Register the decorated function, which loads the stream `name`."""

    def register(load: Callable[[], Stream]) -> Callable[[], Stream]:
        _STREAMS[name] = (load, list_tasks)
        return load

    return register


def load_stream(name: str) -> Stream:
    """The stream called `name`. Raises UserError for an unknown one."""
    return _entry(name)[0]()


def list_tasks(name: str) -> pd.DataFrame:
    """Every task of a stream, whether its images are here or not.

    Columns: name, year, domain, kind, num_classes, available, how (where it is or how to get it).
    """
    return _entry(name)[1]()


def _entry(name: str):
    if name not in _STREAMS:
        raise UserError(f"Unknown stream {name!r}: expected one of {', '.join(_STREAMS)}.")
    return _STREAMS[name]
