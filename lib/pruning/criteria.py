"""Criteria: how the filters of a site are ranked before any training. A higher score is kept.

A criterion is one function `Evidence` -> scores (C,), registered by its name with the data it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib.common.errors import UserError
from lib.pruning.sites import Consumer, Site
from lib.pruning.statistics import Moments, expected_activation, ridge

SMALLEST = 1e-30  # what is divided by, so that nothing of nothing is nothing


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at: the network, the site, a generator, and, where it needs images, the
    moments of what enters each of the site's consumers."""

    network: nn.Module
    site: Site
    generator: torch.Generator
    inputs: dict[str, Moments] = field(default_factory=dict)

    @property
    def filters(self) -> Tensor:
        """The producers' weights of each filter, flat (C, F)."""
        return torch.cat([self.network.get_submodule(name).weight.flatten(1) for name in self.site.producers], dim=1)


def outgoing(network: nn.Module, consumer: str) -> Tensor:
    """A view of a consumer's weights by input channel, (out, C, taps)."""
    weight = network.get_submodule(consumer).weight
    return weight.flatten(2) if weight.ndim == 4 else weight[..., None]


def normed_weights(network: nn.Module, consumer: Consumer) -> Tensor:
    """A consumer's weights (out, C, taps) times the scale that its batch norm, if any, gives each output."""
    weight = outgoing(network, consumer.name)
    if consumer.norm is None:
        return weight
    norm = network.get_submodule(consumer.norm)
    return weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]


def sensitivity(network: nn.Module, site: Site) -> float:
    """How much the representation feels noise in the site's block, from the batch norms' scales alone.

    That is the block's share of the variance of the residual stream behind it, to the power of 1.5: noise put
    into one block after the other of EfficientNet-Lite0 follows that. 1 where there are no batch norms.
    """
    own, residual = (
        sum(network.get_submodule(name).weight.square().sum().item() for name in norms)
        for norms in (site.branch, site.residual)
    )
    return (own / max(residual, SMALLEST)) ** 1.5 if site.branch else 1.0


Score = Callable[[Evidence], Tensor]


@dataclass(frozen=True)
class Criterion:
    """A criterion, whether it needs images, and whether its scores compare across sites as they are."""

    score: Score
    needs_images: bool
    comparable: bool


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, needs_images: bool = False, comparable: bool = False) -> Callable[[Score], Score]:
    """Register the decorated function as the criterion `name`."""

    def register(score: Score) -> Score:
        CRITERIA[name] = Criterion(score, needs_images, comparable)
        return score

    return register


@torch.no_grad()
def score_filters(evidence: Evidence, name: str) -> Tensor:
    """Scores (C,) of a site's filters, the same for all filters of a unit.

    Scores that are not comparable across sites are given as multiples of the site's mean.
    """
    scores = CRITERIA[name].score(evidence).double()
    if not scores.isfinite().all():
        raise UserError(
            f"criterion={name!r} gives {evidence.site.name} scores that are not finite: expected a network "
            "with finite weights."
        )
    unit = evidence.site.unit
    if unit > 1:
        scores = scores.unflatten(0, (-1, unit)).mean(1).repeat_interleave(unit)
    return scores if CRITERIA[name].comparable else scores / scores.mean().clamp(min=SMALLEST)


@criterion("activation", comparable=True)
def _activation(evidence: Evidence) -> Tensor:
    """Variance that the channel's expected activation brings to its consumers' outputs, as a share of theirs,
    times the sensitivity to the block."""
    network, site = evidence.network, evidence.site
    _, deviation = expected_activation(network, site)
    shares = []
    for consumer in site.consumers:
        norms = normed_weights(network, consumer).square().sum((0, 2))
        if consumer.norm is None:
            variance = norms @ deviation.square()  # of the consumer's outputs
        else:
            variance = network.get_submodule(consumer.norm).weight.square().sum()
        shares.append(norms / variance.clamp(min=SMALLEST))
    return deviation.square() * torch.stack(shares).mean(0) * sensitivity(network, site)


@criterion("activation_images", needs_images=True, comparable=True)
def _activation_images(evidence: Evidence) -> Tensor:
    """What the consumers' output loses when the channel goes and those that stay make up for it.

    Channels are eliminated one after the other, the cheapest first, the others' outgoing weights
    re-fitted by least squares each time, as Optimal Brain Surgeon does for weights (Hassibi and Stork,
    1993). The score is the loss of the step that removes the channel, as a share of the variance of the
    consumers' output on the images, times the sensitivity to the block.
    """
    network, losses = evidence.network, []
    for consumer in evidence.site.consumers:
        covariance = evidence.inputs[consumer.name].covariance.double()
        losses.append(_eliminate(normed_weights(network, consumer).double(), covariance))
    return torch.stack(losses).mean(0) * sensitivity(network, evidence.site)


ELIMINATION_RIDGE = 0.1  # of each variance: a thousand positions do not tell hundreds of channels apart
ROUNDS = 64  # of elimination; within a round the order is greedy among twice the channels that go


def _eliminate(weight: Tensor, covariance: Tensor) -> Tensor:
    """Losses (C,) of backward elimination: weights (out, C, taps), covariance (C, C) of the inputs.

    With P the inverse of the covariance of the channels that are left and w_i a column of the weights W,
    channel i costs |w_i|^2 / P_ii; without it, W is W - w_i P_i / P_ii, and P is P - P_i' P_i / P_ii.
    """
    width = len(covariance)
    variance = torch.einsum("oct,cd,odt->", weight, covariance, weight).clamp(min=SMALLEST)
    precision = torch.linalg.inv(ridge(covariance, ELIMINATION_RIDGE))
    weight = weight.transpose(1, 2).flatten(0, 1).clone()  # (out * taps, C)
    losses = torch.full((width,), torch.inf, dtype=weight.dtype)
    alive = torch.ones(width, dtype=torch.bool)
    together, highest = -(-width // ROUNDS), 0.0
    while left := int(alive.sum()):
        # A round chooses on the likeliest channels' small matrices, then changes the whole ones at once.
        loss = weight.square().sum(0) / precision.diagonal().clamp(min=SMALLEST)
        likely = torch.where(alive, loss, torch.inf).topk(min(2 * together, left), largest=False).indices
        gram, small = weight[:, likely].T @ weight[:, likely], precision[likely][:, likely]
        order, costs = _greedy_round(gram, small, min(together, left))
        gone = likely[order]
        for channel, cost in zip(gone.tolist(), costs, strict=True):
            highest = max(highest, cost)  # greedy steps may get cheaper; the order counts
            losses[channel] = highest
        alive[gone] = False
        made_up = torch.linalg.solve(precision[gone][:, gone], precision[gone])
        weight -= weight[:, gone] @ made_up
        precision -= precision[:, gone] @ made_up
    return losses / variance


def _greedy_round(gram: Tensor, precision: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The `count` cheapest of a few channels, one after the other, and what each costs.

    `gram` is W'W and `precision` P of these channels alone; both follow from W and P after each step.
    """
    order: list[int] = []
    costs: list[float] = []
    for _ in range(count):
        cost = gram.diagonal() / precision.diagonal().clamp(min=SMALLEST)
        cost[order] = torch.inf
        pick = int(cost.argmin())
        order.append(pick)
        costs.append(float(cost[pick]))
        row, column = precision[pick] / precision[pick, pick], gram[pick]
        both = torch.outer(row, column)
        gram = gram - both - both.T + column[pick] * torch.outer(row, row)
        precision = precision - torch.outer(precision[:, pick], row)
    return order, costs


def elimination_macs(network: nn.Module, consumer: Consumer, inputs: Moments) -> int:
    """MACs of `activation_images` at one consumer: covariance, inverse, and the eliminations."""
    width, weights = len(inputs.mean), network.get_submodule(consumer.name).weight.numel()
    return inputs.rows * width**2 + 2 * width**3 + width * weights


@criterion("l1")
def _l1(evidence: Evidence) -> Tensor:
    """Sum of a filter's absolute weights (Li et al., Pruning filters for efficient ConvNets, 2017)."""
    return evidence.filters.norm(p=1, dim=1)


@criterion("l2")
def _l2(evidence: Evidence) -> Tensor:
    """Euclidean norm of a filter's weights."""
    return evidence.filters.norm(dim=1)


@criterion("bn_scale")
def _bn_scale(evidence: Evidence) -> Tensor:
    """Absolute scale of the batch norm before the consumer (Liu et al., Network slimming, 2017)."""
    if not evidence.site.norms:
        raise UserError(
            f"criterion='bn_scale' needs a batch norm at {evidence.site.name}, and there is none: choose "
            "another criterion, such as 'l1'."
        )
    scales = [evidence.network.get_submodule(name).weight.abs() for name in evidence.site.norms]
    return torch.stack(scales).sum(0)


@criterion("fpgm")
def _fpgm(evidence: Evidence) -> Tensor:
    """Sum of distances to the site's other filters: those near the geometric median are replaceable
    (He et al., Filter pruning via geometric median, 2019)."""
    return torch.cdist(evidence.filters, evidence.filters).sum(1)


@criterion("lamp", comparable=True)
def _lamp(evidence: Evidence) -> Tensor:
    """A filter's squared norm as a share of that of all filters of the site that are no smaller
    (Lee et al., Layer-adaptive sparsity for magnitude-based pruning, 2021)."""
    squares = evidence.filters.square().sum(1)
    ascending = squares.sort()
    no_smaller = ascending.values.flip(0).cumsum(0).flip(0).clamp(min=SMALLEST)
    return torch.empty_like(squares).scatter(0, ascending.indices, ascending.values / no_smaller)


@criterion("random")
def _random(evidence: Evidence) -> Tensor:
    """A random order, the baseline that any criterion has to beat."""
    return torch.rand(len(evidence.filters), generator=evidence.generator)
