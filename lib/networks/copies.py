"""Copies of a network in whatever state it comes: wrapped, hooked, masked, parametrised, in training."""

import copy

from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile's wrapper."""
    while isinstance(network, (nn.DataParallel, DistributedDataParallel, OptimizedModule)):
        network = network._orig_mod if isinstance(network, OptimizedModule) else network.module
    return network


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy without a wrapper, in which masks, weight norms and other parametrisations are plain weights."""
    network = unwrapped(network)
    copied = copy.deepcopy(network, {id(value): value.detach().clone() for value in _computed(network)})
    for module in list(copied.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            _without_parametrizations(module)
    return copied


def meta_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode without hooks, whose tensors have shapes and no values."""
    network = unwrapped(network)
    tensors = {id(value): value.detach().to("meta") for value in (*network.buffers(), *_computed(network))}
    for value in network.parameters():
        tensors[id(value)] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
    return without_hooks(copy.deepcopy(network, tensors)).eval()


def without_hooks(network: nn.Module) -> nn.Module:
    """`network` after its modules' hooks are removed."""
    for module in network.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, hooks).clear()
    return network


def _without_parametrizations(module: nn.Module) -> None:
    """As torch's own removal, which would take the property from the class that the copied module shares."""
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    trainable = any(parameter.requires_grad for parameter in module.parametrizations.parameters())
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, trainable))


def _computed(network: nn.Module) -> list[Tensor]:
    """Tensors beside parameters and buffers, such as masked weights: deepcopy refuses them."""
    return [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
