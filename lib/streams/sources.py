"""Where a task's images come from before they are ingested: one interface for every kind of source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

PARTS = ("train", "dev", "dev_test", "test")  # dev_test may be absent


@dataclass(frozen=True)
class Example:
    """One image that is not read yet. `where` names it in errors; `label` is a class, or a tuple of tags."""

    where: str
    label: int | tuple[int, ...]
    open: Callable[[], Image.Image]


class Source(Protocol):
    """A task's images. Making one reads no image; an absent or broken one raises UserError."""

    kind: str  # "classification" or "multi-label"
    num_classes: int
    every_class_trains: bool  # whether a class without a training image is a mistake

    def content(self) -> str:
        """A hash that changes when the images, labels or splits do; cheap, decodes nothing."""

    def parts(self) -> dict[str, Sequence[Example]]:
        """The examples of each part, in a fixed random order, so that the first n are a random subset."""
