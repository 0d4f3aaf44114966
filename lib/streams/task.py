"""What a stream is made of: tasks, the images in their parts, and the sources that they are read from."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from lib.common.errors import UserError

PARTS = ("train", "dev", "test")  # what is learnt from, chosen by and reported


@dataclass(frozen=True)
class Example:
    """One image that is not read yet. `where` names it in errors; `label` is a class, or a tuple of tags."""

    where: str
    label: int | tuple[int, ...]
    open: Callable[[], Image.Image]


class Source(Protocol):
    """A task's images. Making one reads no image; an absent or broken one raises UserError."""

    kind: str = "classification"  # or "multi-label"
    num_classes: int
    # Whether a class without a training image is a mistake. In Nevis'22 chance may leave a rare one without.
    every_class_trains: bool = False

    def classes(self) -> tuple[str, ...]:
        """The names of the classes or tags by number, which are the numbers where it has no names."""
        return tuple(map(str, range(self.num_classes)))

    def content(self) -> str:
        """A hash of all that is read: images, labels and names, wherever they lie. Decodes nothing."""

    def parts(self) -> Mapping[str, Sequence[Example]]:
        """The examples of each part, in a fixed random order, so that the first n are a random subset.

        Parts beside PARTS, such as the second dev part that Nevis'22 has, are cut off and not read.
        """


@dataclass(frozen=True)
class Listed:
    """A task as a stream lists it, and the places where it may lie: the first that is there counts.

    A place is a kind of source, and what that is made of: a path, the name of a torchvision data set and its folder,
    a card. `kind` and `num_classes` are what is known of a task that is at none of them.
    """

    name: str
    year: int
    domain: str
    places: Sequence[tuple[Any, ...]]
    kind: str = "classification"
    num_classes: int | None = None


def are_tags(labels: Tensor | np.ndarray) -> bool:
    """Whether labels are tags (N, C), of which an image has several or none, and not classes (N,)."""
    return labels.ndim == 2


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, 3) as uint8, and labels: classes (N,) int64 or tags (N, C) float 0/1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_multilabel(self) -> bool:
        """Whether an image may have several tags, or none, instead of one class."""
        return are_tags(self.labels)

    def first(self, count: int | None) -> "Split":
        """At most `count` images, all without it: the first ones, whose order is already random."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class TaskData:
    """A task's images at one size, in its fixed parts."""

    train: Split
    dev: Split
    test: Split

    def first(self, train: int | None, evaluation: int | None) -> "TaskData":
        """At most `train` images to learn from, and `evaluation` each of dev and test."""
        return TaskData(self.train.first(train), self.dev.first(evaluation), self.test.first(evaluation))


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
    name_classes: Callable[[], tuple[str, ...]]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes or tags by number, which are the numbers where the source has no names."""
        return self.name_classes()


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

    def only(self, names: Sequence[str] | None) -> "Stream":
        """The tasks called so, in the stream's order; all for None. Raises UserError for another name."""
        known = [task.name for task in self.tasks]
        if unknown := sorted(set(names or ()) - set(known)):
            raise UserError(
                f"tasks={unknown} are not in the stream {self.name!r}: expected some of {', '.join(known)}."
            )
        return replace(self, tasks=tuple(task for task in self.tasks if names is None or task.name in names))
