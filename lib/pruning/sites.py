"""Where filters can be removed: the sites of a network, found from how its blocks are declared.

A site is where channels are made (producers), what carries them (norms, depthwise and grouped convolutions,
squeeze-excite) and where they are used (consumers). Inside a block, sites lie between one mixing layer (an
ungrouped convolution or a linear layer) and the next. The residual stream of a stage is a site too, at the
granularity `channel`. Nothing is traced: lib/pruning/blocks.py declares each block in a line.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
class Path:
    """What channels pass through between two mixing layers, by module names."""

    squeezes: tuple[Consumer, ...] = ()
    expands: tuple[str, ...] = ()
    carriers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    activation: str | None = None
    unit: int = 1


@dataclass(frozen=True, kw_only=True)
class Site(Path):
    """Module names, relative to the network, of one place where filters can be removed.

    The channels' values before the `activation` are the sum of what `norms` give (one batch norm inside a
    block, one per writer in a residual stream); where there is none, `input_norm` is the layer norm before
    the producer. `unit` channels go together (a group of a grouped convolution); `kind` is the same for
    sites of the same structure. `branch` is the batch norm that ends the block and `residual` are those whose
    sum is the residual stream behind it; both are empty where there are none.
    """

    kind: str
    producers: tuple[str, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    input_norm: str | None = None
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
    chains = list(_chains(network).values())
    stem = _stem(network)
    sites: list[Site] = []
    residual = _norms(stem.written()) if stem else ()
    for chain in chains:
        written = _norms(chain.written())
        residual = (*residual, *written) if chain.adds_its_input else written
        sites += chain.inner_sites(residual)
    if granularity == "channel" and chains:
        if stem is None and not any(type(module) in STEMS for module in network.modules()):
            raise UserError(
                f"{label} offers no granularity 'channel': expected a convolutional network whose residual "
                "stream is written through batch norms. Choose granularity='filter'."
            )
        sites += _residual_streams(network, stem, chains)
    if not sites:
        kinds = sorted({chain.kind for chain in chains})
        raise UserError(
            f"{label} has no filters that can be removed, 0 % of its MACs are in reach: expected blocks that "
            "lib/pruning/blocks.py declares, with filters inside, and found "
            f"{' and '.join(kinds) or 'none'}. docs/extending.md tells how to declare another."
        )
    return sites


def residual_sums(network: nn.Module) -> dict[str, tuple[str, bool]]:
    """Where the sum of branch and shortcut is seen, by the name of the layer that ends the branch.

    A module, and whether the sum enters it (the activation behind the sum) or leaves it (the block). Blocks
    that add nothing, or an activated branch, are left out.
    """
    sums = {}
    for name, chain in _chains(network).items():
        last = chain.branch.mixing[-1]
        adds = chain.adds_its_input or len(chain.rows) > 1
        if adds and not _activations(chain.branch.layers[last:]):
            sums[chain.branch.last.name] = (chain.final_activation or name, bool(chain.final_activation))
    return sums


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


def _is_mixing(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


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


class _Row:
    """Layers in the order of the forward pass, and the places of those that mix channels."""

    def __init__(self, layers: list[Layer]):
        self.layers = layers
        self.mixing = [place for place, layer in enumerate(layers) if _is_mixing(layer.module)]

    def consumer(self, place: int) -> Consumer:
        behind = _batch_norms(self.layers[place + 1 : place + 2])
        return Consumer(self.layers[place].name, behind[0] if behind else None)

    @property
    def first(self) -> Consumer:
        return self.consumer(self.mixing[0])

    @property
    def last(self) -> Consumer:
        return self.consumer(self.mixing[-1])


class _Chain:
    """A block as rows of layers: its branch, and its shortcut where that has layers of its own."""

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

        def row(modules: str) -> _Row:
            named = [(f"{prefix}{part}", owner.get_submodule(part)) for part in modules.split()]
            return _Row([layer for part in named for layer in _layers_in(*part)])

        beside = block.shortcut if block.shortcut and getattr(owner, block.shortcut) is not None else ""
        self.branch, shortcut = row(block.branch), row(beside)
        self.rows = [self.branch, shortcut] if shortcut.layers else [self.branch]
        self.adds_its_input = block.adds_input(owner) and not shortcut.layers
        own = _activations(self.branch.layers[-1:])
        self.final_activation = f"{prefix}{block.activation}" if block.activation else next(iter(own), None)

    def inner_sites(self, residual: tuple[str, ...]) -> Iterator[Site]:
        """Sites between one mixing layer of the branch and the next."""
        layers, mixing = self.branch.layers, self.branch.mixing
        for place, (first, last) in enumerate(pairwise(mixing)):
            path = _path_through(layers[first + 1 : last])
            before = layers[first - 1] if first else None
            yield Site(
                **{**vars(path), "norms": path.norms[-1:]},
                producers=(layers[first].name,),
                consumers=(self.branch.consumer(last),),
                kind=f"{self.kind} {place}",
                input_norm=before.name if before and isinstance(before.module, nn.LayerNorm) else None,
                branch=_norms(self.written())[:1],
                residual=residual,
            )

    def opening(self) -> Path:
        """What the residual stream passes through before the branch's first mixing layer."""
        return _path_through(self.branch.layers[: self.branch.mixing[0]])

    def read(self) -> list[Consumer]:
        """The layers that use the residual stream."""
        return [row.first for row in self.rows]

    def written(self) -> list[Consumer]:
        """The mixing layers whose sum the block adds to the residual stream, the branch's first."""
        return [row.last for row in self.rows]


def _path_through(layers: list[Layer]) -> Path:
    for name, module in layers:
        widens = isinstance(module, nn.Conv2d) and module.in_channels != module.out_channels
        if widens or isinstance(module, nn.LayerNorm):
            raise UserError(
                f"{name} is a {type(module).__name__} that mixes or multiplies the channels that would go: "
                "expected batch norms, activations, squeeze-excite and grouped convolutions of one width "
                "there. Choose another network, or granularity='filter'."
            )
    excites = [(n, *_SQUEEZE_EXCITES[type(m)]) for n, m in layers if type(m) in _SQUEEZE_EXCITES]
    carriers = [layer for layer in layers if isinstance(layer.module, (*BATCH_NORMS, nn.Conv2d))]
    grouped = [module for _, module in carriers if isinstance(module, nn.Conv2d)]
    return Path(
        squeezes=tuple(Consumer(f"{name}.{squeeze}", None) for name, squeeze, _ in excites),
        expands=tuple(f"{name}.{expand}" for name, _, expand in excites),
        carriers=tuple(layer.name for layer in carriers),
        norms=_batch_norms(layers),
        activation=next(reversed(_activations(layers)), None),
        unit=math.lcm(1, *(conv.out_channels // conv.groups for conv in grouped)),
    )


def _batch_norms(layers: list[Layer]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers if isinstance(layer.module, BATCH_NORMS))


def _activations(layers: list[Layer]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers if isinstance(layer.module, _ACTIVATIONS))


def _norms(writers: list[Consumer]) -> tuple[str, ...]:
    return tuple(writer.norm for writer in writers if writer.norm)


# --- residual streams -------------------------------------------------------------------------------


def _stem(network: nn.Module) -> _Chain | None:
    """What writes the first residual stream, where the network's kind is declared to have one."""
    for name, module in network.named_modules():
        if modules := STEMS.get(type(module)):
            return _Chain(network, name, Block(modules, skip=False))
    return None


def undeclared_layers(network: nn.Module) -> list[Layer]:
    """Mixing layers before the last declared block that neither a block nor the stem accounts for.

    None where the residual stream does not run through convolutions, as in ConvNeXt and transformers.
    """
    stem = _stem(network)
    if stem is None:
        return []
    blocks = tuple(f"{name}." for name, module in network.named_modules() if type(module) in BLOCKS)
    known = {layer.name for layer in stem.branch.layers}
    mixing = [
        Layer(name, module) for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    last = max((place for place, layer in enumerate(mixing) if layer.name.startswith(blocks)), default=0)
    return [layer for layer in mixing[:last] if not layer.name.startswith(blocks) and layer.name not in known]


def _residual_streams(network: nn.Module, stem: _Chain | None, chains: list[_Chain]) -> list[Site]:
    """The residual stream of every stage but the last, whose width is the representation's."""
    if stem is None:
        return []
    for layer in undeclared_layers(network):
        raise UserError(
            f"{layer.name} of {getattr(network, 'name', 'this network')} is in no declared block: expected "
            "those of lib/pruning/blocks.py alone between the stem and the last one. Choose "
            "granularity='filter', which says what share of the MACs it reaches."
        )
    finished, current = [], _opened(stem)
    for chain in chains:
        passed = chain.opening()
        current = replace(
            current,
            carriers=(*current.carriers, *passed.carriers),
            squeezes=(*current.squeezes, *passed.squeezes),
            expands=(*current.expands, *passed.expands),
            consumers=(*current.consumers, *chain.read()),
        )
        if chain.adds_its_input:
            current = _written(current, chain.written())
        else:
            finished.append(current)
            current = _opened(chain)
    return finished


def _opened(chain: _Chain) -> Site:
    """A residual stream that `chain` is the first to write."""
    return _written(Site(kind="residual stream", activation=chain.final_activation), chain.written())


def _written(stream: Site, writers: list[Consumer]) -> Site:
    norms = _norms(writers)
    return replace(
        stream,
        producers=(*stream.producers, *(writer.name for writer in writers)),
        carriers=(*stream.carriers, *norms),
        norms=(*stream.norms, *norms),
    )
