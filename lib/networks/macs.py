"""MACs of forward and training, counted a layer at a time.

One MAC is one multiplication and addition, two FLOPs. Convolutions, linear layers and attention are counted;
norms, activations and pooling are not.
"""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lib.common.vision import timm

# torchvision's transformers and timm's: the first holds its linear layers' weights itself.
_ATTENTION = (nn.MultiheadAttention, timm.layers.Attention)
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
    """
    layers: dict[str, LayerMacs] = {}
    twin = _on_meta(network)
    for name, module in twin.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, *_ATTENTION)):
            module.register_forward_hook(partial(_record, layers, name))
        elif isinstance(module, nn.BatchNorm2d):
            # They count for nothing here, and on meta tensors they would take most of the time.
            module.forward = partial(_scaled_alone, module)
    dtype = next(twin.parameters()).dtype
    with torch.enable_grad():
        twin(torch.empty(_IMAGES, 3, image_size, image_size, device="meta", dtype=dtype))
    return layers


def forward_macs(network: nn.Module, image_size: int) -> int:
    """MACs of the forward pass of one image."""
    return sum(layer.forward for layer in count_macs(network, image_size).values())


def training_macs(network: nn.Module, image_size: int) -> int:
    """MACs of the forward and backward pass of one image, given what is trainable."""
    return sum(layer.training for layer in count_macs(network, image_size).values())


def _on_meta(network: nn.Module) -> nn.Module:
    """A copy of the modules whose tensors have shapes and no values."""
    tensors = {
        id(parameter): nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        for parameter in network.parameters()
    }
    tensors.update({id(buffer): buffer.to("meta") for buffer in network.buffers()})
    return copy.deepcopy(network, tensors)


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
