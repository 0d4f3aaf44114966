"""Repairs: gradient-free corrections for what the removed channels contributed.

A repair is one function `Damage` -> None, registered by its name with what it looks at. It changes, in place,
a dense copy whose removed channels are masked; what it changed is then cut down to the pruned network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.pruning.calibrate import Moments, ridge, sampled_rows
from lib.pruning.moments import expected_activation
from lib.pruning.scores import outgoing
from lib.pruning.sites import Consumer, Site

FOLD_SHRINKAGE = 0.5  # how far the correlation of two filters' weights is trusted as that of their outputs


@dataclass
class Damage:
    """A dense copy whose removed channels are masked, with what repairs need to know of it.

    `kept` holds each site's kept indices, `images` are normalised (N, 3, H, W) or None, and `dense` the
    moments of every reader's input before anything was removed, for repairs that need images.
    """

    network: nn.Module
    sites: list[Site]
    kept: dict[str, Tensor]
    images: Tensor | None = None
    dense: dict[str, Moments] | None = None

    def width(self, site: Site) -> int:
        return self.network.get_submodule(site.name).weight.shape[0]

    def removed(self, site: Site) -> Tensor:
        gone = torch.ones(self.width(site), dtype=torch.bool)
        gone[self.kept[site.name]] = False
        return gone.nonzero().flatten()


@dataclass(frozen=True)
class Repair:
    """A repair, and what it looks at: "nothing", "images" or "synthetic" ones, in one forward pass.

    `solves` says that it also needs the dense network's activations and solves for readers' weights.
    """

    correct: Callable[[Damage], None]
    needs: str
    solves: bool


REPAIRS: dict[str, Repair] = {}


def repair(name: str, needs: str = "nothing", solves: bool = False):
    """Register the decorated function as the repair `name`."""

    def register(correct: Callable[[Damage], None]) -> Callable[[Damage], None]:
        REPAIRS[name] = Repair(correct, needs, solves)
        return correct

    return register


def check_repair(name: str) -> None:
    """Raise UserError for an unknown repair."""
    if name not in REPAIRS:
        raise UserError(f"Unknown repair {name!r}: expected one of {', '.join(REPAIRS)}.")


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
        kept, removed = damage.kept[site.name], damage.removed(site)
        correlation = FOLD_SHRINKAGE * _filter_correlation(damage.network, site)
        correlation.fill_diagonal_(1)
        for gated, readers in ((True, site.consumers), (False, site.squeezes)):
            mean, std = expected_activation(damage.network, site, gated)
            covariance = correlation * std * std[:, None]
            merge = torch.linalg.solve(ridge(covariance[kept][:, kept]), covariance[kept][:, removed]).T
            for reader in readers:
                _shift(damage.network, reader, removed, mean[removed] - merge @ mean[kept])
                _merge(damage.network, reader, kept, removed, merge)


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
    """Consumers' weights re-fitted so that the kept channels stand in for all (He et al., Channel pruning
    for accelerating very deep networks, 2017).

    In one pass from the image on: at each reader, every dense channel is written as a linear function of
    the kept ones as they are now, after the repairs upstream. Ridge pulls it towards keeping each channel
    as it is, so that few images do not make weights that fine-tuning cannot live with.
    """
    handles = []
    for site in damage.sites:
        for reader in site.readers:

            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], site=site, reader=reader) -> None:
                kept, width = damage.kept[site.name], damage.width(site)
                now = Moments(sampled_rows(layer, inputs[0])[:, kept])
                lost = damage.dense[reader.name].rows.clone()
                lost[:, kept] -= now.rows
                cross = (now.rows - now.mean).T @ (lost - lost.mean(0)) / len(lost)
                merge = torch.linalg.solve(ridge(now.covariance), cross).T
                everything = torch.arange(width)
                # The shift first: it is of what the reader's weights make of the channels before the fit.
                _shift(damage.network, reader, everything, lost.mean(0) - merge @ now.mean)
                _merge(damage.network, reader, kept, everything, merge)

            handles.append(damage.network.get_submodule(reader.name).register_forward_pre_hook(hook))
    try:
        damage.network(damage.images)
    finally:
        for handle in handles:
            handle.remove()


@repair("bn", needs="images")
@torch.no_grad()
def _bn(damage: Damage) -> None:
    """Batch norms' statistics estimated anew on the images, layer after layer."""
    norms = [module for module in damage.network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of what it sees
        norm.train()
    damage.network(damage.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _shift(network: nn.Module, reader: Consumer, channels: Tensor, values: Tensor) -> None:
    """Let a reader's output be what it would be if `channels` also carried the constant `values`."""
    layer = network.get_submodule(reader.name)
    gained = outgoing(network, reader.name).sum(2)[:, channels] @ values
    if layer.bias is not None:
        layer.bias += gained
    elif reader.norm is not None:
        network.get_submodule(reader.norm).running_mean -= gained
    else:
        raise UserError(
            f"{reader.name} has neither a bias nor a batch norm behind it to repair: choose repair='none'."
        )


def _merge(network: nn.Module, reader: Consumer, kept: Tensor, channels: Tensor, merge: Tensor) -> None:
    """Let the `kept` channels also carry `channels`, taken as `merge` (channels, kept) times the kept."""
    weight = outgoing(network, reader.name)  # a view: written to below
    weight[:, kept] += torch.einsum("oct,ck->okt", weight[:, channels], merge)


def solving_macs(network: nn.Module, reader: Consumer, dense: Moments, kept: int) -> int:
    """MACs of fitting one reader by least squares: moments, the solve, and the new weights."""
    rows, width = dense.rows.shape
    weights = network.get_submodule(reader.name).weight.numel()
    return rows * kept * (kept + width) + kept**3 // 3 + kept**2 * width + weights * kept
