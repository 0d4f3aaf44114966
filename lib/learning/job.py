"""A job: one task to learn within one budget."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.rates import learning_rate
from lib.learning.state import Checkpoints, Memory
from lib.learning.training import Recipe
from lib.networks.backbone import Backbone
from lib.streams.task import Task, TaskData

if TYPE_CHECKING:
    from lib.runs.spec import RunSpec


@dataclass(frozen=True)
class Job:
    """One task to learn: what there is to start from, the data, and how and within what."""

    spec: "RunSpec"
    event: int  # the task's place in the stream
    task: Task
    data: TaskData
    start: Backbone  # the pretrained, pruned network
    calibration_macs: int  # what pruning it computed on images of the task
    budget: float
    ledger: Ledger
    memory: Memory
    checkpoints: Checkpoints
    engine: Engine

    @property
    def seed(self) -> int:
        """The same order of images and the same crops for every arm of a seed: paired comparisons."""
        return self.spec.seed * 1000 + self.event

    @property
    def image_size(self) -> int:
        """The side of the images in pixels."""
        return self.data.train.images.shape[1]

    def recipe(self, probed: bool = False) -> Recipe:
        """What is used where nothing is searched; `probed` says that the head was solved before."""
        rate = self.spec.learning_rate or learning_rate(self.spec.backbone, self.spec.ratio, self.task.name, probed)
        return Recipe(rate, frozen_norms=probed)
