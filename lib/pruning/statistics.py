"""What images say about a network's channels: moments of the inputs of every consumer, in one pass."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.common.errors import UserError
from lib.pruning.sites import Site

POSITIONS = 64  # positions a feature map and image that moments are taken from, evenly spread
AT_ONCE = 32  # images that are looked at together: more take more memory, and no less time
LEAVES = 400  # discs of a synthetic image: they cover it several times over


@dataclass(frozen=True)
class Moments:
    """Mean (C,) and covariance (C, C) of what enters a reader, over so many `rows`."""

    mean: Tensor
    covariance: Tensor
    rows: int


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
    rows: dict[str, Tensor] = {}
    seen = 0

    def look(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = sampled_rows(layer, inputs[0])
        each = len(found) // len(inputs[0])
        if name not in rows:
            rows[name] = found.new_empty(each * len(images), found.shape[1])
        rows[name][each * seen :][: len(found)] = found

    with ExitStack() as hooks:
        for name in (reader.name for site in sites for reader in site.readers):
            hooks.enter_context(network.get_submodule(name).register_forward_pre_hook(partial(look, name)))
        for batch in images.split(AT_ONCE):
            network(batch)
            seen += len(batch)
    found = {}
    for name in list(rows):  # none is needed any longer
        count, mean = len(rows[name]), rows[name].mean(0)
        centred = rows.pop(name).sub_(mean)
        found[name] = Moments(mean, centred.T @ centred / count, count)
        if not found[name].covariance.isfinite().all():
            raise UserError(
                f"The images lead to values that are not finite at {name}: expected images normalised as the "
                "network's are, and finite weights."
            )
    return found


@torch.no_grad()
def reestimate_norms(network: nn.Module, images: Tensor) -> None:
    """Set batch norms' statistics, in place, to those of normalised images (N, 3, H, W), in one pass."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of what it sees
        norm.train()
    try:
        network(images)
    except ValueError as error:  # a batch norm that sees one value per channel
        raise UserError(
            f"{len(images)} image(s) of {images.shape[-1]} px are too few to estimate norms from: give more."
        ) from error
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


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
        colour = torch.randn(count, 3, 1, 1, generator=generator)
        colour = colour + 0.5 * torch.randn(count, 1, 1, 1, generator=generator)
        inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius[:, None, None] ** 2
        images = torch.where(inside[:, None], colour, images)
    images = images - images.mean((0, 2, 3), keepdim=True)
    return 0.5 * images / images.std((0, 2, 3), keepdim=True)


def gaussian_moments(activation: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of activation(N(mean, std)), by integration over +-6 std."""
    z = torch.linspace(-6, 6, 481, dtype=torch.float64)
    weights = torch.exp(-(z**2) / 2)
    weights = weights / weights.sum()
    values = activation(mean.double()[:, None] + std.double()[:, None] * z)
    first = values @ weights
    second = ((values - first[:, None]) ** 2) @ weights
    return first.to(mean.dtype), second.sqrt().to(mean.dtype)


@torch.no_grad()
def expected_activation(network: nn.Module, site: Site, gated: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of what the site's channels bring to the consumer.

    A batch norm's output is taken as normal with its bias as mean and its scale as deviation, the sum of
    several as of independent ones; a linear layer behind a layer norm likewise. Squeeze-excite is taken
    at the gate that the expected activation gives; `gated=False` leaves it out. Raises UserError for a
    site without any norm.
    """
    mean, std = _before_activation(network, site)
    activation = network.get_submodule(site.activation) if site.activation else nn.Identity()
    mean, std = gaussian_moments(activation, mean, std)
    if gated:
        for squeeze in site.squeezes:
            gate = _gate(network.get_submodule(squeeze.name.rpartition(".")[0]), mean, squeeze.name)
            mean, std = mean * gate, std * gate
    return mean, std


def _before_activation(network: nn.Module, site: Site) -> tuple[Tensor, Tensor]:
    if site.norms:
        norms = [network.get_submodule(name) for name in site.norms]
        variance = torch.stack([norm.weight.square() for norm in norms]).sum(0)
        return torch.stack([norm.bias for norm in norms]).sum(0), variance.sqrt()
    if site.input_norm is None:
        raise UserError(
            f"There is no norm at {site.name} that tells what its channels carry: choose a criterion that "
            "looks at weights alone, such as 'l1', and repair='none'."
        )
    norm, producer = network.get_submodule(site.input_norm), network.get_submodule(site.name)
    weight = producer.weight.flatten(1)  # ConvNeXt's may be a 1x1 convolution
    mean = weight @ norm.bias
    mean = mean if producer.bias is None else mean + producer.bias
    return mean, (weight * norm.weight).norm(dim=1)


def _gate(excite: nn.Module, mean: Tensor, squeeze: str) -> Tensor:
    """The gate (C,) of a squeeze-excite module whose squeezed input is `mean`.

    The module multiplies its input by the gate, so an image of ones gives the gate itself.
    """
    layer = excite.get_submodule(squeeze.rpartition(".")[2])
    with layer.register_forward_pre_hook(lambda *_: (mean[None, :, None, None],)):
        return excite(torch.ones(1, len(mean), 1, 1, dtype=mean.dtype))[0, :, 0, 0]
