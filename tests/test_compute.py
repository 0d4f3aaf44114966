"""MACs against ptflops, PyTorch's own counter and numbers worked out by hand; the ledger."""

import copy

import pytest
import torch
from helpers import BACKBONES, assert_same_state, macs_by_layer, plain_plan, random_backbone, state_of
from ptflops import get_model_complexity_info
from ptflops.pytorch_ops import conv_flops_counter_hook
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib.common.errors import UserError
from lib.common.vision import torchvision
from lib.learning.ledger import Ledger
from lib.networks.backbone import load_backbone
from lib.networks.macs import LayerMacs, count_macs, forward_macs, training_macs

# What ptflops counts and this project does not.
NOT_COUNTED = [
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    nn.LayerNorm,
    torchvision.models.convnext.LayerNorm2d,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
]
ATTENTION = [name for name in BACKBONES if name.startswith(("vit", "deit"))]


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ATTENTION])
def test_forward_macs_agree_with_ptflops(name):
    network = random_backbone(name)
    # ptflops goes by a layer's exact type and does not know timm's subclasses of a convolution.
    kinds = {type(m) for m in network.modules() if isinstance(m, nn.Conv2d)} - {nn.Conv2d}
    expected, _ = get_model_complexity_info(
        copy.deepcopy(network),
        (3, 64, 64),
        as_strings=False,
        print_per_layer_stat=False,
        backend="pytorch",
        ignore_modules=NOT_COUNTED,
        custom_modules_hooks=dict.fromkeys(kinds, conv_flops_counter_hook),
    )
    # Of squeeze-excite it also counts the products with the gates.
    gated = any("SqueezeExcitation" in type(module).__name__ for module in network.modules())
    assert forward_macs(network, 64) == pytest.approx(expected, rel=0.03 if gated else 0.01)


@pytest.mark.parametrize("image_size", [32, 64, 97])
def test_every_layer_of_a_pruned_network_is_counted_exactly(lite0, image_size):
    small = plain_plan(lite0, 0.3).apply(lite0)
    counted = {name: layer.forward for name, layer in count_macs(small, image_size).items()}
    assert counted == macs_by_layer(small, image_size)


def freeze_nothing(network: nn.Module) -> None:
    pass


def freeze_all_but_the_last_stage(network: nn.Module) -> None:
    network.requires_grad_(False)
    network.body.layer4.requires_grad_(True)


def freeze_all_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(False)


def freeze_the_last_stage(network: nn.Module) -> None:
    network.body.layer4.requires_grad_(False)


@pytest.mark.parametrize(
    "freeze", [freeze_nothing, freeze_all_but_the_last_stage, freeze_all_convolutions, freeze_the_last_stage]
)
@pytest.mark.parametrize("ratio", [0, 0.5])
def test_training_macs_agree_with_pytorchs_counter(freeze, ratio):
    """PyTorch counts what forward and backward really compute, in FLOPs: two a MAC."""
    network = random_backbone("resnet18")
    network = plain_plan(network, ratio).apply(network).train()
    freeze(network)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert training_macs(network, 64) == pytest.approx(counter.get_total_flops() / 2 / 2, rel=0.001)


@pytest.mark.parametrize("name", ["torchvision:vit", "timm:deit_tiny_patch16_224", "torchvision:vgg11_bn"])
def test_training_macs_of_other_kinds_agree_with_pytorchs_counter(name):
    network = random_backbone(name).train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert training_macs(network, 64) == pytest.approx(counter.get_total_flops() / 2 / 2, rel=0.01)


class Tiny(nn.Module):
    """Convolution, depthwise convolution, linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
        self.linear = nn.Linear(8, 10)

    def forward(self, images):
        return self.linear(self.depthwise(self.norm(self.conv(images)).relu()).mean((2, 3)))


# By hand, for an image of 16 px: the convolution gives 8 x 8 positions.
CONV = 8 * 8 * 8 * (3 * 3 * 3)
DEPTHWISE = 8 * 8 * 8 * (5 * 5)
LINEAR = 8 * 10
BY_HAND = {
    # No image needs a gradient: the first layer has no input gradient.
    (): (CONV + CONV) + 3 * DEPTHWISE + 3 * LINEAR,
    ("conv",): CONV + 3 * DEPTHWISE + 3 * LINEAR,  # the norm is trainable
    ("conv", "norm"): CONV + 2 * DEPTHWISE + 3 * LINEAR,
    ("conv", "norm", "depthwise"): CONV + DEPTHWISE + 2 * LINEAR,
    ("depthwise",): 2 * CONV + 2 * DEPTHWISE + 3 * LINEAR,
    ("conv", "norm", "depthwise", "linear"): CONV + DEPTHWISE + LINEAR,
}


@pytest.mark.parametrize("frozen", BY_HAND)
def test_training_macs_by_hand(frozen):
    network = Tiny()
    for name in frozen:
        network.get_submodule(name).requires_grad_(False)
    assert training_macs(network, 16) == BY_HAND[frozen]
    assert forward_macs(network, 16) == CONV + DEPTHWISE + LINEAR


def test_macs_of_each_layer_by_hand():
    assert count_macs(Tiny(), 16) == {
        "conv": LayerMacs(CONV, CONV),
        "depthwise": LayerMacs(DEPTHWISE, 2 * DEPTHWISE),
        "linear": LayerMacs(LINEAR, 2 * LINEAR),
    }


def test_layer_used_twice_counts_twice():
    layer = nn.Conv2d(3, 3, 1)
    assert forward_macs(nn.Sequential(layer, nn.ReLU(), layer), 8) == 2 * 8 * 8 * 3 * 3


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_network_as_it_was(training):
    network = load_backbone("resnet18", pretrained=False).train(training)
    network.body.conv1.weight.grad = torch.ones_like(network.body.conv1.weight)
    before, grad = state_of(network), network.body.conv1.weight.grad
    training_macs(network, 64)
    assert_same_state(network, before)
    assert all(module.training == training for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(p.requires_grad and p.device.type == "cpu" for p in network.parameters())
    assert network.body.conv1.weight.grad is grad


def test_hooks_are_gone_when_counting_fails():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1))
    with pytest.raises(RuntimeError):
        count_macs(network, 8)
    assert not any(module._forward_hooks for module in network.modules())


def test_counting_works_without_gradients_enabled():
    with torch.no_grad():
        assert training_macs(Tiny(), 16) == BY_HAND[()]


def test_ledger_adds_up_and_refuses_to_overspend():
    ledger = Ledger(100)
    ledger.charge("training", 60)
    ledger.charge("validation", 15)
    ledger.charge("training", 20)
    assert (ledger.spent, ledger.total, ledger.left) == ({"training": 80, "validation": 15}, 95, 5)
    with pytest.raises(UserError, match="needs 6 MACs and 5 of 100 are left"):
        ledger.charge("training", 6)
    assert (ledger.total, ledger.left) == (95, 5)
    ledger.charge("training", 5)
    assert ledger.left == 0
