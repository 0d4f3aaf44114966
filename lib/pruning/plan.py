"""Plan what to remove, apply the plan, save and load what came out."""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lib.common.errors import UserError, choose
from lib.common.files import save_tensors
from lib.networks.backbone import Backbone, fit_classifier, load_backbone, weights_hash
from lib.networks.macs import count_macs, forward_macs
from lib.networks.measure import measure_latency
from lib.pruning.allocation import SCOPES, Allocation, Counts, Ranked, Target, meet_latency, meet_macs
from lib.pruning.criteria import CRITERIA, Evidence, elimination_macs, score_filters
from lib.pruning.repairs import REPAIRS, Damage, solving_macs
from lib.pruning.sites import GRANULARITIES, Site, find_sites, width_of
from lib.pruning.statistics import Moments, reader_moments, reestimate_norms, synthetic_images
from lib.pruning.surgery import keep_channels, mask_channels

SYNTHETIC_IMAGES = 64
MORE_SYNTHETIC_IMAGES = 256  # for a repair that fits every layer
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
        choose("criterion", self.criterion, CRITERIA)
        choose("scope", self.scope, SCOPES)
        choose("granularity", self.granularity, GRANULARITIES)
        choose("repair", self.repair, REPAIRS)
        if self.round_to < 1:
            raise UserError(
                f"round_to={self.round_to} is out of range: expected a whole number of 1 or more."
            )

    @property
    def looks_at(self) -> list[str]:
        """What of it works on images of one's own."""
        criterion = [f"criterion={self.criterion!r}"] * CRITERIA[self.criterion].needs_images
        return criterion + [f"repair={self.repair!r}"] * (REPAIRS[self.repair].needs == "images")


@dataclass(frozen=True)
class SiteSize:
    """Filters and MACs of one site before and after; `wanted` is the count before it was rounded."""

    before: int
    wanted: float
    after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True, kw_only=True)
class PruningPlan(Request):
    """Which filters of which network stay, and how the removal is repaired.

    `kept` maps a site's name to the ascending indices of the filters that stay. `calibration_macs` is what
    criterion and repair computed on images, to be charged to a budget; `seconds` is how long planning
    took. `corrections` holds the tensors of the pruned network that the repair changed.
    """

    backbone: str
    ratio: float
    kept: dict[str, list[int]]
    sites: dict[str, SiteSize]
    target: Target | None = None
    calibration_macs: int = 0
    seconds: float = field(default=0.0, compare=False)
    corrections: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def table(self) -> pd.DataFrame:
        """One row per site: filters and MACs before and after, and the count `wanted` before rounding.

        The MACs are those of one image, of every layer that the site's channels go through; two sites in
        a row share the layer between them.
        """
        rows = [{"site": name, **asdict(size)} for name, size in self.sites.items()]
        return pd.DataFrame(rows, columns=["site", *(column.name for column in fields(SiteSize))])

    def apply(self, network: Backbone) -> Backbone:
        """A new, physically smaller network; `network` is untouched.

        Raises UserError for another network than the dense one that was planned for.
        """
        small = copy.deepcopy(network)
        remove(small, self)
        tensors = small.state_dict()
        with torch.no_grad():
            for name, value in self.corrections.items():
                tensors[name].copy_(value)
        return small

    def save(self, small: Backbone, folder: Path | str) -> None:
        """Write the network that `apply` gave, and the plan with it, to one file in `folder`."""
        plan = _STORED.dump_json(self, exclude={"corrections"}).decode()
        about = {"plan": plan, "weights": weights_hash(small)}
        save_tensors(small.state_dict(), Path(folder) / FILE, about)


_STORED = TypeAdapter(PruningPlan)


def remove(network: Backbone, plan: PruningPlan) -> None:
    """Remove, in place, what `plan` does not keep. Raises UserError where the plan does not fit."""
    sites = {site.name: site for site in find_sites(network, plan.granularity)}
    widths = {name: width_of(network, site) for name, site in sites.items()}
    fits = (
        widths == {name: size.before for name, size in plan.sites.items()}
        and sites.keys() == plan.kept.keys()
        and all(
            kept and kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < widths[name]
            for name, kept in plan.kept.items()
        )
    )
    if not fits:
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
        plan = _STORED.validate_json(about["plan"])
        small = load_backbone(plan.backbone, pretrained=False)
        remove(small, plan)
        fit_classifier(small, tensors)
        small.load_state_dict(tensors)
        if weights_hash(small) != about["weights"]:
            raise ValueError("its weights are not those that were saved")
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
    images: Tensor | None = None,
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
    `seed` matters to what is drawn: the criterion `random` and synthetic images.

    Raises UserError for unknown names, numbers out of range, missing images, an undeclared architecture, a
    network that is pruned already, or a request that would remove nothing.
    """
    began = time.monotonic()
    request = Request(
        criterion=criterion, scope=scope, granularity=granularity, repair=repair, round_to=round_to, seed=seed
    )
    _check_amount(ratio=ratio, target_macs=target_macs, target_latency_ms=target_latency_ms)
    _check_images(images, request.looks_at if ratio != 0 else [])
    if network.pruned:
        raise UserError(f"This {network.name} is pruned already: plan for the dense network.")
    image_size = image_size or network.image_size
    sites = find_sites(network, granularity)
    macs = _SiteMacs(network, sites, image_size)
    plan = PruningPlan(
        backbone=network.name,
        ratio=0.0,
        kept={name: list(range(width)) for name, width in zip(macs.names, macs.widths, strict=True)},
        sites=macs.sizes(macs.widths, macs.widths),
        **vars(request),
    )
    if ratio == 0:
        return plan

    work = _Calibration(network, sites, image_size, seed)
    allocation = Allocation(work.ranked(criterion, images), scope, round_to)

    def keeping(counts: Counts) -> PruningPlan:
        kept = dict(zip(plan.kept, allocation.kept(counts), strict=True))
        return replace(plan, kept=kept)

    def milliseconds(counts: Counts) -> float:
        return measure_latency(keeping(counts).apply(network), image_size, device, batch_size, precision)

    target = None
    if target_macs is not None:
        ratio, counts, target = meet_macs(target_macs, allocation, macs.total)
    elif target_latency_ms is not None:
        ratio, counts, target = meet_latency(target_latency_ms, allocation, milliseconds)
    else:
        assert ratio is not None  # one of the three was given
        counts = allocation.counts(ratio)
    if counts == macs.widths:
        raise UserError(
            f"ratio={ratio:g} removes no filter once the widths {sorted(set(counts))} are rounded to "
            f"multiples of {round_to}: choose a larger ratio or a smaller round_to."
        )
    wanted = [share * width for share, width in zip(allocation.shares(ratio), macs.widths, strict=True)]
    plan = replace(keeping(counts), ratio=ratio, sites=macs.sizes(wanted, counts), target=target)
    corrections = work.corrections(plan, images)
    return replace(
        plan, calibration_macs=work.macs, corrections=corrections, seconds=time.monotonic() - began
    )


def _check_amount(**amounts: float | None) -> None:
    given = {name: value for name, value in amounts.items() if value is not None}
    if len(given) != 1:
        raise UserError(
            f"plan_pruning was given {' and '.join(given) or 'no amount'}: expected exactly one of "
            f"{', '.join(amounts)}."
        )
    if not 0 <= given.get("ratio", 0) < 1:
        raise UserError(
            f"ratio={given['ratio']} is out of range: expected a share in 0 <= ratio < 1, such as 0.5."
        )


def _check_images(images: Tensor | None, hungry: list[str]) -> None:
    if images is None and hungry:
        raise UserError(
            f"{' and '.join(hungry)} works on images and none were given: give images= (normalised, "
            "(N, 3, H, W)), or choose one that is data-free."
        )
    if images is not None and (images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point()):
        raise UserError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: expected normalised floats "
            "(N, 3, H, W)."
        )


class _SiteMacs:
    """MACs of a network whose sites keep given counts, from one count of the dense network.

    A layer's MACs are proportional to its outputs and its inputs, so every site that a layer belongs to
    scales them.
    """

    def __init__(self, network: Backbone, sites: list[Site], image_size: int):
        self.layers = {name: layer.forward for name, layer in count_macs(network, image_size).items()}
        self.names = [site.name for site in sites]
        self.widths = [width_of(network, site) for site in sites]
        self.members = [[*site.output_sliced, *(reader.name for reader in site.readers)] for site in sites]
        self.sites_of: dict[str, list[int]] = {}
        for place, members in enumerate(self.members):
            for name in members:
                self.sites_of.setdefault(name, []).append(place)

    def _layer(self, name: str, counts: Counts) -> int:
        places = self.sites_of.get(name, [])
        kept, width = (prod(numbers[place] for place in places) for numbers in (counts, self.widths))
        return self.layers[name] * kept // width

    def total(self, counts: Counts) -> int:
        """Forward MACs of one image."""
        return sum(self._layer(name, counts) for name in self.layers)

    def sizes(self, wanted: Sequence[float], counts: Counts) -> dict[str, SiteSize]:
        """What the plan's table says of every site."""
        sizes = {}
        for place, name in enumerate(self.names):
            members = {member for member in self.members[place] if member in self.layers}
            before, after = (
                sum(self._layer(member, numbers) for member in members) for numbers in (self.widths, counts)
            )
            sizes[name] = SiteSize(self.widths[place], wanted[place], counts[place], before, after)
        return sizes


class _Calibration:
    """What is computed on images, and its MACs."""

    def __init__(self, network: Backbone, sites: list[Site], image_size: int, seed: int):
        self.network, self.sites, self.image_size, self.seed = network, sites, image_size, seed
        self.moments: dict[str, dict[str, Moments]] = {}
        self.macs = 0

    def _pass(self, network: nn.Module, images: Tensor) -> None:
        self.macs += len(images) * forward_macs(network, images.shape[-1])

    def _looked_at(self, kind: str, images: Tensor | None, count: int) -> tuple[nn.Module, Tensor]:
        """The dense network and the `images` given, or `count` "synthetic" ones."""
        if kind != "synthetic":
            return self.network, images
        # Batch norms bring each channel back to the mean and deviation that it has on photographs.
        images = synthetic_images(count, self.image_size, self.seed)
        network = copy.deepcopy(self.network)
        reestimate_norms(network, images)
        self._pass(network, images)
        return network, images

    def _moments(self, kind: str, images: Tensor | None) -> dict[str, Moments]:
        """Moments on the `images` given, or on "synthetic" ones."""
        if kind not in self.moments:
            network, images = self._looked_at(kind, images, SYNTHETIC_IMAGES)
            self._pass(network, images)
            self.moments[kind] = reader_moments(network, self.sites, images)
        return self.moments[kind]

    def ranked(self, criterion: str, images: Tensor | None) -> list[Ranked]:
        """The scores of every site's filters."""
        inputs: dict[str, Moments] = {}
        if CRITERIA[criterion].needs_images:
            inputs = self._moments("images", images)
            for site in self.sites:
                self.macs += sum(elimination_macs(self.network, c, inputs[c.name]) for c in site.consumers)
        ranked = []
        for place, site in enumerate(self.sites):
            # A seed per site: `random` must not draw the same order everywhere.
            generator = torch.Generator().manual_seed(self.seed * 10_007 + place)
            scores = score_filters(Evidence(self.network, site, generator, inputs), criterion)
            ranked.append(Ranked(scores, site.unit, site.kind))
        return ranked

    def corrections(self, plan: PruningPlan, images: Tensor | None) -> dict[str, Tensor]:
        """The tensors of the pruned network that the plan's repair changes."""
        if plan.repair == "none":
            return {}
        repair = REPAIRS[plan.repair]
        if repair.cut:
            return self._corrections_of_cut(plan, images)
        masked = copy.deepcopy(self.network)
        kept = {name: torch.tensor(indices) for name, indices in plan.kept.items()}
        damage = Damage(masked, self.sites, kept)
        if repair.solves:
            damage.dense = self._moments(repair.needs, images)
            for site in self.sites:
                for reader in site.readers:
                    count = len(kept[site.name])
                    self.macs += solving_macs(masked, reader, damage.dense[reader.name], count)
        elif repair.needs == "images":
            damage.images = images
            self._pass(masked, images)
        handles = [handle for site in self.sites for handle in mask_channels(masked, site, kept[site.name])]
        repair.correct(damage)
        for handle in handles:
            handle.remove()
        before = self.network.state_dict()
        changed = [n for n, value in masked.state_dict().items() if not torch.equal(value, before[n])]
        remove(masked, plan)
        after = masked.state_dict()
        return {name: after[name].clone() for name in changed}

    def _corrections_of_cut(self, plan: PruningPlan, images: Tensor | None) -> dict[str, Tensor]:
        """The same of a repair that works on the pruned network itself."""
        repair = REPAIRS[plan.repair]
        dense, images = self._looked_at(repair.needs, images, MORE_SYNTHETIC_IMAGES)
        kept = {name: torch.tensor(indices) for name, indices in plan.kept.items()}
        small = replace(plan, corrections={}).apply(dense).eval()
        damage = Damage(small, self.sites, kept, images, original=copy.deepcopy(dense).eval())
        start, before = (
            replace(plan, corrections={}).apply(net).state_dict() for net in (self.network, dense)
        )
        self._pass(dense, images)
        self._pass(small, images)
        repair.correct(damage)
        self.macs += damage.macs
        # What the synthetic images alone did to the norms does not stay.
        return {
            name: start[name] + value - before[name]
            for name, value in small.state_dict().items()
            if not torch.equal(value, before[name])
        }
