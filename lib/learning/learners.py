"""How a stream is learnt. Every learner gets a task, a budget, and the pretrained, pruned network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.learning.ledger import Ledger
from lib.learning.probe import affordable_probe, probe_macs, probed, stratified
from lib.learning.search import search
from lib.learning.state import Checkpoints, Memory
from lib.learning.training import Diverged, Recipe, TaskNetwork, error_of, fine_tune, representation
from lib.networks.backbone import Backbone
from lib.networks.macs import forward_macs
from lib.streams.task import TaskData

PRETRAINED = "pretrained"  # where a network started from, unless it is an event
NEIGHBOURS = 5
COMPARED_IMAGES, LEAST_COMPARED_IMAGES = 64, 16


@dataclass(frozen=True)
class Assignment:
    """One task to learn: what there is to start from, the data, and how and within what."""

    event: int
    start: Backbone
    memory: Memory
    data: TaskData
    num_classes: int
    ledger: Ledger
    checkpoints: Checkpoints
    rule: Callable[..., Recipe]  # of what is not searched; `probed=` says that the head was solved before
    trials: int
    precision: str
    seed: int
    device: str

    @property
    def image_size(self) -> int:
        return self.data.train.images.shape[1]


@dataclass(frozen=True)
class Learnt:
    """What came out: the network, the steps it took with which recipe, and what it started from.

    A note says what went wrong; the network is then as it was before training, its head zero.
    """

    network: TaskNetwork
    steps: int = 0
    recipe: Recipe | None = None
    started_from: int | str = PRETRAINED
    note: str = ""


@dataclass(frozen=True)
class Learner:
    """A way to learn, how many of the last tasks' networks it looks at, and whether it fine-tunes."""

    learn: Callable[[Assignment], Learnt]
    remembers: int
    fine_tunes: bool

    def shares(self, trials: int) -> bool:
        """Whether all budgets of a task start alike, and so share the trunk of their trainings."""
        return self.fine_tunes and self.remembers == 0 and trials == 1


LEARNERS: dict[str, Learner] = {}


def learner(name: str, remembers: int = 0, fine_tunes: bool = True):
    """Register the decorated function as the learner `name`. It charges all that it computes."""

    def register(learn: Callable[[Assignment], Learnt]) -> Callable[[Assignment], Learnt]:
        LEARNERS[name] = Learner(learn, remembers, fine_tunes)
        return learn

    return register


@learner("independent")
def independent(task: Assignment) -> Learnt:
    """Each task alone, from the pretrained, pruned network."""
    return _fine_tuned(task, TaskNetwork(task.start, task.num_classes))


@learner("previous", remembers=1)
def previous(task: Assignment) -> Learnt:
    """Each task from the network that the last one left behind."""
    for event in task.memory.events_before(task.event):
        return _fine_tuned(task, TaskNetwork(task.memory.network_of(event), task.num_classes), event)
    return independent(task)


@learner("dynamic", remembers=7)
def dynamic(task: Assignment) -> Learnt:
    """Each task from that network, of the pretrained one and the last seven, which fits it best.

    Fit is the error of nearest neighbours on a few training images, each left out once: what Nevis'22's
    dynamic learner goes by, too. The comparison takes a quarter of the budget at most.
    """
    candidates = [PRETRAINED, *task.memory.events_before(task.event)]
    data = task.data
    macs, width = forward_macs(task.start, task.image_size), task.start.feature_dim

    def cost(images: int) -> int:
        return images * macs + images**2 * width

    quarter = task.ledger.limit // 4
    images = 0
    while len(candidates) > 1 and images < LEAST_COMPARED_IMAGES:
        fitting = (n for n in range(min(COMPARED_IMAGES, len(data.train)), 0, -1))
        images = next((n for n in fitting if cost(n) * len(candidates) <= min(quarter, task.ledger.left)), 0)
        if images < LEAST_COMPARED_IMAGES:
            candidates.pop()  # the oldest
    best, best_error, best_from = task.start, None, PRETRAINED
    if len(candidates) > 1:
        few = stratified(data.train, images)
        for candidate in candidates:
            task.ledger.charge("comparison", cost(images))
            network = task.start if candidate == PRETRAINED else task.memory.network_of(candidate)
            features = representation(network, few, task.precision, task.device)
            error = neighbours_error(features, few.labels, task.num_classes)
            if best_error is None or error < best_error:
                best, best_error, best_from = network, error, candidate
    return _fine_tuned(task, TaskNetwork(best, task.num_classes), best_from)


@learner("probe", fine_tunes=False)
def probe(task: Assignment) -> Learnt:
    """A linear head on the frozen network, on all training images, or as many as the budget pays for."""
    network, _ = _probed(task, task.ledger.left)
    return Learnt(network)


@learner("probe_finetune")
def probe_finetune(task: Assignment) -> Learnt:
    """The head of `probe` first, for at most half of the budget, then everything (Kumar et al., 2022)."""
    network, images = _probed(task, task.ledger.left // 2)
    checkpoints = task.checkpoints.under(f"head of {images}")  # budgets share what follows on the same head
    return _fine_tuned(
        replace(task, checkpoints=checkpoints), network, rule=partial(task.rule, probed=images > 0)
    )


def _probed(task: Assignment, macs: int) -> tuple[TaskNetwork, int]:
    """The starting network under a head solved on so many images, or of zeros where `macs` pay for none."""
    forward = forward_macs(task.start, task.image_size)
    sizes = forward, task.start.feature_dim, task.num_classes
    images = affordable_probe(*sizes, len(task.data.train), macs)
    if images == 0:
        return TaskNetwork(task.start, task.num_classes), 0
    task.ledger.charge("probe", probe_macs(*sizes, images))
    chosen = stratified(task.data.train, images)
    return probed(task.start, chosen, task.num_classes, task.precision, task.device), images


def _fine_tuned(
    task: Assignment,
    network: TaskNetwork,
    started_from: int | str = PRETRAINED,
    rule: Callable[..., Recipe] | None = None,
) -> Learnt:
    """Search a recipe where trials are asked for, then train with all that is left."""
    how = task.precision, task.seed, task.device
    recipe, note = search(network, task.data, task.ledger, (rule or task.rule)(), task.trials, *how)
    try:
        steps = fine_tune(network, task.data.train, task.ledger, recipe, *how, task.checkpoints)
    except Diverged as error:
        untrained = TaskNetwork(task.start, task.num_classes)
        return Learnt(untrained, error.steps, recipe, started_from, note=str(error))
    return Learnt(network, steps, recipe if steps else None, started_from, note)


def neighbours_error(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """The error of the nearest neighbours by cosine, each image of features (N, D) left out once.

    `labels` are classes (N,) or tags (N, C); near ties of votes go to the nearer neighbours.
    """
    targets = (F.one_hot(labels, num_classes) if labels.ndim == 1 else labels).float()
    unit = F.normalize(features.float(), dim=1)
    likeness = (unit @ unit.T).fill_diagonal_(-torch.inf)
    values, nearest = likeness.topk(min(NEIGHBOURS, len(features) - 1), dim=1)
    votes = (values.clamp(min=1e-6)[:, :, None] * targets[nearest]).sum(1)
    return error_of(votes.numpy(), labels.numpy())
