"""A job: one task to learn within one budget."""

from dataclasses import dataclass

from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.state import Checkpoints, Memory
from lib.learning.training import Recipe
from lib.networks.backbone import Backbone
from lib.streams.task import Task, TaskData


@dataclass(frozen=True)
class Job:
    """One task to learn: what there is to start from, the data, and how and within what."""

    event: int  # the task's place in the stream
    task: Task
    data: TaskData
    start: Backbone  # the pretrained, pruned network
    recipe: Recipe  # what is used where nothing is searched
    trials: int  # of a search; 1: none
    budget: int  # in dense images
    ledger: Ledger
    memory: Memory
    checkpoints: Checkpoints | None
    engine: Engine
    seed: int  # the same order of images and the same crops for every arm of a seed: paired comparisons

    @property
    def image_size(self) -> int:
        """The side of the images in pixels."""
        return self.data.train.images.shape[1]
