"""Plan what to remove, apply the plan, save and load what came out."""

import time
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lib.common.errors import UserError, choose
from lib.common.files import save_tensors
from lib.networks.backbone import Backbone, fit_classifier, load_backbone, tensors_hash
from lib.networks.copies import plain_copy, unwrapped, without_hooks
from lib.networks.measure import measure_latency
from lib.pruning.allocation import SCOPES, Allocation, Counts, SiteMacs, SiteSize, Target, meet
from lib.pruning.calibration import Calibration, checked_images
from lib.pruning.criteria import CRITERIA
from lib.pruning.repairs import REPAIRS
from lib.pruning.sites import GRANULARITIES, find_sites, undeclared_layers, width_of
from lib.pruning.surgery import keep_channels

# What a request names, and what is known of each kind.
NAMES = {"criterion": CRITERIA, "scope": SCOPES, "granularity": GRANULARITIES, "repair": REPAIRS}
FILE = "pruned.safetensors"  # in the folder that a pruned network is saved to


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to prune, with the defaults that hold everywhere. Raises UserError for what is unknown."""

    criterion: str = "activation"
    scope: str = "global"
    granularity: str = "filter"
    repair: str = "least_squares_synthetic"
    round_to: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, known in NAMES.items():
            choose(kind, getattr(self, kind), known)

    @property
    def looks_at(self) -> list[str]:
        """What of it works on images of one's own."""
        needs = {"criterion": CRITERIA[self.criterion].needs_images, "repair": REPAIRS[self.repair].needs == "images"}
        return [f"{kind}={getattr(self, kind)!r}" for kind, needed in needs.items() if needed]


def _one_amount(**amounts: float | None) -> tuple[str, float]:
    """The one amount that is given."""
    given = {name: value for name, value in amounts.items() if value is not None}
    if len(given) != 1:
        names = " and ".join(given) or "no amount"
        raise UserError(f"plan_pruning was given {names}: expected exactly one of {', '.join(amounts)}.")
    ((name, value),) = given.items()
    if not isinstance(value, Real):
        raise UserError(f"{name}={value!r} is no number: expected one, such as ratio=0.5.")
    if name == "ratio" and not 0 <= value < 1:
        raise UserError(f"ratio={value} is out of range: expected a share in 0 <= ratio < 1, such as 0.5.")
    return name, float(value)


def _whole_number(name: str, value: int, least: int) -> int:
    if not isinstance(value, Integral) or value < least:
        raise UserError(f"{name}={value!r} is out of range: expected a whole number of {least} or more.")
    return int(value)


@dataclass(frozen=True, kw_only=True, repr=False)
class PruningPlan(Request):
    """Which filters of which network stay, and how the removal is repaired.

    `kept` maps a site's name to the ascending indices of the filters that stay; `reach` is the share of the
    network's MACs in layers that a site belongs to. `calibration_macs` is what criterion and repair computed
    on images, to be charged to a budget; `seconds` is how long planning took. `corrections` holds the tensors
    of the pruned network that the repair changed.
    """

    backbone: str
    ratio: float
    kept: dict[str, list[int]]
    sites: dict[str, SiteSize]
    reach: float = 1.0
    target: Target | None = None
    calibration_macs: int = 0
    seconds: float = field(default=0.0, compare=False)
    corrections: dict[str, Any] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        table, how = self.table(), ", ".join([self.criterion, self.scope, self.granularity, self.repair])
        return (
            f"{self.backbone}: {table['after'].sum()} of {table['before'].sum()} filters stay ({how}); the "
            f"layers of the {len(table)} sites hold {self.reach:.0%} of the MACs\n"
            f"{table.to_string(index=False, max_rows=6)}"
        )

    def table(self) -> pd.DataFrame:
        """One row per site: filters and MACs before and after, and the count `wanted` before rounding.

        The MACs are those of one image, of every layer that the site's channels go through; two sites in
        a row share the layer between them.
        """
        rows = [{"site": name, **asdict(size)} for name, size in self.sites.items()]
        return pd.DataFrame(rows, columns=["site", *(column.name for column in fields(SiteSize))])

    def apply(self, network: Backbone) -> Backbone:
        """A new, physically smaller network; `network` is untouched.

        Masks and parametrisations become weights; modes, hooks and types stay. Raises UserError for another
        network than the dense one that was planned for.
        """
        small = plain_copy(_backbone(network))
        remove(small, self)
        tensors = small.state_dict()
        with torch.no_grad():
            for name, value in self.corrections.items():
                tensors[name].copy_(value)
        return small

    def save(self, small: Backbone, folder: Path | str) -> None:
        """Write the network that `apply` gave, and the plan with it, to one file in `folder`.

        It may have been trained since, and may have a linear classifier of its own. Raises UserError for a
        network that `load_pruned` could not rebuild.
        """
        small = plain_copy(_backbone(small))
        tensors = small.state_dict()
        try:
            _rebuilt(self, tensors)
        except (UserError, RuntimeError) as error:
            raise UserError(
                f"This {small.name} cannot be saved, for it could not be loaded again: expected what apply "
                f"gave for a network that load_backbone knows, its classifier linear or None ({error})."
            ) from error
        plan = _STORED.dump_json(self, exclude={"corrections"}).decode()
        save_tensors(tensors, Path(folder) / FILE, {"plan": plan, "weights": tensors_hash(tensors)})


_STORED = TypeAdapter(PruningPlan)


def _rebuilt(plan: PruningPlan, tensors: dict[str, Tensor]) -> Backbone:
    """The network of `plan`, by its ordinary constructor, with these tensors."""
    with torch.random.fork_rng(devices=[]):
        small = load_backbone(plan.backbone, pretrained=False)
    remove(small, plan)
    fit_classifier(small, tensors)
    for name, own in (*small.named_parameters(), *small.named_buffers()):
        own.data = own.data.to(tensors[name].dtype if name in tensors else own.dtype)
    small.load_state_dict(tensors)
    return small


def _backbone(network: nn.Module) -> Backbone:
    """The backbone inside whatever wraps it."""
    network = unwrapped(network)
    if not isinstance(network, Backbone):
        raise UserError(
            f"{type(network).__name__} is no Backbone: expected load_backbone('timm:NAME', weights=FILE), "
            "or 'torchvision:NAME', or Backbone(name, body, classifier, image_size, mean, std) with a body "
            "that ends in the representation."
        )
    return network


def remove(network: Backbone, plan: PruningPlan) -> None:
    """Remove, in place, what `plan` does not keep. Raises UserError where the plan does not fit."""
    sites = {site.name: site for site in find_sites(network, plan.granularity)}
    widths = {name: width_of(network, site) for name, site in sites.items()}
    planned = {name: size.before for name, size in plan.sites.items()}
    if (
        widths != planned
        or sites.keys() != plan.kept.keys()
        or not all(kept and kept == sorted(set(kept) & set(range(widths[name]))) for name, kept in plan.kept.items())
    ):
        raise UserError(
            f"The plan does not fit this {network.name}: expected the {len(plan.sites)} sites and widths of "
            f"the dense {plan.backbone}. Plan again with plan_pruning for this network."
        )
    for name, site in sites.items():
        if len(plan.kept[name]) < widths[name]:
            keep_channels(network, site, torch.tensor(plan.kept[name]))
            network.pruned = True


def load_pruned(folder: Path | str) -> Backbone:
    """The network that `PruningPlan.save` wrote, rebuilt by its ordinary constructor.

    Raises UserError for a file that is missing, damaged, or of another network.
    """
    file = Path(folder) / FILE
    try:
        if (Path(folder) / "plan.json").exists() and not file.exists():
            raise ValueError("plan.json is of an older version: plan again, and save")
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
        if tensors_hash(tensors) != about["weights"]:
            raise ValueError("its weights are not those that were saved")
        small = _rebuilt(_STORED.validate_json(about["plan"]), tensors)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no pruned network that can be loaded: expected {FILE} as written by "
            f"PruningPlan.save ({error})."
        ) from error
    return small.eval()


def plan_pruning(
    network: Backbone,
    ratio: float | None = None,
    criterion: str = Request.criterion,
    *,
    scope: str = Request.scope,
    granularity: str = Request.granularity,
    repair: str = Request.repair,
    round_to: int = Request.round_to,
    images: Tensor | np.ndarray | None = None,
    seed: int = Request.seed,
    target_macs: float | None = None,
    target_latency_ms: float | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    batch_size: int = 1,
    precision: str = "fp32",
) -> PruningPlan:
    """Choose, without any training, which filters of `network` to remove.

    One of three says how much: `ratio`, the share of filters removed at the sites (0 is the identity
    plan); `target_macs`, the forward MACs of one image at `image_size` (default: the network's own); or
    `target_latency_ms`, the milliseconds of one forward pass of `batch_size` images on `device` in
    `precision`. `images` (normalised, (N, 3, H, W)) are for the criteria and repairs that need them.
    `seed` matters to what is drawn: the criterion `random` and synthetic images. The network may be in any
    mode and type, on any device, wrapped (DataParallel, torch.compile), hooked or masked; it is left alone.

    Raises UserError for unknown names, numbers out of range, missing images, an undeclared architecture, a
    network that is pruned already, or a request that would remove nothing.
    """
    began = time.monotonic()
    round_to, seed = _whole_number("round_to", round_to, 1), _whole_number("seed", seed, 0)
    how = Request(
        criterion=criterion, scope=scope, granularity=granularity, repair=repair, round_to=round_to, seed=seed
    )
    given, amount = _one_amount(ratio=ratio, target_macs=target_macs, target_latency_ms=target_latency_ms)
    nothing = given == "ratio" and amount == 0
    network = _ready(network)
    images = checked_images(images, [] if nothing else how.looks_at, next(network.parameters()).dtype)
    image_size = network.image_size if image_size is None else _whole_number("image_size", image_size, 1)
    sites = find_sites(network, granularity)
    macs = SiteMacs(network, sites, image_size)
    plan = PruningPlan(
        backbone=network.name,
        ratio=0.0,
        kept={site.name: list(range(width)) for site, width in zip(sites, macs.widths, strict=True)},
        sites=macs.sizes(macs.widths, macs.widths),
        reach=macs.reach,
        **vars(how),
    )
    if nothing:
        return plan
    if missed := undeclared_layers(network):
        warnings.warn(
            f"{len(missed)} layers of {network.name} are in no declared block, such as {missed[0].name}: the "
            f"filters that can be removed reach {macs.reach:.0%} of its MACs.",
            stacklevel=2,
        )
    work = Calibration(network, sites, images, image_size, seed)
    allocation = Allocation(sites, work.scores(criterion), scope, round_to)

    def keeping(counts: Counts) -> PruningPlan:
        return replace(plan, kept=dict(zip(plan.kept, allocation.kept(counts), strict=True)))

    def milliseconds(counts: Counts) -> float:
        batch = _whole_number("batch_size", batch_size, 1)
        return measure_latency(keeping(counts).apply(network), image_size, device, batch, precision)

    if given == "ratio":
        counts, target = allocation.counts(amount), None
    else:
        cost = macs.total if given == "target_macs" else milliseconds
        amount, counts, target = meet(given.removeprefix("target_"), amount, allocation, cost)
    if counts == macs.widths:
        raise UserError(
            f"ratio={amount:g} removes no filter once the widths {sorted(set(counts))} are rounded to "
            f"multiples of {round_to}: choose a larger ratio or a smaller round_to."
        )
    wanted = [share * width for share, width in zip(allocation.shares(amount), macs.widths, strict=True)]
    plan = replace(keeping(counts), ratio=amount, sites=macs.sizes(wanted, counts), target=target)
    corrections = work.corrections(repair, {name: torch.tensor(indices) for name, indices in plan.kept.items()})
    return replace(plan, calibration_macs=work.macs, corrections=corrections, seconds=time.monotonic() - began)


def _ready(network: nn.Module) -> Backbone:
    """A copy to plan on: plain, dense, in eval mode, on the CPU, in a type that can be solved in."""
    network = _backbone(network)
    if network.pruned:
        raise UserError(f"This {network.name} is pruned already: plan for the dense network.")
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        raise UserError(f"This {network.name} has no weights, it is on torch's meta device: load some first.")
    dense = without_hooks(plain_copy(network)).cpu().eval()
    return dense if {tensor.dtype for tensor in dense.parameters()} == {torch.float64} else dense.float()
