"""Pretrained networks as maps from an image to a representation, loaded by name.

Every named backbone is one function under `@backbone` (lib/networks/catalogue.py); any other of timm's or
torchvision's is had by the library's own name. Nothing here knows about pruning, tasks or training.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lib.common.errors import UserError


class Backbone(nn.Module):
    """A pretrained network without its classifier.

    Maps normalised float images (B, 3, H, W) to a representation (B, `feature_dim`). `image_size` is
    the side in pixels that the weights were learnt at, `mean` and `std` normalise images in 0..1, and
    `classifier` maps (B, feature_dim) to the logits of the pretraining classes, or is None; `head` is what
    checkpoints call it. `pruned` says that filters have been removed, `fixed_size` that the network takes
    images of its own size alone.
    """

    def __init__(
        self,
        name: str,
        body: nn.Module,
        classifier: nn.Linear | None,
        image_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        feature_dim: int | None = None,
        head: str | tuple[str, ...] = "classifier",
        fixed_size: bool = False,
    ):
        super().__init__()
        self.name, self.image_size, self.mean, self.std = name, image_size, mean, std
        self.body, self.classifier = body, classifier
        if feature_dim is None and classifier is None:
            raise UserError(f"{name} has no classifier to tell its width: give feature_dim=, as in Backbone(...).")
        self.feature_dim: int = feature_dim or classifier.in_features  # type: ignore[union-attr]
        self.head, self.fixed_size = head, fixed_size
        self.pruned = False

    def forward(self, images: Tensor) -> Tensor:
        side, own = images.shape[-1], self.image_size
        if self.fixed_size and side != own:
            raise UserError(f"{self.name} takes images of {own} px only and got {side} px: set image_size={own}.")
        return self.body(images)


def normalised(images: Tensor, network: Backbone) -> Tensor:
    """uint8 images (B, 3, H, W) as the network wants them: float, channels last in memory."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) * 255 for values in (network.mean, network.std)
    )
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


# --- names --------------------------------------------------------------------------------------------


Build = Callable[[], Backbone]
Load = Callable[[Backbone], None]


@dataclass(frozen=True)
class Entry:
    """How a backbone is built with random weights, how it gets the pretrained ones, and whether it can
    without a network."""

    build: Build
    load_weights: Load
    offline: bool


_BACKBONES: dict[str, Entry] = {}
# Libraries whose networks are all had as LIBRARY:NAME: the entry of a full name; UserError if it is unknown.
LIBRARIES: dict[str, Callable[[str], Entry]] = {}


def register(name: str, entry: Entry) -> None:
    """List `entry` as the backbone `name`."""
    _BACKBONES[name] = entry


def backbone(name: str, load_weights: Load, offline: bool) -> Callable[[Build], Build]:
    """Register the decorated function, which builds `name` with random weights.

    `load_weights` puts the pretrained weights into what was built; `offline` says whether it can
    without a network.
    """

    def decorate(build: Build) -> Build:
        register(name, Entry(build, load_weights, offline))
        return build

    return decorate


def list_backbones(offline_only: bool = False) -> list[str]:
    """Names of all backbones, the main one first; or of those whose weights need no network."""
    return [name for name, entry in _BACKBONES.items() if entry.offline or not offline_only]


def find_backbone(name: str) -> Entry:
    """How the backbone `name` is had, as `load_backbone` takes it. Raises UserError if it is unknown."""
    library, _, model = name.partition(":")
    if model and library in LIBRARIES:
        return LIBRARIES[library](name)
    if name not in _BACKBONES:
        others = " or ".join(f"{library}:NAME" for library in LIBRARIES)
        raise UserError(
            f"Unknown backbone {name!r}: expected one of {', '.join(_BACKBONES)}, or a network of {others}. "
            "docs/extending.md tells how to add one."
        )
    return _BACKBONES[name]


def load_backbone(name: str, pretrained: bool = True, weights: Path | str | None = None) -> Backbone:
    """The backbone called `name`, in eval mode and in float32.

    `name` is one of `list_backbones()`, or `timm:NAME` or `torchvision:NAME`. `weights` is a checkpoint of
    one's own, taken in place of the pretrained weights: a state dict (.pth or safetensors), with or without a
    classifier. With `pretrained=False` and no `weights` they are random (drawn from torch's global generator)
    and nothing is read or downloaded. Raises UserError for an unknown name, and for weights that cannot be
    had or do not fit.
    """
    entry = find_backbone(name)
    network = entry.build()
    if weights is not None:
        load_checkpoint(network, Path(weights))
    elif pretrained:
        entry.load_weights(network)
    return network.eval()


# --- weights ------------------------------------------------------------------------------------------


def weights_hash(network: nn.Module) -> str:
    """Hash of a network's tensors: names, types, shapes and values."""
    return tensors_hash(network.state_dict())


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """Hash of tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_checkpoint(network: Backbone, file: Path) -> None:
    """Load a checkpoint, written by torch.save or as safetensors, into `network`.

    The state dict may lie under "state_dict" or "model", its names may begin with "module." and the like, and
    it may hold a classifier for any number of classes or none: the network's own is replaced or removed.
    Raises UserError for a file that cannot be read or does not fit.
    """
    load_named(network, _read_checkpoint(file), str(file))


def load_named(network: Backbone, tensors: dict[str, Tensor], source: str) -> None:
    """Load tensors under their library's names or the backbone's own; UserError where they do not fit."""
    tensors = _as_backbone(network, tensors)
    fit_classifier(network, tensors)
    own = network.state_dict()
    tensors = {name: own[name] for name in own if name.endswith("batches_tracked")} | tensors
    shared = own.keys() & tensors.keys()
    misfits = {
        "without": own.keys() - shared,
        "with an unexpected": tensors.keys() - shared,
        "with another shape of": {name for name in shared if own[name].shape != tensors[name].shape},
    }
    listed = [
        f"{what} {', '.join(sorted(names)[:3])}{', ...' * (len(names) > 3)}" for what, names in misfits.items() if names
    ]
    if listed:
        raise UserError(
            f"{source} does not fit {network.name}: it is {' and '.join(listed)}. Expected a "
            "state dict of that network, with or without its classifier."
        )
    network.load_state_dict(tensors)


def fit_classifier(network: Backbone, tensors: dict[str, Tensor]) -> None:
    """Give `network` a classifier of the width that its `tensors` have, or none if they have none.

    Raises UserError for one that is not linear.
    """
    names = {name for name in tensors if name.startswith("classifier.")}
    if not names <= {"classifier.weight", "classifier.bias"}:
        raise UserError(f"{network.name} takes a linear classifier or none, and not {', '.join(sorted(names))}.")
    weight, own = tensors.get("classifier.weight"), network.classifier
    if weight is None:
        network.classifier = None
    elif weight.shape[1:] == (network.feature_dim,) and (own is None or own.weight.shape != weight.shape):
        network.classifier = nn.Linear(network.feature_dim, len(weight), "classifier.bias" in tensors)


def _read_checkpoint(file: Path) -> dict[str, Tensor]:
    wanted = "names and tensors and nothing else, written by torch.save(network.state_dict(), file) or as safetensors"
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises whatever a foreign file leads it to
        reason = str(error).partition("\n")[0] or "it is empty"
        raise UserError(f"{file} cannot be read as a checkpoint ({reason}): expected {wanted}.") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} holds no state dict: expected {wanted}; they may be under 'state_dict' or 'model'.")
    return content


def _as_backbone(network: Backbone, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of the backbone's state dict: `body.` and `classifier.`."""
    own = {name.partition(".")[0] for name in (*network.state_dict(), *network.body.state_dict())}
    while len(first := {name.partition(".")[0] for name in tensors}) == 1 and not first & own:
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}  # "module." and the like
    if any(name.startswith("body.") for name in tensors):
        return tensors
    heads = (network.head,) if isinstance(network.head, str) else network.head
    named = {}
    for name, value in tensors.items():
        head = next((head for head in heads if name.startswith(f"{head}.")), None)
        if head is None:
            named[f"body.{name}"] = value
        elif network.classifier is not None:
            named[name.replace(head, "classifier", 1)] = value
    return named
