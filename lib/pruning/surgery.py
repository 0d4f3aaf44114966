"""Remove channels from a network's modules, in place; or mask them, which computes the same."""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib.pruning.sites import Site, width_of


def keep_channels(network: nn.Module, site: Site, kept: Tensor) -> None:
    """Keep the channels `kept` (indices in ascending order) of a site and drop the others."""
    for name in site.output_sliced:
        _keep_outputs(network.get_submodule(name), kept)
    for reader in site.readers:
        _keep_inputs(network.get_submodule(reader.name), kept)


def mask_channels(network: nn.Module, site: Site, kept: Tensor) -> list[RemovableHandle]:
    """Set the channels that are not `kept` to zero where they enter every reader, until removed."""
    mask = torch.zeros(width_of(network, site))
    mask[kept] = 1

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        shaped = mask if isinstance(layer, nn.Linear) else mask[:, None, None]
        return (inputs[0] * shaped.to(inputs[0]),)

    return [network.get_submodule(reader.name).register_forward_pre_hook(hook) for reader in site.readers]


def _keep_outputs(module: nn.Module, kept: Tensor) -> None:
    module.weight = _sliced(module.weight, kept)
    if module.bias is not None:
        module.bias = _sliced(module.bias, kept)
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean = module.running_mean[kept].clone()
        module.running_var = module.running_var[kept].clone()
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


def _sliced(parameter: nn.Parameter, kept: Tensor, dim: int = 0) -> nn.Parameter:
    data = parameter.detach().index_select(dim, kept.to(parameter.device))
    if data.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        data = data.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(data, requires_grad=parameter.requires_grad)
