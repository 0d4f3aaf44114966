"""Repairs: gradient-free corrections for what the removed channels contributed.

A repair is one function `Damage` -> None, registered by its name with what it looks at. It changes, in place,
a dense copy whose removed channels are masked; what it changed is then cut down to the pruned network. Or it
changes the pruned network itself: lib/pruning/sequential.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib.common.errors import UserError
from lib.pruning.criteria import outgoing
from lib.pruning.sites import Consumer, Site, width_of
from lib.pruning.statistics import Moments, expected_activation, reestimate_norms, ridge

REFIT_RIDGE = 0.003  # of each variance
LARGEST_GAIN = 1.5  # in restoring an output's deviation
FOLD_SHRINKAGE = 0.5  # how far the correlation of two filters' weights is trusted as that of their outputs


@dataclass
class Damage:
    """A dense copy whose removed channels are masked, with what repairs need to know of it.

    `kept` holds each site's kept indices, `images` are normalised (N, 3, H, W) or None, and `dense` the
    moments of every reader's input before anything was removed, for repairs that solve. A repair that works
    on what is cut has the pruned `network` and the `original` one. `macs` is what solving took.
    """

    network: nn.Module
    sites: list[Site]
    kept: dict[str, Tensor]
    images: Tensor | None = None
    dense: dict[str, Moments] = field(default_factory=dict)
    original: nn.Module | None = None
    macs: int = 0

    def removed(self, site: Site) -> Tensor:
        gone = torch.ones(width_of(self.network, site), dtype=torch.bool)
        gone[self.kept[site.name]] = False
        return gone.nonzero().flatten()


Correct = Callable[[Damage], None]


@dataclass(frozen=True)
class Repair:
    """A repair, and what it looks at: "nothing", "images" or "synthetic" ones.

    It looks at them in one forward pass of the damaged network, of the dense one where it `solves` for the
    weights of readers, or of both where it works on the network that is `cut`.
    """

    correct: Correct
    needs: str
    solves: bool
    cut: bool


REPAIRS: dict[str, Repair] = {}


def repair(name: str, needs: str = "nothing", solves: bool = False, cut: bool = False) -> Callable[[Correct], Correct]:
    """Register the decorated function as the repair `name`."""

    def register(correct: Correct) -> Correct:
        REPAIRS[name] = Repair(correct, needs, solves, cut)
        return correct

    return register


@repair("none")
def _none(damage: Damage) -> None:
    """The removed channels are taken as zero."""


@repair("mean")
@torch.no_grad()
def _mean(damage: Damage) -> None:
    """The removed channels' expected contribution moves into the next batch norm or bias.

    Needs the weights alone. Exact for a 1x1 consumer and constant channels; a larger kernel's padding
    at the border is not accounted for.
    """
    for site in damage.sites:
        removed = damage.removed(site)
        for gated, readers in ((True, site.consumers), (False, site.squeezes)):
            lost, _ = expected_activation(damage.network, site, gated)
            for reader in readers:
                _shift(damage.network, reader, removed, lost[removed])


@repair("fold")
@torch.no_grad()
def _fold(damage: Damage) -> None:
    """Removed filters are merged into the kept ones that resemble them; what is left is `mean`.

    Needs the weights alone: two channels' outputs are taken to correlate as their filters do, and their
    moments are those that the norms give.
    """
    for site in damage.sites:
        correlation = FOLD_SHRINKAGE * _filter_correlation(damage.network, site)
        correlation.fill_diagonal_(1)
        for gated, readers in ((True, site.consumers), (False, site.squeezes)):
            mean, std = expected_activation(damage.network, site, gated)
            covariance = correlation * std * std[:, None]
            for reader in readers:
                _stand_in(damage, site, reader, mean, covariance)


def _filter_correlation(network: nn.Module, site: Site) -> Tensor:
    """Cosines (C, C) of the site's filters; those of depthwise kernels that follow are multiplied in."""
    grouped = [name for name in site.carriers if isinstance(network.get_submodule(name), nn.Conv2d)]
    cosines = torch.ones(())
    for name in (site.name, *grouped):
        filters = nn.functional.normalize(network.get_submodule(name).weight.flatten(1), dim=1)
        cosines = cosines * (filters @ filters.T)
    for name in site.norms:
        sign = network.get_submodule(name).weight.sign()
        cosines = cosines * sign * sign[:, None]
    return cosines


@repair("least_squares", needs="images", solves=True)
@repair("least_squares_synthetic", needs="synthetic", solves=True)
@torch.no_grad()
def _least_squares(damage: Damage) -> None:
    """Readers' weights re-fitted so that the kept channels stand in for all (in the way of He et al., Channel
    pruning for accelerating very deep networks, 2017).

    Least squares draws outputs towards their means, so their deviations are restored.
    """
    for site in damage.sites:
        kept = damage.kept[site.name]
        for reader in site.readers:
            inputs = damage.dense[reader.name]
            before = _variance(damage.network, reader, inputs.covariance)
            _stand_in(damage, site, reader, inputs.mean, inputs.covariance)
            _restore_variance(damage.network, reader, kept, inputs.mean, inputs.covariance, before)
            # Moments, the solve, and the new weights.
            rows, width, left = inputs.rows, len(inputs.mean), len(kept)
            weights = damage.network.get_submodule(reader.name).weight.numel()
            damage.macs += rows * left * (left + width) + left**3 // 3 + left**2 * width + weights * left


@repair("bn", needs="images")
def _bn(damage: Damage) -> None:
    """Batch norms' statistics estimated anew on the images, layer after layer."""
    reestimate_norms(damage.network, damage.images)


def _stand_in(damage: Damage, site: Site, reader: Consumer, mean: Tensor, covariance: Tensor) -> None:
    """Let a reader take the removed channels as linear functions of the kept ones, their best guess given the
    channels' mean (C,) and covariance (C, C)."""
    kept, removed = damage.kept[site.name], damage.removed(site)
    known = ridge(covariance[kept][:, kept], REFIT_RIDGE)
    merge = torch.linalg.solve(known, covariance[kept][:, removed]).T
    _shift(damage.network, reader, removed, mean[removed] - merge @ mean[kept])
    _merge(damage.network, reader, kept, removed, merge)


def _variance(network: nn.Module, reader: Consumer, covariance: Tensor) -> Tensor:
    """Variance (out,) of a reader's outputs; the taps of a kernel are taken as independent."""
    weight = outgoing(network, reader.name)
    return torch.einsum("oct,cd,odt->o", weight, covariance, weight)


def _restore_variance(
    network: nn.Module, reader: Consumer, kept: Tensor, mean: Tensor, covariance: Tensor, before: Tensor
) -> None:
    """Scale a reader's weights so that its outputs vary as `before` (out,), about the same mean."""
    weight = outgoing(network, reader.name)
    masked = torch.zeros_like(covariance)
    masked[kept[:, None], kept] = covariance[kept][:, kept]
    after = _variance(network, reader, masked).clamp(min=1e-12)
    gain = (before / after).sqrt().clamp(1, LARGEST_GAIN)
    gained = (weight.sum(2)[:, kept] @ mean[kept]) * (1 - gain)
    weight *= gain[:, None, None]
    _raise_output(network, reader, gained)


def _shift(network: nn.Module, reader: Consumer, channels: Tensor, values: Tensor) -> None:
    """Let a reader's output be what it would be if `channels` also carried the constant `values`."""
    _raise_output(network, reader, outgoing(network, reader.name).sum(2)[:, channels] @ values)


def _raise_output(network: nn.Module, reader: Consumer, gained: Tensor) -> None:
    """Add the constant `gained` (out,) to a reader's output."""
    layer = network.get_submodule(reader.name)
    if layer.bias is not None:
        layer.bias += gained
    elif reader.norm is not None:
        network.get_submodule(reader.norm).running_mean -= gained
    else:
        raise UserError(f"{reader.name} has neither a bias nor a batch norm behind it to repair: choose repair='none'.")


def _merge(network: nn.Module, reader: Consumer, kept: Tensor, channels: Tensor, merge: Tensor) -> None:
    """Let the `kept` channels also carry `channels`, taken as `merge` (channels, kept) times the kept."""
    weight = outgoing(network, reader.name)  # a view: written to below
    weight[:, kept] += torch.einsum("oct,ck->okt", weight[:, channels], merge)
