"""How many filters each site keeps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.common.errors import UserError

SCOPES = ("uniform", "global", "isomorphic")
FLOOR = 0.1  # share of a site's filters that the scopes with one ranking for many sites leave in each


@dataclass(frozen=True)
class Ranked:
    """One site as allocation sees it: its filters' scores (C,), the unit they go in, and its kind."""

    scores: Tensor
    unit: int
    kind: str

    @property
    def width(self) -> int:
        return len(self.scores)


def check_request(ratio: float, scope: str, round_to: int) -> None:
    """Raise UserError for an unknown scope or a number out of range."""
    if scope not in SCOPES:
        raise UserError(f"Unknown scope {scope!r}: expected one of {', '.join(SCOPES)}.")
    if not 0 <= ratio < 1:
        raise UserError(f"ratio={ratio} is out of range: expected a share in 0 <= ratio < 1, such as 0.5.")
    if round_to < 1:
        raise UserError(f"round_to={round_to} is out of range: expected a whole number of 1 or more.")


def allocate(sites: list[Ranked], ratio: float, scope: str, round_to: int) -> list[int]:
    """Filters kept at each site when the share `ratio` of all is removed.

    `uniform` removes the same share everywhere; `global` ranks the filters of all sites together and
    leaves each site at least a tenth; `isomorphic` does so among the sites of one kind (Fang et al.,
    Isomorphic pruning for vision models, 2024). Kept counts are then rounded to the nearest multiple of
    `round_to` and of the unit, at least one multiple, never above the width.
    """
    counts = []
    for site, share in zip(sites, shares_kept(sites, ratio, scope), strict=True):
        step = step_of(site, round_to)
        counts.append(min(site.width, max(step, round(share * site.width / step) * step)))
    return counts


def shares_kept(sites: list[Ranked], ratio: float, scope: str) -> list[float]:
    """The share of its filters that each site would keep, were there no rounding."""
    if scope == "uniform":
        return [1 - ratio] * len(sites)
    groups: dict[str, list[int]] = {}
    for place, site in enumerate(sites):
        groups.setdefault(site.kind if scope == "isomorphic" else "", []).append(place)
    shares = [0.0] * len(sites)
    for places in groups.values():
        found = _one_ranking([sites[place] for place in places], ratio)
        for place, share in zip(places, found, strict=True):
            shares[place] = share
    return shares


def step_of(site: Ranked, round_to: int) -> int:
    """What a site's kept count is a multiple of."""
    return math.lcm(round_to, site.unit)


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


Counts = list[int]


@dataclass(frozen=True)
class Target:
    """What was asked for ("macs" or "latency_ms"), what the plan reaches, and how near that is."""

    kind: str
    wanted: float
    reached: float
    met: str


def meet_macs(
    wanted: float, counts_at: Callable[[float], Counts], macs_of: Callable[[Counts], int], steps: list[int]
) -> tuple[float, Counts, Target]:
    """Ratio and kept counts whose MACs are nearest to `wanted`.

    The ratio is bisected; then single sites give or take a step of rounding while that comes nearer.
    """
    full = counts_at(0)
    _check_range("target_macs", wanted, macs_of(full), macs_of(counts_at(0.999)))
    ratio, counts = _bisect(wanted, counts_at, macs_of, 30)
    gap = abs(macs_of(counts) - wanted)
    while True:
        neighbours = [
            [*counts[:place], count, *counts[place + 1 :]]
            for place, step in enumerate(steps)
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
    wanted: float, counts_at: Callable[[float], Counts], measure: Callable[[Counts], float]
) -> tuple[float, Counts, Target]:
    """Ratio and kept counts whose measured milliseconds are nearest to `wanted`."""
    _check_range("target_latency_ms", wanted, measure(counts_at(0)), measure(counts_at(0.999)))
    ratio, counts = _bisect(wanted, counts_at, measure, 7)
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
    wanted: float, counts_at: Callable[[float], Counts], cost: Callable[[Counts], float], rounds: int
) -> tuple[float, Counts]:
    low, high = 0.0, 0.999
    tried = []
    for _ in range(rounds):
        ratio = (low + high) / 2
        counts = counts_at(ratio)
        found = cost(counts)
        tried.append((abs(found - wanted), ratio, counts))
        low, high = (ratio, high) if found > wanted else (low, ratio)
    _, ratio, counts = min(tried, key=lambda one: one[0])
    return ratio, counts
