"""Criteria: how the filters of a site are ranked before any training. A higher score is kept.

A criterion is one function (network, site, generator) -> scores (C,), registered by its name; all of
them need the weights alone and no data.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.pruning.sites import Site

Criterion = Callable[[nn.Module, Site, torch.Generator], Tensor]
CRITERIA: dict[str, Criterion] = {}


def criterion(name: str):
    """Register the decorated function as the criterion `name`."""

    def register(score: Criterion) -> Criterion:
        CRITERIA[name] = score
        return score

    return register


def score_filters(network: nn.Module, site: Site, name: str, seed: int) -> Tensor:
    """Scores (C,) of a site's filters under the criterion `name`.

    Raises UserError for an unknown criterion.
    """
    if name not in CRITERIA:
        raise UserError(f"Unknown criterion {name!r}: expected one of {', '.join(CRITERIA)}.")
    with torch.no_grad():
        return CRITERIA[name](network, site, torch.Generator().manual_seed(seed))


def gaussian_moments(
    activation: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of activation(N(mean, std)), by integration over +-6 std."""
    z = torch.linspace(-6, 6, 481, dtype=torch.float64)
    weights = torch.exp(-(z**2) / 2)
    weights = weights / weights.sum()
    values = activation(mean.double()[:, None] + std.double()[:, None] * z)
    first = values @ weights
    second = ((values - first[:, None]) ** 2) @ weights
    return first.to(mean.dtype), second.sqrt().to(mean.dtype)


def expected_activation(network: nn.Module, site: Site) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of what the site's channels bring to the consumer.

    A batch norm's output is taken as normal with its bias as mean and its scale as deviation.
    """
    norm = network.get_submodule(site.last_norm)
    return gaussian_moments(site.activation, norm.bias, norm.weight.abs())


@criterion("activation")
def _activation(network: nn.Module, site: Site, generator: torch.Generator) -> Tensor:
    """Deviation of the channel's expected activation times the norm of its outgoing weights."""
    _, deviation = expected_activation(network, site)
    consumer = network.get_submodule(site.consumer).weight
    return deviation * consumer.transpose(0, 1).flatten(1).norm(dim=1)


@criterion("l1")
def _l1(network: nn.Module, site: Site, generator: torch.Generator) -> Tensor:
    """Sum of a filter's absolute weights (Li et al., Pruning filters for efficient ConvNets, 2017)."""
    return network.get_submodule(site.producer).weight.flatten(1).abs().sum(1)


@criterion("l2")
def _l2(network: nn.Module, site: Site, generator: torch.Generator) -> Tensor:
    """Euclidean norm of a filter's weights."""
    return network.get_submodule(site.producer).weight.flatten(1).norm(dim=1)


@criterion("random")
def _random(network: nn.Module, site: Site, generator: torch.Generator) -> Tensor:
    """A random order, the baseline that any criterion has to beat."""
    filters = network.get_submodule(site.producer).out_channels
    return torch.rand(filters, generator=generator)
