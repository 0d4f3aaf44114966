"""How a stream is learnt. Every learner gets the task, a budget, and the pretrained, pruned network."""

from collections.abc import Callable

from lib.backbones import Backbone
from lib.compute import Ledger
from lib.streams.base import TaskData
from lib.training import Recipe, TaskNetwork, fine_tune

Learner = Callable[..., tuple[TaskNetwork, int]]
LEARNERS: dict[str, Learner] = {}


def learner(name: str):
    """Register the decorated function as the learner `name`."""

    def register(learn: Learner) -> Learner:
        LEARNERS[name] = learn
        return learn

    return register


@learner("independent")
def _independent(
    start: Backbone,
    data: TaskData,
    num_classes: int,
    ledger: Ledger,
    recipe: Recipe,
    precision: str,
    seed: int,
    device: str,
) -> tuple[TaskNetwork, int]:
    """Each task alone, from the pretrained, pruned network. Returns the network and the steps taken."""
    network = TaskNetwork(start, num_classes)
    steps = fine_tune(network, data.train, ledger, recipe, precision, seed, device)
    return network, steps
