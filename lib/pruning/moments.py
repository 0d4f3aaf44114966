"""What a network's own weights say about its activations, with no image: moments of channels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.pruning.sites import Site


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
        return (
            torch.stack([norm.bias for norm in norms]).sum(0),
            torch.stack([norm.weight.square() for norm in norms]).sum(0).sqrt(),
        )
    if site.input_norm is None:
        raise UserError(
            f"There is no norm at {site.name} that tells what its channels carry: choose a criterion that "
            "looks at weights alone, such as 'l1', and repair='none'."
        )
    norm, producer = network.get_submodule(site.input_norm), network.get_submodule(site.name)
    mean = producer.weight @ norm.bias
    if producer.bias is not None:
        mean = mean + producer.bias
    return mean, (producer.weight * norm.weight).norm(dim=1)


def _gate(excite: nn.Module, mean: Tensor, squeeze: str) -> Tensor:
    """The gate (C,) of a squeeze-excite module whose squeezed input is `mean`.

    The module multiplies its input by the gate, so an image of ones gives the gate itself.
    """
    layer = excite.get_submodule(squeeze.rpartition(".")[2])
    handle = layer.register_forward_pre_hook(lambda *_: (mean[None, :, None, None],))
    try:
        return excite(torch.ones(1, len(mean), 1, 1, dtype=mean.dtype))[0, :, 0, 0]
    finally:
        handle.remove()
