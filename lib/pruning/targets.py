"""Find the ratio that meets a target: MACs or measured latency."""

from collections.abc import Callable
from dataclasses import dataclass

from lib.errors import UserError

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
