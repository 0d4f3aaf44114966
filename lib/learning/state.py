"""The state of a training while it lasts: a killed one goes on."""

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
    """The latest state of one training, in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.saved = folder, time.monotonic()

    @property
    def _file(self) -> Path:
        return self.folder / "training.safetensors"

    def due(self) -> bool:
        """Whether the last checkpoint is old."""
        return time.monotonic() - self.saved > SECONDS

    def save(self, state: dict[str, Tensor]) -> None:
        """Keep a state, in place of the one before it."""
        save_tensors(state, self._file)
        self.saved = time.monotonic()

    def latest(self) -> dict[str, Tensor] | None:
        """The state to go on from."""
        return load_file(self._file) if self._file.exists() else None

    def clear(self) -> None:
        """Drop it."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
