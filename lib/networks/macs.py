"""MACs of forward and training, counted a layer at a time, and the ledger that charges them.

One MAC is one multiplication and addition, two FLOPs. Convolutions, linear layers and attention are counted;
norms, activations and pooling are not.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib.common.vision import timm


@dataclass(frozen=True)
class LayerMacs:
    """MACs of one layer for one image: its output, and the gradients that training needs of it."""

    forward: int
    weight_grad: int
    input_grad: int


def count_macs(network: nn.Module, image_size: int) -> dict[str, LayerMacs]:
    """MACs of each convolution, linear layer and attention by module name, for one square RGB image.

    The weight gradient costs as much as the forward pass where the weight is trainable, the input
    gradient as much again where anything upstream is. Runs on meta tensors: nothing is computed.
    """
    layers: dict[str, LayerMacs] = {}
    images = 2  # batch norms in training mode refuse a single value a channel

    def record(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(layer, _ATTENTION):
                weighted, unweighted = _attention_macs(layer, inputs[0])
                trainable = getattr(layer, "in_proj_weight", inputs[0]).requires_grad
            else:
                weighted, unweighted = output.numel() // images * layer.weight[0].numel(), 0
                trainable = layer.weight.requires_grad
            before = layers.get(name, LayerMacs(0, 0, 0))  # a layer may be used more than once
            layers[name] = LayerMacs(
                before.forward + weighted + unweighted,
                before.weight_grad + (weighted if trainable else 0),
                # A product of two activations has two input gradients.
                before.input_grad + (weighted + 2 * unweighted if inputs[0].requires_grad else 0),
            )

        return hook

    kinds = (nn.Conv2d, nn.Linear, *_ATTENTION)
    counted = [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    handles = [module.register_forward_hook(record(name)) for name, module in counted]
    # Batch norms count for nothing here, and on meta tensors they would take most of the time.
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.forward = partial(_scaled_alone, norm)
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    try:
        with torch.enable_grad():
            meta = {name: tensor.to("meta") for name, tensor in state.items()}
            dtype = next(network.parameters()).dtype
            pixels = torch.empty(images, 3, image_size, image_size, device="meta", dtype=dtype)
            functional_call(network, meta, pixels)
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            del norm.forward
    return layers


# torchvision's transformers and timm's: the first holds its linear layers' weights itself.
_ATTENTION = (nn.MultiheadAttention, timm.layers.Attention)


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


def forward_macs(network: nn.Module, image_size: int) -> int:
    """MACs of the forward pass of one image."""
    return sum(layer.forward for layer in count_macs(network, image_size).values())


def training_macs(network: nn.Module, image_size: int) -> int:
    """MACs of the forward and backward pass of one image, given what is trainable."""
    return sum(
        layer.forward + layer.weight_grad + layer.input_grad
        for layer in count_macs(network, image_size).values()
    )
