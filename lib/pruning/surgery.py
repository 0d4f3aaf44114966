"""Remove channels from a network's modules, in place; or mask them, which computes the same."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib.pruning.sites import BATCH_NORMS, Site, width_of


def keep_channels(network: nn.Module, site: Site, kept: Tensor) -> None:
    """Keep the channels `kept` (indices in ascending order) of a site and drop the others."""
    for name in site.output_sliced:
        _keep_outputs(network.get_submodule(name), kept)
    for reader in site.readers:
        _keep_inputs(network.get_submodule(reader.name), kept)


def cut(network: nn.Module, sites: list[Site], kept: dict[str, Tensor]) -> nn.Module:
    """A copy that keeps the channels `kept` of each site."""
    small = copy.deepcopy(network)
    for site in sites:
        keep_channels(small, site, kept[site.name])
    return small


def mask_channels(network: nn.Module, site: Site, kept: Tensor) -> list[RemovableHandle]:
    """Set the channels that are not `kept` to zero where they enter every reader, until removed."""
    mask = torch.zeros(width_of(network, site))
    mask[kept] = 1

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        shaped = mask if isinstance(layer, nn.Linear) else mask[:, None, None]
        return (inputs[0] * shaped.to(inputs[0]),)

    return [network.get_submodule(reader.name).register_forward_pre_hook(hook) for reader in site.readers]


def _keep_outputs(module: nn.Module, kept: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, name, None) is not None:
            setattr(module, name, _sliced(getattr(module, name), kept))
    if isinstance(module, BATCH_NORMS):
        module.num_features = len(kept)
    elif isinstance(module, nn.Linear):
        module.out_features = len(kept)
    else:
        module.out_channels = len(kept)
        if module.groups > 1:  # depthwise or grouped: whole groups go, inputs and outputs alike
            module.groups = module.groups * len(kept) // module.in_channels
            module.in_channels = len(kept)


def _keep_inputs(module: nn.Module, kept: Tensor) -> None:
    module.weight = _sliced(module.weight, kept, dim=1)
    if isinstance(module, nn.Linear):
        module.in_features = len(kept)
    else:
        module.in_channels = len(kept)


def _sliced(tensor: Tensor, kept: Tensor, dim: int = 0) -> Tensor:
    """The `kept` slices of a parameter or a buffer, as one of the same kind."""
    data = tensor.detach().index_select(dim, kept.to(tensor.device))
    if data.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        data = data.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
