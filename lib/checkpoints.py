"""The state of a training while it lasts: a killed one goes on, and budgets share what they can."""

import shutil
import time
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from lib.tensors import save_tensors

SECONDS = 60  # between two checkpoints of one training


class Checkpoints:
    """States of the training of one task from one start, in a folder.

    The trunk is what all budgets share: it is kept as far as the last budget went with it. Once the learning
    rate falls, a state belongs to one budget alone.
    """

    def __init__(self, folder: Path, shared: bool = False):
        """`shared` says that a larger budget goes on from where this one leaves the trunk."""
        self.folder, self.shared, self.saved = folder, shared, time.monotonic()

    def under(self, name: str) -> "Checkpoints":
        """Those of the same task from another start."""
        return Checkpoints(self.folder / name, self.shared)

    def due(self) -> bool:
        """Whether the last checkpoint is old."""
        return time.monotonic() - self.saved > SECONDS

    def save(self, state: dict[str, Tensor], images: int | None) -> None:
        """Keep a state: of the trunk, or of the budget that pays for so many `images`."""
        save_tensors(state, self._file(images))
        self.saved = time.monotonic()

    def latest(self, images: int, stable: int) -> dict[str, Tensor] | None:
        """The state to go on from for a budget of `images`, `stable` steps of which are the trunk's."""
        for file in (self._file(images), self._file(None)):
            if file.exists():
                state = load_file(file)
                if file == self._file(images) or state["steps"] <= stable:
                    return state
        return None

    def clear(self) -> None:
        """Drop them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, images: int | None) -> Path:
        return self.folder / f"{'trunk' if images is None else images}.safetensors"
