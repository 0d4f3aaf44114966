"""MACs of forward and training, counted a layer at a time.

One MAC is one multiplication and addition, two FLOPs. Convolutions, linear layers and attention are counted;
norms, activations and pooling are not. Any other product is an error.
"""

from collections.abc import Callable
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

# torchvision's transformers and timm's: the first holds its linear layers' weights itself.
_ATTENTION = (nn.MultiheadAttention, timm.layers.Attention)
_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *_ATTENTION)
_IMAGES = 2  # batch norms in training mode refuse a single value a channel


@dataclass(frozen=True)
class LayerMacs:
    """MACs of one layer for one image: its output, and the gradients that training needs of it."""

    forward: int
    weight_grad: int
    input_grad: int

    @property
    def training(self) -> int:
        return self.forward + self.weight_grad + self.input_grad


def count_macs(network: nn.Module, image_size: int) -> dict[str, LayerMacs]:
    """MACs of each convolution, linear layer and attention by module name, for one square RGB image.

    The weight gradient costs as much as the forward pass where the weight is trainable, the input
    gradient as much again where anything upstream is. Runs on a copy of meta tensors: nothing is computed.
    Raises UserError for a network that multiplies elsewhere, such as in attention of another kind.
    """
    layers: dict[str, LayerMacs] = {}
    twin = meta_copy(network)
    seen = _Products()
    for name, module in twin.named_modules():
        module.register_forward_pre_hook(partial(seen.enter, name))
        if isinstance(module, _COUNTED):
            module.register_forward_hook(partial(_record, layers, name))
        elif isinstance(module, nn.BatchNorm2d):
            # They count for nothing here, and on meta tensors they would take most of the time.
            module.forward = partial(_scaled_alone, module)
        module.register_forward_hook(seen.leave)
    dtype = next((parameter.dtype for parameter in twin.parameters()), torch.float32)
    with torch.enable_grad(), seen:
        twin(torch.empty(_IMAGES, 3, image_size, image_size, device="meta", dtype=dtype))
    for name, macs in seen.macs.items():
        if macs > _IMAGES * (layers[name].forward if name in layers else 0):
            raise UserError(
                f"{name or 'The network'} ({type(twin.get_submodule(name)).__name__}) computes MACs that are "
                "not counted: expected convolutions, linear layers and attention as torchvision or timm have "
                "it. Use a network of the families in README.md."
            )
    return layers


def forward_macs(network: nn.Module, image_size: int) -> int:
    """MACs of the forward pass of one image."""
    return sum(layer.forward for layer in count_macs(network, image_size).values())


def training_macs(network: nn.Module, image_size: int) -> int:
    """MACs of the forward and backward pass of one image, given what is trainable."""
    return sum(layer.training for layer in count_macs(network, image_size).values())


class _Products(TorchDispatchMode):
    """MACs of all matrix products and convolutions that run, by the innermost module."""

    def __init__(self) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self._running = [""]

    def enter(self, name: str, module: nn.Module, inputs: object) -> None:
        self._running.append(name)

    def leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self._running.pop()

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        output = func(*args, **(kwargs or {}))
        flops: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if flops is not None:
            name = self._running[-1]
            self.macs[name] = self.macs.get(name, 0) + flops(*args, **(kwargs or {}), out_val=output) // 2
        return output


def _record(
    layers: dict[str, LayerMacs], name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    if isinstance(layer, _ATTENTION):
        weighted, unweighted = _attention_macs(layer, inputs[0])
        trainable = getattr(layer, "in_proj_weight", inputs[0]).requires_grad
    else:
        weighted, unweighted = output.numel() // _IMAGES * layer.weight[0].numel(), 0
        trainable = layer.weight.requires_grad
    before = layers.get(name, LayerMacs(0, 0, 0))  # a layer may be used more than once
    layers[name] = LayerMacs(
        before.forward + weighted + unweighted,
        before.weight_grad + (weighted if trainable else 0),
        # A product of two activations has two input gradients.
        before.input_grad + (weighted + 2 * unweighted if inputs[0].requires_grad else 0),
    )


def _attention_macs(attention: nn.Module, tokens: Tensor) -> tuple[int, int]:
    """MACs of one image's attention with a weight, and of its two products of activations."""
    _, count, width = tokens.shape  # batch first, as both kinds have it
    own = 4 * count * width**2 if isinstance(attention, nn.MultiheadAttention) else 0
    return own, 2 * count**2 * width


def _scaled_alone(norm: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """In place of a batch norm: the shape, and whether a gradient is needed."""
    if norm.weight is None or inputs.requires_grad or not norm.weight.requires_grad:
        return inputs
    return inputs * norm.weight[:, None, None] + norm.bias[:, None, None]
