"""The network that each task starts from: the pretrained one, pruned once or for each task."""

from dataclasses import dataclass

from lib.learning.learners import LEARNERS
from lib.networks.backbone import Backbone, normalised
from lib.pruning import plan_pruning
from lib.pruning.criteria import CRITERIA
from lib.pruning.repairs import REPAIRS
from lib.runs.spec import RunSpec
from lib.streams.task import Split, Task, TaskData


@dataclass(frozen=True)
class Start:
    """The network that a task starts from, and the MACs that pruning it took."""

    network: Backbone
    calibration_macs: int


class Starts:
    """The pruned network: one for the stream, or one per task where pruning looks at the task's images.

    A learner that goes on from earlier tasks' networks keeps the first task's, whose structure they have, and
    is charged for it once; every other learner pays at each task, as if the task were alone.
    """

    def __init__(self, spec: RunSpec, dense: Backbone, tasks: tuple[Task, ...]):
        self.spec, self.dense, self.tasks = spec, dense, tasks
        looks = CRITERIA[spec.criterion].needs_images or REPAIRS[spec.repair].needs == "images"
        self.goes_on = LEARNERS[spec.learner].remembers > 0
        self.one_per_task = looks and spec.ratio > 0 and not self.goes_on
        self.event: int | None = None
        self.start: Start | None = None

    def for_task(self, event: int, data: TaskData) -> Start:
        """Where to start task `event` from. Calibrates on a task's first training images, unlabelled."""
        looked_at = event if self.one_per_task else 0
        if self.start is None or self.event != looked_at:
            train = (data if event == looked_at else self.spec.data_of(self.tasks[looked_at])).train
            self.event, self.start = looked_at, self._planned(train.first(self.spec.calibration_images))
        charged = event == looked_at or not self.goes_on
        return self.start if charged else Start(self.start.network, 0)

    def _planned(self, seen: Split) -> Start:
        plan = plan_pruning(
            self.dense,
            self.spec.ratio,
            self.spec.criterion,
            scope=self.spec.scope,
            granularity=self.spec.granularity,
            repair=self.spec.repair,
            round_to=self.spec.round_to,
            images=normalised(seen.images.permute(0, 3, 1, 2), self.dense),
            seed=self.spec.seed,
            image_size=self.spec.image_size,
        )
        network = plan.apply(self.dense) if self.spec.ratio > 0 else self.dense
        return Start(network, plan.calibration_macs)
