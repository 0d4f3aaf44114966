"""Remove channels from a network's modules, in place."""

import torch
from torch import Tensor, nn

from lib.pruning.sites import Site


def keep_channels(network: nn.Module, site: Site, kept: Tensor) -> None:
    """Keep the channels `kept` (indices in ascending order) of a site and drop the others."""
    _keep_outputs(network.get_submodule(site.producer), kept)
    for name in site.followers:
        _keep_outputs(network.get_submodule(name), kept)
    consumer = network.get_submodule(site.consumer)
    consumer.weight = _sliced(consumer.weight, kept, dim=1)
    consumer.in_channels = len(kept)


def _keep_outputs(module: nn.Module, kept: Tensor) -> None:
    module.weight = _sliced(module.weight, kept)
    if module.bias is not None:
        module.bias = _sliced(module.bias, kept)
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean = module.running_mean[kept].clone()
        module.running_var = module.running_var[kept].clone()
        module.num_features = len(kept)
    else:
        module.out_channels = len(kept)
        if module.groups > 1:  # depthwise
            module.groups = module.in_channels = len(kept)


def _sliced(parameter: nn.Parameter, kept: Tensor, dim: int = 0) -> nn.Parameter:
    data = parameter.detach().index_select(dim, kept.to(parameter.device))
    if data.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        data = data.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(data, requires_grad=parameter.requires_grad)
