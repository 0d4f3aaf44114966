"""Where filters can be removed: the sites of a network, found from how its blocks are declared.

A site is where channels are made (producers), what carries them (norms, depthwise and grouped convolutions,
squeeze-excite) and where they are used (consumers). Inside a block, sites lie between one mixing layer (an
ungrouped convolution or a linear layer) and the next. The residual stream of a stage is a site too, at the
granularity `channel`. Nothing is traced: lib/pruning/families.py declares each block in a line.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from torch import nn

from lib.common.errors import UserError
from lib.common.vision import timm, torchvision

GRANULARITIES = ("filter", "channel")


@dataclass(frozen=True)
class Consumer:
    """A mixing layer that uses a site's channels, and the batch norm its output goes through, if any."""

    name: str
    norm: str | None


@dataclass(frozen=True)
class Site:
    """Module names, relative to the network, of one place where filters can be removed.

    The channels' values before the `activation` are the sum of what `norms` give (one batch norm inside a
    block, one a writer in a residual stream); where there is none, `input_norm` is the layer norm before
    the producer. `unit` channels go together (a group of a grouped convolution); `kind` is the same for
    sites of the same structure. `branch` is the batch norm that ends the block and `stream` are those whose
    sum is the residual stream behind it; both are empty where there are none.
    """

    producers: tuple[str, ...]
    carriers: tuple[str, ...]
    squeezes: tuple[Consumer, ...]
    expands: tuple[str, ...]
    consumers: tuple[Consumer, ...]
    norms: tuple[str, ...]
    input_norm: str | None
    activation: str | None
    unit: int
    kind: str
    branch: tuple[str, ...] = ()
    stream: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class Block:
    """How channels run through one block of a family.

    `branch` names its modules in the order of the forward pass, `shortcut` the module beside it (None or an
    identity: the input is added as it is); without `skip` nothing is added. `activation` follows the sum.
    `absent` names optional modules that the declaration does not cover.
    """

    branch: str
    shortcut: str | None = None
    skip: bool = True
    activation: str | None = None
    absent: str = ""


_BLOCKS: dict[type[nn.Module], Callable[[nn.Module], Block]] = {}
_STEMS: dict[type[nn.Module], str | None] = {}


def declare_block(*types: type[nn.Module]):
    """Declare a kind of block: the decorated function maps a block to its `Block`."""

    def register(describe: Callable[[nn.Module], Block]) -> Callable[[nn.Module], Block]:
        _BLOCKS.update(dict.fromkeys(types, describe))
        return describe

    return register


def declare_stem(*types: type[nn.Module], modules: str | None) -> None:
    """Say which modules of a network write the first residual stream; None where there is no stream.

    Networks of a declared type offer the granularity `channel`.
    """
    _STEMS.update(dict.fromkeys(types, modules))


def find_sites(network: nn.Module, granularity: str = "filter") -> list[Site]:
    """All sites that a granularity offers, in the order of the network's modules, streams last.

    Raises UserError for an unknown granularity, for a network none of whose blocks is declared, for a
    block with a layer that its declaration does not cover, and for `channel` where it is not offered.
    """
    if granularity not in GRANULARITIES:
        raise UserError(f"Unknown granularity {granularity!r}: expected one of {', '.join(GRANULARITIES)}.")
    label = getattr(network, "name", type(network).__name__)
    chains = [
        _Chain(network, name, _BLOCKS[type(module)](module))
        for name, module in network.named_modules()
        if type(module) in _BLOCKS
    ]
    if not chains:
        raise UserError(
            f"{label} has no block whose filters can be removed: expected one of the families declared in "
            "lib/pruning/families.py. docs/extending.md tells how to declare another."
        )
    sites, stream = [], ()
    for chain in chains:
        norms = tuple(writer.norm for writer in chain.written() if writer.norm)
        stream = (*stream, *norms) if chain.adds_its_input else norms
        sites += [replace(site, branch=norms[:1], stream=stream) for site in chain.inner_sites()]
    return sites if granularity == "filter" else sites + _streams(network, label, chains)


# --- how the layers of a block are told apart -------------------------------------------------------

_SQUEEZE_EXCITES = {
    torchvision.ops.SqueezeExcitation: ("fc1", "fc2"),
    timm.models._efficientnet_blocks.SqueezeExcite: ("conv_reduce", "conv_expand"),
    timm.layers.SEModule: ("fc1", "fc2"),
}
_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Hardswish,
    nn.GELU,
    nn.LeakyReLU,
    nn.ELU,
    nn.Mish,
    nn.Tanh,
    timm.layers.Swish,
    timm.layers.HardSwish,
    timm.layers.GELU,
    timm.layers.GELUTanh,
)
_TRANSPARENT = (
    nn.Identity,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    torchvision.ops.StochasticDepth,
    timm.layers.DropPath,
    timm.layers.AvgPool2dSame,
)
_CONTAINERS = (nn.Sequential, timm.layers.ConvNormAct, timm.layers.Mlp, timm.models.vgg.ConvMlp)


def _is_mixing(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers in a module, in the order of the forward pass, a fused norm and activation as two."""
    if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        yield name, module
        for part in ("drop", "act"):  # timm's norms carry their activation
            if hasattr(module, part):
                yield from _leaves(f"{name}.{part}", getattr(module, part))
    elif isinstance(module, _CONTAINERS):
        for child, inner in module.named_children():
            yield from _leaves(f"{name}.{child}", inner)
    elif not isinstance(module, _TRANSPARENT):
        known = isinstance(module, (nn.Conv2d, nn.Linear, *_ACTIVATIONS, *_SQUEEZE_EXCITES))
        if not known:
            raise UserError(
                f"{name} is a {type(module).__name__}: expected convolutions, linear layers, batch norms, "
                "squeeze-excite and plain activations in a block. docs/extending.md tells how to declare "
                "another kind of block."
            )
        yield name, module


class _Chain:
    """A block's branch as a row of layers."""

    def __init__(self, network: nn.Module, name: str, block: Block):
        self.block, self.kind = block, type(network.get_submodule(name)).__name__
        prefix = f"{name}." if name else ""
        owner = network.get_submodule(name)
        for optional in block.absent.split():
            module = getattr(owner, optional, None)
            if module is not None and not isinstance(module, nn.Identity):
                raise UserError(
                    f"{prefix}{optional} is a {type(module).__name__}: expected a {self.kind} without one. "
                    "docs/extending.md tells how to declare another kind of block."
                )
        self.layers = [
            leaf
            for part in block.branch.split()
            for leaf in _leaves(f"{prefix}{part}", network.get_submodule(f"{prefix}{part}"))
        ]
        shortcut = getattr(owner, block.shortcut) if block.shortcut else None
        self.shortcut = list(_leaves(f"{prefix}{block.shortcut}", shortcut)) if shortcut is not None else []
        name, module = self.layers[-1]
        own = name if isinstance(module, _ACTIVATIONS) else None
        self.final_activation = f"{prefix}{block.activation}" if block.activation else own
        self.mixing = [i for i, (_, module) in enumerate(self.layers) if _is_mixing(module)]

    def inner_sites(self) -> Iterator[Site]:
        """Sites between one mixing layer of the branch and the next."""
        for place, (first, last) in enumerate(zip(self.mixing, self.mixing[1:], strict=False)):
            path = _Path(self.layers[first + 1 : last])
            before = self.layers[first - 1][1] if first else None
            yield Site(
                producers=(self.layers[first][0],),
                carriers=path.carriers,
                squeezes=path.squeezes,
                expands=path.expands,
                consumers=(_consumer(self.layers, last),),
                norms=path.norms[-1:],
                input_norm=self.layers[first - 1][0] if isinstance(before, nn.LayerNorm) else None,
                activation=path.activation,
                unit=path.unit,
                kind=f"{self.kind} {place}",
            )

    def opening(self) -> "_Path":
        """What the residual stream passes through before the branch's first mixing layer."""
        return _Path(self.layers[: self.mixing[0]])

    def read(self) -> tuple[Consumer, ...]:
        """The layers that use the residual stream."""
        branches = ((self.layers, self.mixing[0]), (self.shortcut, 0))
        return tuple(_consumer(layers, place) for layers, place in branches if layers)

    def written(self) -> tuple[Consumer, ...]:
        """The mixing layers whose sum the block adds to the residual stream, the branch's first."""
        branches = ((self.layers, self.mixing[-1]), (self.shortcut, 0))
        return tuple(_consumer(layers, place) for layers, place in branches if layers)

    @property
    def adds_its_input(self) -> bool:
        return self.block.skip and not self.shortcut


class _Path:
    """What channels pass through between two mixing layers."""

    def __init__(self, layers: list[tuple[str, nn.Module]]):
        excites = [(name, module) for name, module in layers if isinstance(module, tuple(_SQUEEZE_EXCITES))]
        parts = [(name, *_SQUEEZE_EXCITES[type(module)]) for name, module in excites]
        self.squeezes = tuple(Consumer(f"{name}.{squeeze}", None) for name, squeeze, _ in parts)
        self.expands = tuple(f"{name}.{expand}" for name, _, expand in parts)
        carriers = [(n, m) for n, m in layers if isinstance(m, (nn.BatchNorm2d, nn.Conv2d))]
        self.carriers = tuple(name for name, _ in carriers)
        self.norms = tuple(name for name, module in carriers if isinstance(module, nn.BatchNorm2d))
        grouped = [module for _, module in carriers if isinstance(module, nn.Conv2d)]
        self.unit = math.lcm(1, *(conv.out_channels // conv.groups for conv in grouped))
        activations = [name for name, module in layers if isinstance(module, _ACTIVATIONS)]
        self.activation = activations[-1] if activations else None


def _consumer(layers: list[tuple[str, nn.Module]], place: int) -> Consumer:
    behind = layers[place + 1] if place + 1 < len(layers) else ("", None)
    return Consumer(layers[place][0], behind[0] if isinstance(behind[1], nn.BatchNorm2d) else None)


# --- residual streams -------------------------------------------------------------------------------


@dataclass
class _Stream:
    """The residual stream of a stage while it is followed from block to block."""

    activation: str | None
    writers: list[Consumer]
    carriers: list[str] = field(default_factory=list)
    squeezes: list[Consumer] = field(default_factory=list)
    expands: list[str] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)

    def site(self) -> Site:
        return Site(
            producers=tuple(writer.name for writer in self.writers),
            carriers=(*(writer.norm for writer in self.writers), *self.carriers),
            squeezes=tuple(self.squeezes),
            expands=tuple(self.expands),
            consumers=tuple(self.consumers),
            norms=tuple(writer.norm for writer in self.writers),
            input_norm=None,
            activation=self.activation,
            unit=1,
            kind="residual stream",
        )


def _streams(network: nn.Module, label: str, chains: list[_Chain]) -> list[Site]:
    """The residual stream of every stage but the last, whose width is the representation's."""
    root = next(((n, m) for n, m in network.named_modules() if type(m) in _STEMS), None)
    if root is None:
        raise UserError(
            f"{label} offers no granularity 'channel': expected a convolutional network whose residual "
            "stream is written through batch norms. Choose granularity='filter'."
        )
    name, body = root
    stem_modules = _STEMS[type(body)]
    if stem_modules is None:
        return []
    stem = _Chain(network, name, Block(stem_modules, skip=False))
    current = _Stream(stem.final_activation, list(stem.written()))
    finished = []
    for chain in chains:
        opening = chain.opening()
        current.carriers += opening.carriers
        current.squeezes += opening.squeezes
        current.expands += opening.expands
        current.consumers += chain.read()
        if chain.adds_its_input:
            current.writers += chain.written()
        else:
            finished.append(current)
            current = _Stream(chain.final_activation, list(chain.written()))
    return [stream.site() for stream in finished]
