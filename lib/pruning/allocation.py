"""How many filters each site keeps: by a ratio, or by what they are to cost."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from lib.common.errors import UserError
from lib.networks.backbone import Backbone
from lib.networks.macs import count_macs
from lib.pruning.sites import Site, width_of

SCOPES = ("uniform", "global", "isomorphic")
LARGEST = 0.999  # ratio that a target is searched up to
FLOOR = 0.1  # share of a site's filters that the scopes with one ranking for many sites leave in each

Counts = list[int]


@dataclass(frozen=True)
class Allocation:
    """How a share of all filters is spread over the sites, whose filters have `scores` (C,) each.

    `uniform` removes the same share everywhere; `global` ranks the filters of all sites together and
    leaves each site at least a tenth; `isomorphic` does so among the sites of one kind (Fang et al.,
    Isomorphic pruning for vision models, 2024).
    """

    sites: list[Site]
    scores: list[Tensor]
    scope: str
    round_to: int

    @property
    def steps(self) -> Counts:
        """What each site's kept count is a multiple of."""
        return [math.lcm(self.round_to, site.unit) for site in self.sites]

    def counts(self, ratio: float) -> Counts:
        """Filters kept at each site when the share `ratio` of all is removed.

        Rounded to the nearest multiple of `round_to` and of the unit, at least one multiple, never above the
        width.
        """
        return [
            min(len(scores), max(step, round(share * len(scores) / step) * step))
            for scores, share, step in zip(self.scores, self.shares(ratio), self.steps, strict=True)
        ]

    def shares(self, ratio: float) -> list[float]:
        """The share of its filters that each site would keep, were there no rounding."""
        if self.scope == "uniform":
            return [1 - ratio] * len(self.sites)
        together = [site.kind if self.scope == "isomorphic" else "" for site in self.sites]
        shares = {}
        for group in dict.fromkeys(together):
            ranked = [scores for scores, own in zip(self.scores, together, strict=True) if own == group]
            shares[group] = iter(_one_ranking(ranked, ratio))
        return [next(shares[group]) for group in together]

    def kept(self, counts: Counts) -> list[list[int]]:
        """The indices of each site's best filters, ascending."""
        best = [torch.topk(scores, count).indices for scores, count in zip(self.scores, counts, strict=True)]
        return [indices.sort().values.tolist() for indices in best]


def _one_ranking(sites: list[Tensor], ratio: float) -> list[float]:
    """The share that each site keeps when the lowest `ratio` of all their scores go, above the floor."""
    ordered = [scores.double().sort(descending=True).values for scores in sites]
    for scores in ordered:
        scores[: math.ceil(FLOOR * len(scores))] = math.inf
    together = torch.cat(ordered)
    lowest = torch.zeros(len(together), dtype=torch.bool)
    lowest[together.argsort(stable=True)[: round(ratio * len(together))]] = True
    lowest &= together.isfinite()
    return [1 - part.double().mean().item() for part in lowest.split([len(scores) for scores in ordered])]


@dataclass(frozen=True)
class Target:
    """What was asked for ("macs" or "latency_ms"), what the plan reaches, and how near that is."""

    kind: str
    wanted: float
    reached: float
    met: str


# How each kind of target is searched for: rounds of bisection, what is near enough, and what to call it otherwise.
_SEARCHES = {
    "macs": (30, 0.01, "the nearest that rounding allows"),
    "latency_ms": (7, 0.1, "the nearest that was found"),
}


def meet(
    kind: str, wanted: float, allocation: Allocation, cost: Callable[[Counts], float]
) -> tuple[float, Counts, Target]:
    """Ratio and kept counts whose `cost`, "macs" or measured "latency_ms", is nearest to `wanted`.

    Raises UserError for a target that is out of reach.
    """
    smallest, dense = cost(allocation.counts(LARGEST)), cost(allocation.counts(0))
    if not wanted < dense:
        raise UserError(
            f"target_{kind}={wanted:g} would remove nothing: expected less than the {dense:g} of the dense network."
        )
    if wanted < smallest:
        raise UserError(
            f"target_{kind}={wanted:g} cannot be met: expected at least the {smallest:g} that are left when every "
            "site keeps the fewest filters that rounding allows."
        )
    rounds, near, otherwise = _SEARCHES[kind]
    low, high = 0.0, LARGEST
    tried = []
    for _ in range(rounds):
        ratio = (low + high) / 2
        counts = allocation.counts(ratio)
        found = cost(counts)
        tried.append((abs(found - wanted), ratio, counts))
        low, high = (ratio, high) if found > wanted else (low, ratio)
    _, ratio, counts = min(tried, key=itemgetter(0))
    if kind == "macs":  # counted in no time, where a latency has to be measured
        counts = _by_single_steps(wanted, counts, allocation, cost)
    reached = cost(counts)
    met = f"within {100 * near:g} %" if abs(reached - wanted) <= near * wanted else otherwise
    return ratio, counts, Target(kind, wanted, reached, met)


def _by_single_steps(wanted: float, counts: Counts, allocation: Allocation, cost: Callable[[Counts], float]) -> Counts:
    """Counts after single sites have given or taken a step of rounding, while the cost comes nearer."""
    full = allocation.counts(0)
    while (gap := abs(cost(counts) - wanted)) > 0.001 * wanted:
        neighbours = [
            [*counts[:place], count, *counts[place + 1 :]]
            for place, step in enumerate(allocation.steps)
            for count in (counts[place] - step, min(counts[place] + step, full[place]))
            if 0 < count != counts[place]
        ]
        nearest = min(neighbours, key=lambda found: abs(cost(found) - wanted), default=counts)
        if abs(cost(nearest) - wanted) >= gap:
            break
        counts = nearest
    return counts


@dataclass(frozen=True)
class SiteSize:
    """Filters and MACs of one site before and after; `wanted` is the count before it was rounded."""

    before: int
    wanted: float
    after: int
    macs_before: int
    macs_after: int


class SiteMacs:
    """MACs of a network whose sites keep given counts, from one count of the dense network.

    A layer's MACs are proportional to its outputs and its inputs, so every site that a layer belongs to
    scales them.
    """

    def __init__(self, network: Backbone, sites: list[Site], image_size: int):
        self.layers = {name: layer.forward for name, layer in count_macs(network, image_size).items()}
        self.names, self.widths = [site.name for site in sites], [width_of(network, site) for site in sites]
        members = [[*site.output_sliced, *(reader.name for reader in site.readers)] for site in sites]
        self.members = [set(names) & self.layers.keys() for names in members]
        self.sites_of = {name: [i for i, own in enumerate(self.members) if name in own] for name in self.layers}
        reached = sum(macs for name, macs in self.layers.items() if self.sites_of[name])
        self.reach = reached / sum(self.layers.values())

    def total(self, counts: Counts, layers: Collection[str] | None = None) -> int:
        """Forward MACs of one image, of all layers or of these."""
        total = 0
        for name in self.layers if layers is None else layers:
            kept, width = (math.prod(sizes[i] for i in self.sites_of[name]) for sizes in (counts, self.widths))
            total += self.layers[name] * kept // width
        return total

    def sizes(self, wanted: Sequence[float], counts: Counts) -> dict[str, SiteSize]:
        """What the plan's table says of every site, by its name."""
        before, after = ([self.total(each, own) for own in self.members] for each in (self.widths, counts))
        sizes = zip(self.widths, wanted, counts, before, after, strict=True)
        return {name: SiteSize(*size) for name, size in zip(self.names, sizes, strict=True)}
