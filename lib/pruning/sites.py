"""Where filters can be removed: the sites of a network, declared per kind of residual block.

A site is a producing convolution, everything that follows its channels, and the consuming convolution.
Removing channel i takes filter i from the producer, entry i from the followers and input i from the
consumer, and nothing else: the residual stream and the representation keep their widths. To support
another architecture, declare its block with `@sites_of(BlockType)`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lib.errors import UserError
from lib.vision import timm, torchvision


@dataclass(frozen=True)
class Site:
    """Module names, relative to the network, of one place where filters can be removed.

    `followers` carry the producer's channels in order (batch norms, depthwise convolutions) and end
    with a batch norm; `activation` is applied between that and the `consumer`, whose output goes
    through `consumer_norm`.
    """

    producer: str
    followers: tuple[str, ...]
    activation: Callable[[Tensor], Tensor]
    consumer: str
    consumer_norm: str

    @property
    def name(self) -> str:
        return self.producer

    @property
    def last_norm(self) -> str:
        return self.followers[-1]


_DECLARED: dict[type[nn.Module], Callable[[str, nn.Module], list[Site]]] = {}


def sites_of(*block_types: type[nn.Module]):
    """Declare the sites of a kind of block: the decorated (block's name, block) -> sites."""

    def register(declare: Callable[[str, nn.Module], list[Site]]):
        _DECLARED.update(dict.fromkeys(block_types, declare))
        return declare

    return register


def find_sites(network: nn.Module) -> list[Site]:
    """All sites of a network, in the order of its modules.

    Raises UserError for an architecture none of whose blocks is declared.
    """
    sites = list(_find(network))
    if not sites:
        raise UserError(
            f"{getattr(network, 'name', type(network).__name__)} has no block whose filters can be "
            f"removed: expected one of {', '.join(sorted({t.__name__ for t in _DECLARED}))}. "
            "docs/extending.md tells how to declare another."
        )
    return sites


def _find(network: nn.Module) -> Iterator[Site]:
    for name, module in network.named_modules():
        if type(module) in _DECLARED:
            yield from _DECLARED[type(module)](name, module)


@sites_of(torchvision.models.resnet.BasicBlock, timm.models.resnet.BasicBlock)
def _basic_block(name: str, block: nn.Module) -> list[Site]:
    _refuse_other_layers(name, block)
    return [Site(f"{name}.conv1", (f"{name}.bn1",), F.relu, f"{name}.conv2", f"{name}.bn2")]


@sites_of(torchvision.models.resnet.Bottleneck, timm.models.resnet.Bottleneck)
def _bottleneck(name: str, block: nn.Module) -> list[Site]:
    _refuse_other_layers(name, block)
    return [
        Site(f"{name}.conv1", (f"{name}.bn1",), F.relu, f"{name}.conv2", f"{name}.bn2"),
        Site(f"{name}.conv2", (f"{name}.bn2",), F.relu, f"{name}.conv3", f"{name}.bn3"),
    ]


def _refuse_other_layers(name: str, block: nn.Module) -> None:
    """Raise UserError for a residual block that is not plain convolutions, batch norms and ReLU."""
    for inner, module in block.named_modules():
        grouped = isinstance(module, nn.Conv2d) and module.groups > 1
        other_norm = isinstance(module, (nn.GroupNorm, nn.LayerNorm))
        other_activation = inner.startswith(("act", "relu")) and not isinstance(
            module, (nn.ReLU, nn.Identity)
        )
        extra = inner in ("se", "aa", "drop_block") and not isinstance(module, nn.Identity)
        if grouped or other_norm or other_activation or extra:
            raise UserError(
                f"{name}.{inner} is a {type(module).__name__}: expected a residual block of ungrouped "
                "convolutions, batch norms and ReLU. docs/extending.md tells how to declare another."
            )


@sites_of(timm.models._efficientnet_blocks.InvertedResidual)
def _inverted_residual(name: str, block: nn.Module) -> list[Site]:
    """The expanded width of EfficientNet-Lite's block, whose activation is ReLU6."""
    if not isinstance(block.bn2.act, nn.ReLU6) or not isinstance(block.se, nn.Identity):
        raise UserError(
            f"{name} has squeeze-excite or an activation other than ReLU6: expected the block of "
            "EfficientNet-Lite. docs/extending.md tells how to declare another."
        )
    followers = (f"{name}.bn1", f"{name}.conv_dw", f"{name}.bn2")
    return [Site(f"{name}.conv_pw", followers, F.relu6, f"{name}.conv_pwl", f"{name}.bn3")]
