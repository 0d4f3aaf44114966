"""How many filters each site keeps: by a ratio, or by what they are to cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.common.errors import UserError

SCOPES = ("uniform", "global", "isomorphic")
FLOOR = 0.1  # share of a site's filters that the scopes with one ranking for many sites leave in each

Counts = list[int]


@dataclass(frozen=True)
class Ranked:
    """One site as allocation sees it: its filters' scores (C,), the unit they go in, and its kind."""

    scores: Tensor
    unit: int
    kind: str

    @property
    def width(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Allocation:
    """How a share of all filters is spread over the sites.

    `uniform` removes the same share everywhere; `global` ranks the filters of all sites together and
    leaves each site at least a tenth; `isomorphic` does so among the sites of one kind (Fang et al.,
    Isomorphic pruning for vision models, 2024).
    """

    sites: list[Ranked]
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
            min(site.width, max(step, round(share * site.width / step) * step))
            for site, share, step in zip(self.sites, self.shares(ratio), self.steps, strict=True)
        ]

    def shares(self, ratio: float) -> list[float]:
        """The share of its filters that each site would keep, were there no rounding."""
        if self.scope == "uniform":
            return [1 - ratio] * len(self.sites)
        groups: dict[str, list[int]] = {}
        for place, site in enumerate(self.sites):
            groups.setdefault(site.kind if self.scope == "isomorphic" else "", []).append(place)
        shares = [0.0] * len(self.sites)
        for places in groups.values():
            found = _one_ranking([self.sites[place] for place in places], ratio)
            for place, share in zip(places, found, strict=True):
                shares[place] = share
        return shares

    def kept(self, counts: Counts) -> list[list[int]]:
        """The indices of each site's best filters, ascending."""
        return [
            torch.topk(site.scores, count).indices.sort().values.tolist()
            for site, count in zip(self.sites, counts, strict=True)
        ]


def _one_ranking(sites: list[Ranked], ratio: float) -> list[float]:
    """The share that each site keeps when the lowest `ratio` of all their filters go, above the floor."""
    scores = []
    for site in sites:
        protected = math.ceil(FLOOR * site.width)
        order = site.scores.double().sort(descending=True).values
        scores.append(torch.cat([torch.full((protected,), math.inf).double(), order[protected:]]))
    together = torch.cat(scores)
    removed = round(ratio * len(together))
    lowest = torch.zeros(len(together), dtype=torch.bool)
    lowest[together.argsort(stable=True)[:removed]] = True
    lowest &= together.isfinite()
    return [1 - part.double().mean().item() for part in lowest.split([site.width for site in sites])]


@dataclass(frozen=True)
class Target:
    """What was asked for ("macs" or "latency_ms"), what the plan reaches, and how near that is."""

    kind: str
    wanted: float
    reached: float
    met: str


def meet_macs(wanted: float, allocation: Allocation, macs_of: Callable[[Counts], int]) -> tuple[float, Counts, Target]:
    """Ratio and kept counts whose MACs are nearest to `wanted`.

    The ratio is bisected; then single sites give or take a step of rounding while that comes nearer.
    """
    full = allocation.counts(0)
    _check_range("target_macs", wanted, macs_of(full), macs_of(allocation.counts(0.999)))
    ratio, counts = _bisect(wanted, allocation, macs_of, 30)
    gap = abs(macs_of(counts) - wanted)
    while True:
        neighbours = [
            [*counts[:place], count, *counts[place + 1 :]]
            for place, step in enumerate(allocation.steps)
            for count in (counts[place] - step, min(counts[place] + step, full[place]))
            if 0 < count != counts[place]
        ]
        nearest = min(neighbours, key=lambda c: abs(macs_of(c) - wanted), default=counts)
        if gap <= 0.001 * wanted or abs(macs_of(nearest) - wanted) >= gap:
            break
        counts, gap = nearest, abs(macs_of(nearest) - wanted)
    met = "within 1 %" if gap <= 0.01 * wanted else "the nearest that rounding allows"
    return ratio, counts, Target("macs", wanted, macs_of(counts), met)


def meet_latency(
    wanted: float, allocation: Allocation, measure: Callable[[Counts], float]
) -> tuple[float, Counts, Target]:
    """Ratio and kept counts whose measured milliseconds are nearest to `wanted`."""
    smallest = measure(allocation.counts(0.999))
    _check_range("target_latency_ms", wanted, measure(allocation.counts(0)), smallest)
    ratio, counts = _bisect(wanted, allocation, measure, 7)
    reached = measure(counts)
    met = "within 10 %" if abs(reached - wanted) <= 0.1 * wanted else "the nearest that was found"
    return ratio, counts, Target("latency_ms", wanted, reached, met)


def _check_range(name: str, wanted: float, dense: float, smallest: float) -> None:
    if not wanted < dense:
        raise UserError(
            f"{name}={wanted:g} would remove nothing: expected less than the {dense:g} of the dense network."
        )
    if wanted < smallest:
        raise UserError(
            f"{name}={wanted:g} cannot be met: expected at least the {smallest:g} that are left when every "
            "site keeps the fewest filters that rounding allows."
        )


def _bisect(
    wanted: float, allocation: Allocation, cost: Callable[[Counts], float], rounds: int
) -> tuple[float, Counts]:
    low, high = 0.0, 0.999
    tried = []
    for _ in range(rounds):
        ratio = (low + high) / 2
        counts = allocation.counts(ratio)
        found = cost(counts)
        tried.append((abs(found - wanted), ratio, counts))
        low, high = (ratio, high) if found > wanted else (low, ratio)
    _, ratio, counts = min(tried, key=lambda one: one[0])
    return ratio, counts
