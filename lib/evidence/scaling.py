"""How error falls with compute: the compute-optimal front, the best ratio at each budget, and the asymptote.

Reads records only, like lib/evidence/records.py, and imports nothing that trains.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit

from lib.evidence.records import (
    arms,
    at_shared_budgets,
    dense_arm,
    draws,
    errors_by_seed,
    mean_errors,
    seeds_in_common,
    stacked,
)

REFITS = 200  # of a curve, on draws of tasks and seeds
FITTED_FROM = 1.0  # dense epochs: below, errors fall slowly at first and are no power law
NEEDED = 4  # budgets, for three parameters
IDENTIFIED = 0.1  # a floor whose 95 % interval is wider than this is not known
EXPONENTS = 0.05, 3.0  # between which a power law is looked for


def main_grid(records: pd.DataFrame, granularity: str = "filter") -> pd.DataFrame:
    """The arms that differ in the ratio alone: the unit's own network, fine-tuned, one criterion."""
    fine_tuned = (records["learner"] == "independent") & (records["trials"] == 1)
    alike = (records["criterion"] == "activation") & (records["repair"] == "mean")
    alike &= (records["scope"] == "uniform") & (records["granularity"] == granularity)
    return records[records["own"] & fine_tuned & (alike | (records["ratio"] == 0))]


def by_granularity(records: pd.DataFrame, table_of: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """`table_of` the main grid of every granularity that was run, one below the other."""
    tables = []
    for granularity in records["granularity"].unique():
        grid = main_grid(records, granularity)
        pruned = grid.groupby("unit")["ratio"].transform("max") > 0
        if pruned.any():
            tables.append(table_of(grid[pruned]).assign(granularity=granularity))
    return stacked(tables, "ratios of one network that differ in nothing else")


def front(records: pd.DataFrame) -> pd.DataFrame:
    """The arm of the lowest mean error at each budget of each unit, with its interval: the envelope."""
    means = mean_errors(records)
    best = means.loc[means.groupby(["unit", "budget"], sort=False)["error"].idxmin()]
    return best.assign(ratio=best["arm"].map(arms(records)["ratio"]))


def error_by_ratio(grid: pd.DataFrame) -> pd.DataFrame:
    """Mean error of each ratio at each budget that all ratios of a unit were run with, with its interval."""
    grid = at_shared_budgets(grid)
    means = mean_errors(grid)
    means = means.assign(ratio=means["arm"].map(arms(grid)["ratio"]))
    of_units = means.groupby("unit", sort=False)
    return pd.concat(part.sort_values(["budget", "ratio"]) for _, part in of_units)


def best_ratio(grid: pd.DataFrame) -> pd.DataFrame:
    """The ratio of the lowest mean error at each budget that all ratios of a unit were run with.

    Columns: unit, budget, ratio, low and high (95 % of the draws of tasks and seeds have their best ratio
    between them), support: the share of draws in which this ratio is the best, and seeds: how many all ratios
    were run with.
    """
    rows = []
    for unit, of_unit in at_shared_budgets(grid).groupby("unit", sort=False):
        table, ratios = errors_by_seed(of_unit), arms(of_unit)["ratio"].sort_values()
        for budget in np.sort(of_unit["budget"].unique()):
            errors = seeds_in_common(table, *((arm, budget) for arm in ratios.index))
            best = ratios.iloc[np.argmin([error.mean() for error in errors])]
            drawn = ratios.to_numpy()[np.argmin([drawn.mean(1) for drawn in draws(*errors)], axis=0)]
            low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
            rows.append((unit, budget, best, low, high, (drawn == best).mean(), errors[0].shape[1]))
    return pd.DataFrame(rows, columns=["unit", "budget", "ratio", "low", "high", "support", "seeds"])


def power_law(budget: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
    """error = floor + scale * budget ** -exponent"""
    return floor + scale * budget**-exponent


def fitted(budgets: np.ndarray, errors: np.ndarray) -> tuple[float, float, float] | None:
    """Floor, scale and exponent of least squared error, in their ranges; None where no fit is found."""
    start = np.clip([errors.min() - 0.05, errors.max() - errors.min(), 0.5], 0.01, 0.99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, _ = curve_fit(power_law, budgets, errors, start, bounds=([0, 0, EXPONENTS[0]], [1, 1, EXPONENTS[1]]))
        except RuntimeError:
            return None
    return tuple(found)


def asymptotes(grid: pd.DataFrame) -> pd.DataFrame:
    """`power_law` of the mean error from FITTED_FROM on, one row per arm; NaN where its budgets are too few.

    Columns: unit, arm, ratio, floor, scale, exponent; low and high: the floor's 95 % interval over draws of
    tasks and seeds, the error at the largest budget held: how hard the drawn tasks are is not in question;
    identified: whether that interval is narrower than IDENTIFIED, and neither floor nor exponent end at the
    limit of what is looked for; cost: by how much the floor is above dense's, paired, with cost_low and
    cost_high, which say how sure that is.
    """
    rows = []
    for unit, of_unit in grid.groupby("unit", sort=False):
        table, dense, ratios = errors_by_seed(of_unit), dense_arm(of_unit), arms(of_unit)["ratio"]
        fits = {arm: _fits(table, arm) for arm in of_unit["arm"].unique()}
        for arm, fit in fits.items():
            # The floor's interval, if the last error is what it is.
            drop_low, drop_high = _interval(fit.lasts - fit.floors)
            low, high = fit.last - drop_high, fit.last - drop_low
            within = EXPONENTS[0] < fit.curve[2] < 0.99 * EXPONENTS[1] and _interval(fit.floors)[0] > 1e-6
            identified = bool(high - low < IDENTIFIED and within)
            cost = fit.curve[0] - fits[dense].curve[0], *_interval(fit.floors - fits[dense].floors)
            rows.append((unit, arm, ratios[arm], *fit.curve, low, high, identified, *cost))
    names = "unit arm ratio floor scale exponent low high identified cost cost_low cost_high"
    return pd.DataFrame(rows, columns=names.split())


class _Fits(NamedTuple):
    """An arm's power law and last error, and on draws of tasks and seeds its floors (R,) and lasts (R,)."""

    curve: tuple[float, float, float]
    last: float
    floors: np.ndarray
    lasts: np.ndarray


def _fits(table: pd.DataFrame, arm: str) -> _Fits:
    """The fits of an arm of `errors_by_seed`; NaN where budgets are fewer than NEEDED, or no fit is found."""
    budgets = np.sort(table.loc[arm].index[table.loc[arm].index >= FITTED_FROM])
    unknown = np.nan, np.nan, np.nan
    if len(budgets) < NEEDED:
        return _Fits(unknown, np.nan, *np.full((2, REFITS), np.nan))
    errors = seeds_in_common(table, *((arm, budget) for budget in budgets))
    drawn = np.array([drawn.mean(1) for drawn in draws(*errors)])[:, :REFITS]
    floors = np.array([(fitted(budgets, of_draw) or unknown)[0] for of_draw in drawn.T])
    means = np.array([error.mean() for error in errors])
    return _Fits(fitted(budgets, means) or unknown, means[-1], floors, drawn[-1])


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the values that are numbers; NaN where fewer than half of them are."""
    found = values[np.isfinite(values)]
    return tuple(np.percentile(found, [2.5, 97.5])) if len(found) > len(values) / 2 else (np.nan, np.nan)
