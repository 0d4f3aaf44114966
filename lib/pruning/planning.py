"""Plan a pruning: score the filters of every site, allocate what each keeps, compute the repair."""

import copy
import time
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from lib.backbones import Backbone
from lib.compute import count_macs, forward_macs, measure_latency
from lib.errors import UserError
from lib.pruning.allocate import Ranked, allocate, check_request, shares_kept, step_of
from lib.pruning.calibrate import Moments, reader_moments, synthetic_images
from lib.pruning.plan import PruningPlan, SiteSize, remove
from lib.pruning.repair import REPAIRS, Damage, check_repair, solving_macs
from lib.pruning.scores import CRITERIA, Evidence, check_criterion, elimination_macs, score_filters
from lib.pruning.sites import Site, find_sites
from lib.pruning.surgery import mask_channels, width_of
from lib.pruning.targets import meet_latency, meet_macs

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
        network.name, 0.0, criterion, scope, granularity, repair, round_to, seed,
        kept={site.name: list(range(width)) for site, width in zip(sites, widths, strict=True)},
        sites=macs.sizes(widths, widths),
    )  # fmt: skip
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
        plan, target=target, calibration_macs=work.macs, corrections=corrections,
        seconds=time.monotonic() - began,
    )  # fmt: skip


def _check(
    network: Backbone, wanted: dict[str, float | None], criterion: str, scope: str, repair: str,
    round_to: int, images: Tensor | None,
) -> None:  # fmt: skip
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
        self.members = [
            [*site.output_sliced, *(reader.name for reader in site.readers)] for site in sites
        ]  # fmt: skip
        self.sites_of: dict[str, list[int]] = {}
        for place, members in enumerate(self.members):
            for name in members:
                self.sites_of.setdefault(name, []).append(place)

    def _layer(self, name: str, counts: list[int]) -> int:
        places = self.sites_of.get(name, [])
        return (
            self.layers[name] * prod(counts[place] for place in places)
            // prod(self.widths[place] for place in places)
        )  # fmt: skip

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
