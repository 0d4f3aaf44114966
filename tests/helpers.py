"""What several test files need, written without the code under test."""

import copy

import torch
from torch import nn

from lib.backbones import RESNETS_64, Backbone, build_resnet_64, list_backbones, load_backbone

BACKBONES = [*list_backbones(), *(name for name in RESNETS_64 if name not in list_backbones())]


def random_backbone(name: str, seed: int = 0) -> Backbone:
    """The backbone with random weights and random statistics, scales and shifts in every batch norm."""
    torch.manual_seed(seed)
    if name in list_backbones():
        network = load_backbone(name, pretrained=False)
    else:
        network = build_resnet_64(name).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
            nn.init.normal_(module.running_mean, 0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def macs_by_layer(network: nn.Module, image_size: int) -> dict[str, int]:
    """Forward MACs of every convolution and linear layer for one image, from their attributes."""
    network = copy.deepcopy(network).to("meta")
    macs = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def count(conv, _, output, name=name):
                height, width = output.shape[-2:]
                taps = conv.kernel_size[0] * conv.kernel_size[1] * (conv.in_channels // conv.groups)
                macs[name] = height * width * conv.out_channels * taps

            module.register_forward_hook(count)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda linear, *_, name=name: macs.update({name: linear.in_features * linear.out_features})
            )
    network(torch.empty(1, 3, image_size, image_size, device="meta"))
    return macs


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict, to see later whether anything changed."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same_state(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    now = network.state_dict()
    assert now.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(now[name], tensor), name
