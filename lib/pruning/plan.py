"""A plan of what to remove: apply it, save and load what came out."""

import copy
import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lib.common.errors import UserError
from lib.common.files import save_tensors, write_json
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import count_macs, forward_macs
from lib.networks.measure import measure_latency
from lib.pruning.allocation import (
    Ranked,
    Target,
    allocate,
    check_request,
    meet_latency,
    meet_macs,
    shares_kept,
    step_of,
)
from lib.pruning.criteria import CRITERIA, Evidence, check_criterion, elimination_macs, score_filters
from lib.pruning.repairs import REPAIRS, Damage, check_repair, solving_macs
from lib.pruning.sites import Site, find_sites
from lib.pruning.statistics import Moments, reader_moments, synthetic_images
from lib.pruning.surgery import copy_of_structure, keep_channels, mask_channels, own_tensors, width_of

_PACKAGES = ("torch", "torchvision", "timm")


@dataclass(frozen=True)
class SiteSize:
    """Filters and MACs of one site before and after; `wanted` is the count before it was rounded."""

    before: int
    wanted: float
    after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class PruningPlan:
    """Which filters of which network stay, and how the removal is repaired.

    `kept` maps a site's name to the ascending indices of the filters that stay. `calibration_macs` is what
    criterion and repair computed on images, to be charged to a budget; `seconds` is how long planning
    took. `corrections` holds the tensors of the pruned network that the repair changed.
    """

    backbone: str
    ratio: float
    criterion: str
    scope: str
    granularity: str
    repair: str
    round_to: int
    seed: int
    kept: dict[str, list[int]]
    sites: dict[str, SiteSize]
    target: Target | None = None
    calibration_macs: int = 0
    seconds: float = field(default=0.0, compare=False)
    corrections: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def table(self) -> pd.DataFrame:
        """A row a site: filters and MACs before and after, and the count `wanted` before rounding.

        The MACs are those of one image, of every layer that the site's channels go through; two sites in
        a row share the layer between them.
        """
        rows = [{"site": name, **asdict(size)} for name, size in self.sites.items()]
        return pd.DataFrame(rows, columns=["site", *(column.name for column in fields(SiteSize))])

    def apply(self, network: Backbone) -> Backbone:
        """A new, physically smaller network; `network` is untouched.

        Raises UserError for another network than the dense one that was planned for.
        """
        small = copy_of_structure(network)
        remove(small, self)
        own_tensors(small, shared_with=network)
        tensors = small.state_dict()
        with torch.no_grad():
            for name, value in self.corrections.items():
                tensors[name].copy_(value)
        return small

    def save(self, small: Backbone, folder: Path | str) -> None:
        """Write `plan.json` and `weights.safetensors` of the network that `apply` gave."""
        folder = Path(folder)
        save_tensors(small.state_dict(), folder / "weights.safetensors")
        digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
        stored = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "corrections"}
        stored["sites"] = {name: asdict(size) for name, size in self.sites.items()}
        stored["target"] = asdict(self.target) if self.target else None
        versions = {name: version(name) for name in _PACKAGES}
        write_json(folder / "plan.json", {**stored, "versions": versions, "weights_sha256": digest})


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

    Raises UserError for files that are missing, damaged, or of another network.
    """
    folder = Path(folder)
    try:
        stored = json.loads((folder / "plan.json").read_text())
        digest = stored.pop("weights_sha256")
        stored.pop("versions")
        plan = TypeAdapter(PruningPlan).validate_python(stored)
        weights = (folder / "weights.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != digest:
            raise ValueError("weights.safetensors is not the file that plan.json was written with")
        tensors = load(weights)
        small = load_backbone(plan.backbone, pretrained=False)
        remove(small, plan)
        small.load_state_dict(tensors)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no pruned network that can be loaded: expected plan.json and "
            f"weights.safetensors as written by PruningPlan.save ({error})."
        ) from error
    return small.eval()


SYNTHETIC_IMAGES = 64


def plan_pruning(
    network: Backbone,
    ratio: float | None = None,
    criterion: str = "l1",
    scope: str = "uniform",
    granularity: str = "filter",
    repair: str = "none",
    round_to: int = 8,
    images: Tensor | None = None,
    seed: int = 0,
    *,
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
    wanted = {"ratio": ratio, "target_macs": target_macs, "target_latency_ms": target_latency_ms}
    _check(network, wanted, criterion, scope, repair, round_to, images)
    image_size = image_size or network.image_size
    sites = find_sites(network, granularity)
    widths = [width_of(network, site) for site in sites]
    macs = _SiteMacs(network, sites, widths, image_size)
    identity = PruningPlan(
        network.name,
        0.0,
        criterion,
        scope,
        granularity,
        repair,
        round_to,
        seed,
        kept={site.name: list(range(width)) for site, width in zip(sites, widths, strict=True)},
        sites=macs.sizes(widths, widths),
    )
    if ratio == 0:
        return identity

    work = _Calibration(network, sites, image_size, seed)
    ranked = work.ranked(criterion, images)

    def counts_at(ratio: float) -> list[int]:
        return allocate(ranked, ratio, scope, round_to)

    def plan_with(ratio: float, counts: list[int]) -> PruningPlan:
        shares = shares_kept(ranked, ratio, scope)
        kept = {
            site.name: torch.topk(rank.scores, count).indices.sort().values.tolist()
            for site, rank, count in zip(sites, ranked, counts, strict=True)
        }
        unrounded = [share * width for share, width in zip(shares, widths, strict=True)]
        return replace(identity, ratio=ratio, kept=kept, sites=macs.sizes(unrounded, counts))

    def milliseconds(counts: list[int]) -> float:
        small = plan_with(0.0, counts).apply(network)
        return measure_latency(small, image_size, device, batch_size, precision)

    target = None
    if target_macs is not None:
        steps = [step_of(rank, round_to) for rank in ranked]
        ratio, counts, target = meet_macs(target_macs, counts_at, macs.total, steps)
    elif target_latency_ms is not None:
        ratio, counts, target = meet_latency(target_latency_ms, counts_at, milliseconds)
    else:
        counts = counts_at(ratio)
    if counts == widths:
        raise UserError(
            f"ratio={ratio:g} removes no filter once the widths {sorted(set(widths))} are rounded to "
            f"multiples of {round_to}: choose a larger ratio or a smaller round_to."
        )
    plan = plan_with(ratio, counts)
    corrections = work.corrections(plan, images)
    return replace(
        plan,
        target=target,
        calibration_macs=work.macs,
        corrections=corrections,
        seconds=time.monotonic() - began,
    )


def _check(
    network: Backbone,
    wanted: dict[str, float | None],
    criterion: str,
    scope: str,
    repair: str,
    round_to: int,
    images: Tensor | None,
) -> None:
    given = [name for name, value in wanted.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            f"plan_pruning was given {' and '.join(given) or 'no amount'}: expected exactly one of "
            f"{', '.join(wanted)}."
        )
    check_criterion(criterion)
    check_repair(repair)
    check_request(wanted["ratio"] or 0, scope, round_to)
    if network.pruned:
        raise UserError(f"This {network.name} is pruned already: plan for the dense network.")
    hungry = [f"criterion={criterion!r}"] * CRITERIA[criterion].needs_images
    hungry += [f"repair={repair!r}"] * (REPAIRS[repair].needs == "images")
    if hungry and images is None and wanted["ratio"] != 0:
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

    def __init__(self, network: Backbone, sites: list[Site], widths: list[int], image_size: int):
        self.layers = {name: layer.forward for name, layer in count_macs(network, image_size).items()}
        self.names, self.widths = [site.name for site in sites], widths
        self.members = [[*site.output_sliced, *(reader.name for reader in site.readers)] for site in sites]
        self.sites_of: dict[str, list[int]] = {}
        for place, members in enumerate(self.members):
            for name in members:
                self.sites_of.setdefault(name, []).append(place)

    def _layer(self, name: str, counts: list[int]) -> int:
        places = self.sites_of.get(name, [])
        return (
            self.layers[name]
            * prod(counts[place] for place in places)
            // prod(self.widths[place] for place in places)
        )

    def total(self, counts: list[int]) -> int:
        """Forward MACs of one image."""
        return sum(self._layer(name, counts) for name in self.layers)

    def sizes(self, wanted: list[float], counts: list[int]) -> dict[str, SiteSize]:
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

    def _pass(self, images: Tensor) -> None:
        self.macs += len(images) * forward_macs(self.network, images.shape[-1])

    def _moments(self, kind: str, images: Tensor | None) -> dict[str, Moments]:
        """Moments on the `images` given, or on "synthetic" ones."""
        if kind not in self.moments:
            network = self.network
            if kind == "synthetic":
                # Batch norms bring each channel back to the mean and deviation that it has on photographs.
                images = synthetic_images(SYNTHETIC_IMAGES, self.image_size, self.seed)
                network = copy.deepcopy(self.network)
                REPAIRS["bn"].correct(Damage(network, self.sites, {}, images))
                self._pass(images)
            self._pass(images)
            self.moments[kind] = reader_moments(network, self.sites, images)
        return self.moments[kind]

    def ranked(self, criterion: str, images: Tensor | None) -> list[Ranked]:
        """The scores of every site's filters."""
        inputs = None
        if CRITERIA[criterion].needs_images:
            inputs = self._moments("images", images)
            for site in self.sites:
                self.macs += sum(elimination_macs(self.network, c, inputs[c.name]) for c in site.consumers)
        ranked = []
        for place, site in enumerate(self.sites):
            # A seed a site: `random` must not draw the same order everywhere.
            generator = torch.Generator().manual_seed(self.seed * 10_007 + place)
            scores = score_filters(Evidence(self.network, site, generator, inputs), criterion)
            ranked.append(Ranked(scores, site.unit, site.kind))
        return ranked

    def corrections(self, plan: PruningPlan, images: Tensor | None) -> dict[str, Tensor]:
        """The tensors of the pruned network that the plan's repair changes."""
        if plan.repair == "none":
            return {}
        repair = REPAIRS[plan.repair]
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
            self._pass(images)
        handles = [handle for site in self.sites for handle in mask_channels(masked, site, kept[site.name])]
        repair.correct(damage)
        for handle in handles:
            handle.remove()
        before = self.network.state_dict()
        changed = [n for n, value in masked.state_dict().items() if not torch.equal(value, before[n])]
        remove(masked, plan)
        after = masked.state_dict()
        return {name: after[name].clone() for name in changed}
