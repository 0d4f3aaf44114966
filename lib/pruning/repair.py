"""Repairs: gradient-free corrections for what the removed channels contributed.

A repair is one function (dense network, site, removed) -> None that changes the still dense network in
place just before `removed` (indices) leave the site, registered by its name. `none` does nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.pruning.scores import expected_activation
from lib.pruning.sites import Site

Repair = Callable[[nn.Module, Site, Tensor], None]
REPAIRS: dict[str, Repair] = {}


def repair(name: str):
    """Register the decorated function as the repair `name`."""

    def register(correct: Repair) -> Repair:
        REPAIRS[name] = correct
        return correct

    return register


def check_repair(name: str) -> None:
    """Raise UserError for an unknown repair."""
    if name not in REPAIRS:
        raise UserError(f"Unknown repair {name!r}: expected one of {', '.join(REPAIRS)}.")


@repair("none")
def _none(network: nn.Module, site: Site, removed: Tensor) -> None:
    """The removed channels are taken as zero."""


@repair("mean")
@torch.no_grad()
def _mean(network: nn.Module, site: Site, removed: Tensor) -> None:
    """The removed channels' expected contribution moves into the consumer's batch norm.

    Needs the weights alone. Exact for a 1x1 consumer and constant channels; a larger kernel's padding
    at the border is not accounted for.
    """
    mean, _ = expected_activation(network, site)
    taps = network.get_submodule(site.consumer).weight.flatten(2).sum(2)
    network.get_submodule(site.consumer_norm).running_mean -= taps[:, removed] @ mean[removed]
