"""What images say about a network's channels: moments of the inputs of every consumer, in one pass."""

from functools import cached_property

import torch
from torch import Tensor, nn

from lib.pruning.sites import Site

POSITIONS = 64  # positions a feature map and image that moments are taken from, evenly spread
LEAVES = 400  # discs of a synthetic image: they cover it several times over


class Moments:
    """Samples (rows, C) of what enters a reader, with their mean (C,) and covariance (C, C)."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    @cached_property
    def mean(self) -> Tensor:
        return self.rows.mean(0)

    @cached_property
    def covariance(self) -> Tensor:
        centred = self.rows - self.mean
        return centred.T @ centred / len(centred)


def ridge(covariance: Tensor, share: float) -> Tensor:
    """A covariance made safely invertible: every variance raised by a share of itself.

    So a channel that varies little weighs as little as one that varies much.
    """
    variance = covariance.diagonal()
    return covariance + torch.diag(share * variance + 1e-6 * variance.mean() + 1e-12)


def sampled_rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """At most POSITIONS rows (C,) an image of a reader's input, at evenly spread positions."""
    rows = inputs.flatten(1, -2) if isinstance(layer, nn.Linear) else inputs.flatten(2).transpose(1, 2)
    count = rows.shape[1]
    chosen = torch.linspace(0, count - 1, min(count, POSITIONS)).round().long()
    return rows[:, chosen].flatten(0, 1)


@torch.no_grad()
def reader_moments(network: nn.Module, sites: list[Site], images: Tensor) -> dict[str, Moments]:
    """Moments of the inputs of all readers of `sites` over normalised images (N, 3, H, W), one pass."""
    found: dict[str, Moments] = {}
    handles = []
    for site in sites:
        for reader in site.readers:

            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], name=reader.name):
                found[name] = Moments(sampled_rows(layer, inputs[0]))

            handles.append(network.get_submodule(reader.name).register_forward_pre_hook(hook))
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def synthetic_images(count: int, side: int, seed: int) -> Tensor:
    """Dead leaves (count, 3, side, side), normalised: discs of random size, place and colour that cover
    each other, the statistics of natural images without one (Lee et al., 2001).

    Zero mean and a deviation of a half, roughly that of normalised photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = torch.randn(count, 3, 1, 1, generator=generator).repeat(1, 1, side, side)
    for _ in range(LEAVES):
        # The density of radii falls with their cube: the same at every scale.
        uniform = torch.rand(count, generator=generator)
        smallest, largest = side / 64, side / 2
        radius = (uniform * (largest**-2 - smallest**-2) + smallest**-2).rsqrt()
        centre = torch.rand(2, count, 1, 1, generator=generator) * side
        colour = torch.randn(count, 3, 1, 1, generator=generator) + 0.5 * torch.randn(
            count, 1, 1, 1, generator=generator
        )
        inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius[:, None, None] ** 2
        images = torch.where(inside[:, None], colour, images)
    images = images - images.mean((0, 2, 3), keepdim=True)
    return 0.5 * images / images.std((0, 2, 3), keepdim=True)
