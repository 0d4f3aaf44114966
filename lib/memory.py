"""Networks that a stream has learnt so far, kept on disk for the learners that start from them."""

import copy
from pathlib import Path

from safetensors.torch import load_file

from lib.backbones import Backbone
from lib.tensors import save_tensors
from lib.training import TaskNetwork


class Memory:
    """The bodies learnt at one budget, the last `most` of them, by the event that they were learnt in.

    All have the structure of `start`, the pretrained and pruned network.
    """

    def __init__(self, folder: Path, budget: float, most: int, start: Backbone):
        self.folder, self.budget, self.most, self.start = folder, budget, most, start

    def events_before(self, event: int) -> range:
        """The events whose networks are kept for `event`, the latest first."""
        return range(event - 1, max(event - 1 - self.most, -1), -1)

    def network_of(self, event: int) -> Backbone:
        """The network that event `event` left behind."""
        network = copy.deepcopy(self.start)
        network.body.load_state_dict(load_file(self._file(event)))
        return network.eval()

    def keep(self, event: int, network: TaskNetwork) -> None:
        """Store a network's body, and drop what no later event looks at."""
        if self.most == 0:
            return
        save_tensors(network.body.state_dict(), self._file(event))
        # One more than the next event needs: a run that is killed now learns this event again.
        self._file(event - self.most - 1).unlink(missing_ok=True)

    def _file(self, event: int) -> Path:
        return self.folder / f"{event}-{self.budget!r}.safetensors"
