"""MACs of forward and training, counted a layer at a time.

One MAC is one multiplication and addition, two FLOPs. Convolutions, linear layers and attention are counted, by torch's
own formulas; norms, activations and pooling are not. Any other product is an error.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lib.common.errors import UserError
from lib.common.vision import timm
from lib.networks.copies import meta_copy

_LAYERS = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear  # one product each
_ATTENTION = nn.MultiheadAttention, timm.layers.Attention  # torchvision's transformers and timm's
_IMAGES = 2  # batch norms in training mode refuse a single value a channel


@dataclass(frozen=True)
class LayerMacs:
    """MACs of one layer for one image: of its output, and of the gradients that training needs of it."""

    forward: int = 0
    backward: int = 0

    @property
    def training(self) -> int:
        return self.forward + self.backward


def count_macs(network: nn.Module, image_size: int) -> dict[str, LayerMacs]:
    """MACs of each convolution, linear layer and attention by module name, for one square RGB image.

    A gradient costs as much as the forward pass: that of a weight where it is trainable, that of an input where
    anything upstream is. Runs on a copy of meta tensors: nothing is computed. Raises UserError for a network that
    multiplies elsewhere, such as in attention of another kind.
    """
    twin = meta_copy(network)
    counter = _Counter(twin)
    for name, module in twin.named_modules():
        module.register_forward_pre_hook(partial(counter.enter, name))
        if isinstance(module, nn.BatchNorm2d):
            # They count for nothing here, and on meta tensors they would take most of the time.
            module.forward = partial(_scaled_alone, module)
        module.register_forward_hook(counter.leave)
    dtype = next((parameter.dtype for parameter in twin.parameters()), torch.float32)
    with torch.enable_grad(), counter:
        twin(torch.empty(_IMAGES, 3, image_size, image_size, device="meta", dtype=dtype))
    return counter.layers


def forward_macs(network: nn.Module, image_size: int) -> int:
    """MACs of the forward pass of one image."""
    return sum(layer.forward for layer in count_macs(network, image_size).values())


def training_macs(network: nn.Module, image_size: int) -> int:
    """MACs of the forward and backward pass of one image, given what is trainable."""
    return sum(layer.training for layer in count_macs(network, image_size).values())


class _Counter(TorchDispatchMode):
    """MACs of all products that run, by the innermost module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers: dict[str, LayerMacs] = {}
        self._running: list[tuple[str, nn.Module]] = [("", network)]
        self._done = False  # whether the innermost module has multiplied

    def enter(self, name: str, module: nn.Module, inputs: object) -> None:
        self._running.append((name, module))
        self._done = False

    def leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self._running.pop()

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        output = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            name, module = self._running[-1]
            if not isinstance(module, _ATTENTION) and (self._done or not isinstance(module, _LAYERS)):
                raise UserError(
                    f"{name or 'The network'} ({type(module).__name__}) computes MACs that are not counted: expected "
                    "convolutions, linear layers and attention as torchvision or timm have it. Use a network of the "
                    "families in README.md."
                )
            self._done = True
            flops = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=output)
            macs = flops // 2 // _IMAGES
            # What is multiplied comes last, after what is added to the product; a bias has one dimension.
            factors = [one for one in args if isinstance(one, Tensor) and one.ndim > 1][-2:]
            gradients = sum(factor.requires_grad for factor in factors)
            before = self.layers.get(name, LayerMacs())  # a layer may be used more than once
            self.layers[name] = LayerMacs(before.forward + macs, before.backward + gradients * macs)
        return output


def _scaled_alone(norm: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """In place of a batch norm: the shape, and whether a gradient is needed."""
    if norm.weight is None or inputs.requires_grad or not norm.weight.requires_grad:
        return inputs
    return inputs * norm.weight[:, None, None] + norm.bias[:, None, None]
