"""Where filters can be removed: the sites of a network, found from how its blocks are declared.

A site is where channels are made (producers), what carries them (norms, depthwise and grouped convolutions,
squeeze-excite) and where they are used (consumers). Inside a block, sites lie between one mixing layer (an
ungrouped convolution or a linear layer) and the next. The residual stream of a stage is a site too, at the
granularity `channel`. Nothing is traced: lib/pruning/blocks.py declares each block in a line.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from torch import nn

from lib.common.errors import UserError, choose
from lib.common.vision import timm, torchvision
from lib.pruning.blocks import BLOCKS, STEMS, Block

GRANULARITIES = ("filter", "channel")
BATCH_NORMS = (
    *(nn.BatchNorm2d, nn.SyncBatchNorm),
    *(torchvision.ops.FrozenBatchNorm2d, timm.layers.FrozenBatchNormAct2d),
)


class Layer(NamedTuple):
    """A module and its name in the network."""

    name: str
    module: nn.Module


@dataclass(frozen=True)
class Consumer:
    """A mixing layer that uses a site's channels, and the batch norm its output goes through, if any."""

    name: str
    norm: str | None


@dataclass(frozen=True, kw_only=True)
class Site:
    """Module names, relative to the network, of one place where filters can be removed.

    The channels' values before the `activation` are the sum of what `norms` give (one batch norm inside a
    block, one per writer in a residual stream); where there is none, `input_norm` is the layer norm before
    the producer. `carriers` pass the channels on; `squeezes` and `expands` are the layers of squeeze-excite.
    `unit` channels go together (a group of a grouped convolution); `kind` is the same for sites of the same
    structure. `branch` is the batch norm that ends the block and `residual` are those whose sum is the residual
    stream behind it; both are empty where there are none.
    """

    kind: str = ""
    producers: tuple[str, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    carriers: tuple[str, ...] = ()
    squeezes: tuple[Consumer, ...] = ()
    expands: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    input_norm: str | None = None
    activation: str | None = None
    unit: int = 1
    branch: tuple[str, ...] = ()
    residual: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.producers[0]

    @property
    def output_sliced(self) -> tuple[str, ...]:
        """Modules that lose outputs (and, if grouped, the same inputs)."""
        return (*self.producers, *self.carriers, *self.expands)

    @property
    def readers(self) -> tuple[Consumer, ...]:
        """Everything that loses inputs: the consumers and the squeezes."""
        return (*self.consumers, *self.squeezes)


def width_of(network: nn.Module, site: Site) -> int:
    """Channels of a site."""
    return network.get_submodule(site.name).weight.shape[0]


def find_sites(network: nn.Module, granularity: str = "filter") -> list[Site]:
    """All sites that a granularity offers, in the order of the network's modules, residual streams last.

    Raises UserError for an unknown granularity, for a network none of whose blocks is declared, for a
    block with a layer that its declaration does not cover, and for `channel` where it is not offered.
    """
    choose("granularity", granularity, GRANULARITIES)
    label = getattr(network, "name", type(network).__name__)
    stem, chains = _stem(network), _chains(network).values()
    stages, sites = [_Stage([stem] if stem else [])], list[Site]()
    for chain in chains:
        stages[-1].readers.append(chain)
        if not chain.adds_its_input:
            stages.append(_Stage())
        stages[-1].writers.append(chain)
        sites += chain.inner_sites(_norms(stages[-1].written))
    if granularity == "channel" and chains:
        if stem is None and not any(type(module) in STEMS for module in network.modules()):
            raise UserError(
                f"{label} offers no granularity 'channel': expected a convolutional network whose residual "
                "stream is written through batch norms. Choose granularity='filter'."
            )
        for layer in undeclared_layers(network):
            raise UserError(
                f"{layer.name} of {label} is in no declared block: expected those of lib/pruning/blocks.py alone "
                "between the stem and the last one. Choose granularity='filter', which says what share of the "
                "MACs it reaches."
            )
        if stem:  # the last stage's width is the representation's
            sites += [stage.residual_stream() for stage in stages][:-1]
    if not sites:
        kinds = " and ".join(sorted({chain.kind for chain in chains})) or "none"
        raise UserError(
            f"{label} has no filters that can be removed, 0 % of its MACs are in reach: expected blocks that "
            f"lib/pruning/blocks.py declares, with filters inside, and found {kinds}. docs/extending.md tells how "
            "to declare another."
        )
    return sites


def residual_sums(network: nn.Module) -> dict[str, tuple[str, bool]]:
    """Where the sum of branch and shortcut is seen, by the name of the layer that ends the branch.

    A module, and whether the sum enters it (the activation behind the sum) or leaves it (the block). Blocks
    that add nothing, or an activated branch, are left out.
    """
    return {
        chain.written[0].name: (chain.final_activation or name, bool(chain.final_activation))
        for name, chain in _chains(network).items()
        if chain.adds_its_input or len(chain.written) > 1
        if not _named(chain.branch[chain.mixing[-1] :], _ACTIVATIONS)
    }


def undeclared_layers(network: nn.Module) -> list[Layer]:
    """Mixing layers before the last declared block that neither a block nor the stem accounts for.

    None where the residual stream does not run through convolutions, as in ConvNeXt and transformers.
    """
    stem = _stem(network)
    if stem is None:
        return []
    layers = [Layer(*named) for named in network.named_modules() if isinstance(named[1], (nn.Conv2d, nn.Linear))]
    blocks = tuple(f"{name}." for name in _chains(network))
    last = max((place for place, layer in enumerate(layers) if layer.name.startswith(blocks)), default=0)
    known = {layer.name for layer in stem.branch}
    return [layer for layer in layers[:last] if not layer.name.startswith(blocks) and layer.name not in known]


def last_stage_of(network: nn.Module) -> set[str]:
    """Names of the parameters from the last block on that does not add its input: it opens the last stage.

    Raises UserError for a network without such a block.
    """
    opening = [name for name, chain in _chains(network).items() if not chain.adds_its_input]
    if not opening or not opening[-1]:
        raise UserError(
            f"{getattr(network, 'name', 'This network')} has no declared block that opens a stage: expected a "
            "residual network of convolutions. Choose learner='norms' or 'independent'."
        )
    names = [name for name, _ in network.named_parameters()]
    first = next(place for place, name in enumerate(names) if name.startswith(f"{opening[-1]}."))
    return set(names[first:])


def _chains(network: nn.Module) -> dict[str, "_Chain"]:
    """Every declared block by its name."""
    return {
        name: _Chain(network, name, BLOCKS[type(module)])
        for name, module in network.named_modules()
        if type(module) in BLOCKS
    }


# --- how the layers of a block are told apart -------------------------------------------------------

_SQUEEZE_EXCITES = {
    torchvision.ops.SqueezeExcitation: ("fc1", "fc2"),
    timm.models._efficientnet_blocks.SqueezeExcite: ("conv_reduce", "conv_expand"),
    timm.layers.SEModule: ("fc1", "fc2"),
}
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Tanh),
    *(timm.layers.Swish, timm.layers.HardSwish, timm.layers.GELU, timm.layers.GELUTanh),
)
_TRANSPARENT = (
    *(nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(torchvision.ops.StochasticDepth, timm.layers.DropPath, timm.layers.AvgPool2dSame),
)
_CONTAINERS = (nn.Sequential, timm.layers.ConvNormAct, timm.layers.Mlp, timm.models.vgg.ConvMlp)


def _layers_in(name: str, module: nn.Module) -> Iterator[Layer]:
    """The layers in a module, in the order of the forward pass, a fused norm and activation as two."""
    if isinstance(module, (*BATCH_NORMS, nn.LayerNorm)):
        if module.weight is None or getattr(module, "running_var", module.weight) is None:
            raise UserError(
                f"{name} has no scale, or keeps no running statistics: expected norms with affine=True and "
                "track_running_stats=True, which tell what their channels carry. Train it with those."
            )
        yield Layer(name, module)
        for part in ("drop", "act"):  # timm's norms carry their activation
            if hasattr(module, part):
                yield from _layers_in(f"{name}.{part}", getattr(module, part))
    elif isinstance(module, _CONTAINERS):
        for child, inner in module.named_children():
            yield from _layers_in(f"{name}.{child}", inner)
    elif isinstance(module, (nn.Conv2d, nn.Linear, *_ACTIVATIONS, *_SQUEEZE_EXCITES)):
        yield Layer(name, module)
    elif not isinstance(module, _TRANSPARENT):
        raise UserError(
            f"{name} is a {type(module).__name__}: expected convolutions, linear layers, batch norms, "
            "squeeze-excite and plain activations in a block. docs/extending.md tells how to declare "
            "another kind of block."
        )


class _Chain:
    """A block as rows of layers: its branch, and its shortcut where that has layers of its own.

    It reads the residual stream with each row's first mixing layer and writes it with the last, the branch's first.
    """

    def __init__(self, network: nn.Module, name: str, block: Block):
        owner = network.get_submodule(name)
        self.kind, prefix = type(owner).__name__, f"{name}." if name else ""
        for optional in block.absent.split():
            module = getattr(owner, optional, None)
            if module is not None and not isinstance(module, nn.Identity):
                raise UserError(
                    f"{prefix}{optional} is a {type(module).__name__}: expected a {self.kind} without one. "
                    "docs/extending.md tells how to declare another kind of block."
                )
        beside = block.shortcut if block.shortcut and getattr(owner, block.shortcut) is not None else ""
        self.branch, shortcut = (
            [layer for part in parts.split() for layer in _layers_in(f"{prefix}{part}", owner.get_submodule(part))]
            for parts in (block.branch, beside)
        )
        self.mixing = _mixing(self.branch)
        rows = [self.branch, shortcut] if shortcut else [self.branch]
        self.read, self.written = ([_consumer(row, _mixing(row)[end]) for row in rows] for end in (0, -1))
        self.adds_its_input = block.adds_input(owner) and not shortcut
        own = _named(self.branch[-1:], _ACTIVATIONS)
        self.final_activation = f"{prefix}{block.activation}" if block.activation else next(iter(own), None)

    def inner_sites(self, residual: tuple[str, ...]) -> Iterator[Site]:
        """Sites between one mixing layer of the branch and the next."""
        for place, (first, last) in enumerate(pairwise(self.mixing)):
            path = _path_through(self.branch[first + 1 : last])
            yield replace(
                path,
                kind=f"{self.kind} {place}",
                producers=(self.branch[first].name,),
                consumers=(_consumer(self.branch, last),),
                norms=path.norms[-1:],
                input_norm=next(iter(_named(self.branch[:first][-1:], (nn.LayerNorm,))), None),
                branch=_norms(self.written)[:1],
                residual=residual,
            )


@dataclass
class _Stage:
    """The blocks that write one residual stream, and those that read it."""

    writers: list[_Chain] = field(default_factory=list)
    readers: list[_Chain] = field(default_factory=list)

    @property
    def written(self) -> list[Consumer]:
        return [layer for chain in self.writers for layer in chain.written]

    def residual_stream(self) -> Site:
        norms = _norms(self.written)
        passed = [_path_through(chain.branch[: chain.mixing[0]]) for chain in self.readers]
        return Site(
            kind="residual stream",
            producers=tuple(writer.name for writer in self.written),
            consumers=tuple(layer for chain in self.readers for layer in chain.read),
            carriers=(*norms, *(name for path in passed for name in path.carriers)),
            squeezes=tuple(squeeze for path in passed for squeeze in path.squeezes),
            expands=tuple(name for path in passed for name in path.expands),
            norms=norms,
            activation=self.writers[0].final_activation,
        )


def _path_through(layers: list[Layer]) -> Site:
    """What channels pass through between two mixing layers, as a site without them."""
    for name, module in layers:
        widens = isinstance(module, nn.Conv2d) and module.in_channels != module.out_channels
        if widens or isinstance(module, nn.LayerNorm):
            raise UserError(
                f"{name} is a {type(module).__name__} that mixes or multiplies the channels that would go: "
                "expected batch norms, activations, squeeze-excite and grouped convolutions of one width "
                "there. Choose another network, or granularity='filter'."
            )
    excites = [(name, *_SQUEEZE_EXCITES[type(module)]) for name, module in layers if type(module) in _SQUEEZE_EXCITES]
    return Site(
        carriers=_named(layers, (*BATCH_NORMS, nn.Conv2d)),
        squeezes=tuple(Consumer(f"{name}.{squeeze}", None) for name, squeeze, _ in excites),
        expands=tuple(f"{name}.{expand}" for name, _, expand in excites),
        norms=_named(layers, BATCH_NORMS),
        activation=next(reversed(_named(layers, _ACTIVATIONS)), None),
        unit=math.lcm(1, *(conv.out_channels // conv.groups for _, conv in layers if isinstance(conv, nn.Conv2d))),
    )


def _mixing(layers: list[Layer]) -> list[int]:
    """The places of the layers that mix channels."""
    return [
        place
        for place, (_, module) in enumerate(layers)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]


def _named(layers: list[Layer], kinds: tuple[type[nn.Module], ...]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers if isinstance(layer.module, kinds))


def _consumer(layers: list[Layer], place: int) -> Consumer:
    behind = _named(layers[place + 1 : place + 2], BATCH_NORMS)
    return Consumer(layers[place].name, next(iter(behind), None))


def _norms(writers: list[Consumer]) -> tuple[str, ...]:
    return tuple(writer.norm for writer in writers if writer.norm)


def _stem(network: nn.Module) -> _Chain | None:
    """What writes the first residual stream, where the network's kind is declared to have one."""
    for name, module in network.named_modules():
        if modules := STEMS.get(type(module)):
            return _Chain(network, name, Block(modules, skip=False))
    return None
