"""What several test files need, written without the code under test."""

import copy

import pandas as pd
import torch
from torch import nn

from lib.common.vision import timm, torchvision
from lib.evidence.records import described
from lib.networks.backbone import Backbone, list_backbones, load_backbone
from lib.networks.catalogue import RESNETS_64, build_resnet_64
from lib.pruning import plan_pruning
from lib.runs.spec import RunSpec
from lib.streams import Split, TaskData, load_stream

BACKBONES = [*list_backbones(), *(name for name in RESNETS_64 if name not in list_backbones())]

# Every declared kind of block, torchvision's and timm's: small members of each family.
_TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "vgg11_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit",
)
_TIMM = (
    "resnet18",
    "resnet50",
    "resnet50d",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "vgg11_bn",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "tf_efficientnet_lite0",
    "regnetx_002",
    "regnety_002",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
)
# One of every declared kind of block, the cheapest: what the fast tests look at.
EVERY_BLOCK = [
    "resnet18half_64",
    "resnet26_64",
    "torchvision:resnet18",
    "torchvision:resnext50_32x4d",
    "torchvision:vgg11_bn",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:regnet_y_400mf",
    "torchvision:vit",
    "timm:mobilenetv3_small_100",
    "timm:tf_efficientnetv2_b0",
    "timm:tf_efficientnet_lite0",
    "timm:regnety_002",
    "timm:convnext_atto",
    "timm:deit_tiny_patch16_224",
]
FAMILIES = [
    "resnet26_64",
    "resnet18half_64",
    "resnet18quarter_64",
    *(f"torchvision:{name}" for name in _TORCHVISION),
    *(f"timm:{name}" for name in _TIMM),
]


def _of_family(name: str) -> Backbone:
    """For images of 64 px; transformers, which take one size alone, are built for it."""
    model, side = name.partition(":")[2], 64
    if model == "vit":
        body = torchvision.models.VisionTransformer(side, 16, 2, 3, 96, 384)
        body.heads = nn.Identity()
        return Backbone(name, body, nn.Linear(96, 10), side, (0.5,) * 3, (0.5,) * 3)
    if model.startswith(("vit", "deit")):
        body = timm.create_model(model, num_classes=0, img_size=side)
        return Backbone(name, body, nn.Linear(body.num_features, 10), side, (0.5,) * 3, (0.5,) * 3)
    network = load_backbone(name, pretrained=False)
    network.image_size = side
    network.classifier = network.classifier or nn.Linear(network.feature_dim, 10)
    return network


def random_backbone(name: str, seed: int = 0) -> Backbone:
    """A backbone, or a family's member, with random weights and random statistics, scales and shifts."""
    torch.manual_seed(seed)
    if ":" in name:
        network = _of_family(name)
    else:
        network = load_backbone(name, False) if name in list_backbones() else build_resnet_64(name)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for name, parameter in network.named_parameters():
        if name.endswith(("layer_scale", "gamma")):  # ConvNeXt's start so small that nothing would show
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval()


def plain_plan(network: Backbone, ratio: float | None = None, criterion: str = "l1", **request):
    """A plan by magnitude, the same share everywhere and no repair, but for what is said otherwise."""
    return plan_pruning(network, ratio, criterion, **{"scope": "uniform", "repair": "none", **request})


def mixing_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Ungrouped convolutions and linear layers: those that mix channels."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def kept_inputs(dense: nn.Module, plan) -> dict[str, torch.Tensor]:
    """The input channels that every mixing layer keeps under a plan, read off weights that name them.

    Every weight is set to its input's index and the plan applied: no declaration of the plan's is used.
    """
    tagged = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in mixing_layers(tagged).values():
            tags = torch.arange(layer.weight.shape[1], dtype=layer.weight.dtype)
            layer.weight.copy_(tags.view(1, -1, *[1] * (layer.weight.ndim - 2)).expand_as(layer.weight))
    tagged = plan.apply(tagged)
    return {
        name: layer.weight[0].flatten(1)[:, 0].long() if layer.weight.ndim > 2 else layer.weight[0].long()
        for name, layer in mixing_layers(tagged).items()
    }


def mask_inputs(network: nn.Module, kept: dict[str, torch.Tensor]) -> list[str]:
    """Set, in place, what is not kept to zero where it enters a mixing layer; the layers concerned."""
    concerned = []
    for name, indices in kept.items():
        layer = network.get_submodule(name)
        width = layer.weight.shape[1]
        if len(indices) == width:
            continue
        mask = torch.zeros(width, dtype=layer.weight.dtype)
        mask[indices] = 1
        if isinstance(layer, nn.Conv2d):
            mask = mask[:, None, None]
        layer.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))
        concerned.append(name)
    return concerned


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
                lambda linear, _, output, name=name: macs.update({name: output.numel() * linear.in_features})
            )
    dtype = next(network.parameters()).dtype
    network(torch.empty(1, 3, image_size, image_size, device="meta", dtype=dtype))
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


def few_images(name: str, train: int, dev: int, test: int) -> TaskData:
    """The first images of each part of a task of the pocket stream, at 64 px."""
    data = next(task for task in load_stream("pocket").tasks if task.name == name).read(64)
    parts = (data.train, train), (data.dev, dev), (data.test, test)
    return TaskData(*(Split(part.images[:count], part.labels[:count]) for part, count in parts))


class Counter:
    """Images that go through a network and its copies, forward alone and in training, at the first layer."""

    def __init__(self, monkeypatch):
        self.trained = self.seen = 0
        forward = torch.nn.Conv2d.forward

        def counted(layer, inputs):
            if layer.in_channels == 3 and inputs.device.type != "meta":
                self.trained += len(inputs) if torch.is_grad_enabled() else 0
                self.seen += 0 if torch.is_grad_enabled() else len(inputs)
            return forward(layer, inputs)

        monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)


# Errors of three tasks, by arm and budget.
ERRORS = {
    ("dense", 64): [0.8, 0.6, 0.5],
    ("dense", 256): [0.5, 0.5, 0.4],
    ("half", 64): [0.7, 0.4, 0.4],
    ("half", 256): [0.6, 0.5, 0.5],
}


def records_of(errors: dict[tuple[str, int], list[float]], **changed: object) -> pd.DataFrame:
    """Records of arms whose errors are known, fine-tuned or with other fields as `changed` says.

    An arm is half pruned where its name begins with half.
    """
    fields = RunSpec(backbone="efficientnet_lite0", ratio=0, budgets=[64]).model_dump(exclude={"ratio", "budgets"})
    rows = [
        {
            **fields,
            "arm": arm,
            "ratio": 0.5 if arm.startswith("half") else 0.0,
            "budget": budget,
            "event": event,
            "task": f"task{event}",
            "year": 2010 + event,
            "domain": "shapes",
            "error_test": error,
            "limit_macs": 1000 * budget,
            "total_macs": 1000 * budget,
            "nevis_flops": 2000 * budget,
            "preparation_macs": 0,
            "forward_macs": 60 if arm.startswith("half") else 100,
            "image_passes": budget,
            "note": "",
        }
        for (arm, budget), of_tasks in errors.items()
        for event, error in enumerate(of_tasks)
    ]
    return described(pd.DataFrame(rows).assign(**changed))
