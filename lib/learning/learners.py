"""How a stream is learnt. Every learner gets a job: a task, a budget, the pretrained, pruned network."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.learning.job import Job
from lib.learning.probe import affordable_probe, probe_macs, probed, stratified
from lib.learning.search import search
from lib.learning.training import Diverged, Recipe, TaskNetwork, error_of, fine_tune, representation
from lib.networks.backbone import Backbone
from lib.networks.macs import forward_macs
from lib.pruning.sites import last_stage_of
from lib.streams.task import are_tags

PRETRAINED = "pretrained"  # where a network started from, unless it is an event
TOO_SMALL = "the budget is too small for two images"
NEIGHBOURS = 5
PIXELS = 32
COMPARED_IMAGES, LEAST_COMPARED_IMAGES = 64, 16


@dataclass(frozen=True)
class Learnt:
    """What came out: the network, the steps it took with which recipe, and what it started from.

    A note says what went wrong; the network is then as it was before training, its head zero. `frozen` is the backbone
    whose body the network has, where that was not trained.
    """

    network: TaskNetwork
    steps: int = 0
    recipe: Recipe | None = None
    started_from: int | str = PRETRAINED
    note: str = ""
    frozen: Backbone | None = None


Learn = Callable[[Job], Learnt]


@dataclass(frozen=True)
class Learner:
    """A way to learn, how many of the last tasks' networks it looks at, and whether it fine-tunes."""

    learn: Learn
    remembers: int
    fine_tunes: bool


LEARNERS: dict[str, Learner] = {}


def learner(name: str, remembers: int = 0, fine_tunes: bool = True) -> Callable[[Learn], Learn]:
    """Register the decorated function as the learner `name`. It charges all that it computes."""

    def register(learn: Learn) -> Learn:
        LEARNERS[name] = Learner(learn, remembers, fine_tunes)
        return learn

    return register


@learner("independent")
def independent(job: Job) -> Learnt:
    """Each task alone, from the pretrained, pruned network."""
    return _fine_tuned(job, TaskNetwork(job.start, job.task.num_classes))


@learner("previous", remembers=1)
def previous(job: Job) -> Learnt:
    """Each task from the network that the last one left behind."""
    last = next(iter(job.memory.events_before(job.event)), PRETRAINED)
    network = TaskNetwork(_candidate(job, last), job.task.num_classes)
    return _fine_tuned(job, network, last)


@learner("dynamic", remembers=7)
def dynamic(job: Job) -> Learnt:
    """Each task from that network, of the pretrained one and the last seven, which fits it best.

    Fit is the error of nearest neighbours on a few training images, each left out once: what Nevis'22's
    dynamic learner goes by, too. The comparison takes a quarter of the budget at most.
    """
    forward, width = forward_macs(job.start, job.image_size), job.start.feature_dim
    known = 1 + len(job.memory.events_before(job.event))
    most = min(COMPARED_IMAGES, len(job.data.train))
    spendable = min(job.ledger.limit // 4, job.ledger.left)
    compared, images = comparison_plan(known, most, partial(_comparison_macs, forward, width), spendable)
    candidates = [PRETRAINED, *job.memory.events_before(job.event)][:compared]
    few = stratified(job.data.train, images)

    def misfit(candidate: int | str) -> float:
        job.ledger.charge("comparison", _comparison_macs(forward, width, images))
        features = representation(_candidate(job, candidate), few, job.engine)
        return neighbours_error(features, few.labels, job.task.num_classes)

    # Ties go to the pretrained network, then to the latest event.
    best = min(candidates, key=misfit) if compared > 1 else PRETRAINED
    return _fine_tuned(job, TaskNetwork(_candidate(job, best), job.task.num_classes), best)


@learner("probe", fine_tunes=False)
def probe(job: Job) -> Learnt:
    """A linear head on the frozen network, on all training images, or as many as the budget pays for."""
    network, images = _probed(job, job.start, job.ledger.left)
    return Learnt(network, note="" if images else TOO_SMALL, frozen=job.start)


@learner("probe_finetune")
def probe_finetune(job: Job) -> Learnt:
    """The head of `probe` first, for at most half of the budget, then everything (Kumar et al., 2022)."""
    network, images = _probed(job, job.start, job.ledger.left // 2)
    recipe = replace(job.recipe, frozen_norms=images > 0)
    return _fine_tuned(replace(job, recipe=recipe), network)


@learner("last_stage")
def last_stage(job: Job) -> Learnt:
    """The last stage and the head alone: backward ends there."""
    network = TaskNetwork(job.start, job.task.num_classes)
    trained = last_stage_of(job.start)
    for name, parameter in network.body.named_parameters():
        parameter.requires_grad_(f"body.{name}" in trained)
    return _fine_tuned(job, network)


@learner("norms")
def norms(job: Job) -> Learnt:
    """The scales and shifts of batch norms, and the head (in the way of Frankle et al., 2021)."""
    network = TaskNetwork(job.start, job.task.num_classes)
    network.body.requires_grad_(False)
    for module in network.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(True)
    return _fine_tuned(job, network)


@learner("pixels", fine_tunes=False)
def pixels(job: Job) -> Learnt:
    """A control: the head of `probe` on raw pixels, 32 a side."""
    body = nn.Sequential(nn.AdaptiveAvgPool2d(PIXELS), nn.Flatten())
    start = job.start
    raw = Backbone("pixels", body, None, start.image_size, start.mean, start.std, feature_dim=3 * PIXELS**2)
    network, images = _probed(job, raw, job.ledger.left)
    return Learnt(network, note="" if images else TOO_SMALL)


@learner("majority", fine_tunes=False)
def majority(job: Job) -> Learnt:
    """A control: the most frequent class, or each tag by its frequency. It computes nothing."""
    network = TaskNetwork(job.start, job.task.num_classes)
    labels = job.data.train.labels
    counts = labels.sum(0) if are_tags(labels) else torch.bincount(labels, minlength=job.task.num_classes)
    with torch.no_grad():
        network.head.bias.copy_(counts / len(labels))
    return Learnt(network, frozen=job.start)


def _candidate(job: Job, origin: int | str) -> Backbone:
    """The pretrained, pruned network, or the one that an event left behind."""
    return job.start if isinstance(origin, str) else job.memory.network_of(origin)


def comparison_plan(candidates: int, most: int, cost: Callable[[int], int], macs: int) -> tuple[int, int]:
    """How many candidates `macs` pay to compare, and on how many images each: `most` or fewer.

    `cost` is that of one candidate by images. As many candidates as get LEAST_COMPARED_IMAGES, then as many
    images as fit; one candidate, which needs no comparison, where not even two get so many.
    """
    plans = (
        (compared, bisect_right(range(most + 1), macs // compared, key=cost) - 1)
        for compared in range(candidates, 1, -1)
    )
    return next((plan for plan in plans if plan[1] >= LEAST_COMPARED_IMAGES), (1, 0))


def _comparison_macs(forward: int, width: int, images: int) -> int:
    """MACs of the representation of `images` images and of the likeness of each to each."""
    return images * forward + images**2 * width


def _probed(job: Job, start: Backbone, macs: int) -> tuple[TaskNetwork, int]:
    """`start` under a head solved on so many images, or of zeros where `macs` pay for none."""
    sizes = forward_macs(start, job.image_size), start.feature_dim, job.task.num_classes
    images = affordable_probe(*sizes, len(job.data.train), macs)
    if images == 0:
        return TaskNetwork(start, job.task.num_classes), 0
    job.ledger.charge("probe", probe_macs(*sizes, images))
    chosen = stratified(job.data.train, images)
    return probed(start, chosen, job.task.num_classes, job.engine), images


def _fine_tuned(job: Job, network: TaskNetwork, started_from: int | str = PRETRAINED) -> Learnt:
    """Search a recipe where trials are asked for, then train with all that is left."""
    recipe, note = search(network, job)
    train, seed = job.data.train, job.seed
    try:
        steps = fine_tune(network, train, job.ledger, recipe, job.engine, seed=seed, checkpoints=job.checkpoints)
    except Diverged as error:
        untrained = TaskNetwork(job.start, job.task.num_classes)
        return Learnt(untrained, error.steps, recipe, started_from, note=str(error))
    if steps == 0 and job.ledger.spent.get("probe", 0) == 0:
        return Learnt(network, started_from=started_from, note=TOO_SMALL)
    return Learnt(network, steps, recipe if steps else None, started_from, note)


def neighbours_error(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """The error of the nearest neighbours by cosine, each image of features (N, D) left out once.

    `labels` are classes (N,) or tags (N, C); near ties of votes go to the nearer neighbours.
    """
    targets = (labels if are_tags(labels) else F.one_hot(labels, num_classes)).float()
    unit = F.normalize(features.float(), dim=1)
    likeness = (unit @ unit.T).fill_diagonal_(-torch.inf)
    values, nearest = likeness.topk(min(NEIGHBOURS, len(features) - 1), dim=1)
    votes = (values.clamp(min=1e-6)[:, :, None] * targets[nearest]).sum(1)
    return error_of(votes.numpy(), labels.numpy())
