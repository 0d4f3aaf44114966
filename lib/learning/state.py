"""The state of a training while it lasts: a killed one goes on, and budgets share what they can."""

import copy
import shutil
import time
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from lib.common.files import save_tensors
from lib.networks.backbone import Backbone

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


class Memory:
    """The bodies learnt within one budget, the last `most` of them, by the event that they were learnt in.

    All have the structure of `start`, the pretrained and pruned network.
    """

    def __init__(self, folder: Path, most: int, start: Backbone):
        self.folder, self.most, self.start = folder, most, start

    def events_before(self, event: int) -> range:
        """The events whose networks are kept for `event`, the latest first."""
        return range(event - 1, max(event - 1 - self.most, -1), -1)

    def network_of(self, event: int) -> Backbone:
        """The network that event `event` left behind."""
        network = copy.deepcopy(self.start)
        network.body.load_state_dict(load_file(self._file(event)))
        return network.eval()

    def keep(self, event: int, body: nn.Module) -> None:
        """Store a learnt body, and drop what no later event looks at."""
        if self.most == 0:
            return
        save_tensors(body.state_dict(), self._file(event))
        # One more than the next event needs: a run that is killed now learns this event again.
        self._file(event - self.most - 1).unlink(missing_ok=True)

    def _file(self, event: int) -> Path:
        return self.folder / f"{event}.safetensors"
