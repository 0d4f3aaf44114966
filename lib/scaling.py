"""How error falls with compute: the compute-optimal front, the best ratio at each budget, and the asymptote.

Reads records only, like lib/analysis.py, and imports nothing that trains.
"""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit

from lib.analysis import draws, errors_by_seed, mean_errors, seeds_in_common

REFITS = 200  # of a curve, on draws of tasks and seeds
IDENTIFIED = 0.1  # a floor whose 95 % interval is wider than this is not known


def main_grid(records: pd.DataFrame, granularity: str = "filter") -> pd.DataFrame:
    """The arms that differ in the ratio alone: the unit's own network, fine-tuned, one criterion."""
    own = records["backbone"] + "@" + records["image_size"].astype(str) == records["unit"]
    fine_tuned = (records["learner"] == "independent") & (records["trials"] == 1)
    alike = (records["criterion"] == "activation") & (records["repair"] == "mean")
    alike &= (records["scope"] == "uniform") & (records["granularity"] == granularity)
    return records[own & fine_tuned & (alike | (records["ratio"] == 0))]


def by_granularity(records: pd.DataFrame, table_of: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """`table_of` the main grid of every granularity that was run, one below the other."""
    tables = []
    for granularity in records["granularity"].unique():
        grid = main_grid(records, granularity)
        pruned = grid.groupby("unit")["ratio"].transform("max") > 0
        if pruned.any():
            tables.append(table_of(grid[pruned]).assign(granularity=granularity))
    return pd.concat(tables, ignore_index=True)


def front(records: pd.DataFrame) -> pd.DataFrame:
    """The arm of the lowest mean error at each budget of each unit, with its interval: the envelope."""
    means = mean_errors(records)
    ratios = records.drop_duplicates("arm").set_index("arm")["ratio"]
    best = means.loc[means.groupby(["unit", "budget"], sort=False)["error"].idxmin()]
    return best.assign(ratio=best["arm"].map(ratios))


def error_by_ratio(grid: pd.DataFrame) -> pd.DataFrame:
    """Mean error of each ratio at each budget of each unit, with its interval over tasks and seeds."""
    ratios = grid.drop_duplicates("arm").set_index("arm")["ratio"]
    means = mean_errors(grid)
    units = means["unit"].map({unit: place for place, unit in enumerate(means["unit"].unique())})
    means = means.assign(ratio=means["arm"].map(ratios), place=units)
    return means.sort_values(["place", "budget", "ratio"]).drop(columns="place")


def best_ratio(grid: pd.DataFrame) -> pd.DataFrame:
    """The ratio of the lowest mean error at each budget of each unit, of those that were run at it.

    Columns: unit, budget, ratio, low and high (95 % of the draws of tasks and seeds have their best ratio
    between them), and support: the share of draws in which this ratio is the best.
    """
    rows = []
    for unit, of_unit in grid.groupby("unit", sort=False):
        table = errors_by_seed(of_unit)
        for budget, at_budget in of_unit.groupby("budget"):
            ratios = at_budget.drop_duplicates("arm").set_index("arm")["ratio"].sort_values()
            errors = seeds_in_common(table, *((arm, budget) for arm in ratios.index))
            best = ratios.iloc[np.argmin([error.mean() for error in errors])]
            drawn = ratios.to_numpy()[np.argmin([drawn.mean(1) for drawn in draws(*errors)], axis=0)]
            low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
            row = {"unit": unit, "budget": budget, "ratio": best, "low": low, "high": high}
            rows.append({**row, "support": (drawn == best).mean()})
    return pd.DataFrame(rows)


def power_law(budget: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
    """error = floor + scale * budget ** -exponent"""
    return floor + scale * budget**-exponent


def fitted(budgets: np.ndarray, errors: np.ndarray) -> tuple[float, float, float] | None:
    """Floor, scale and exponent of least squared error, in their ranges; None where no fit is found."""
    start = np.clip([errors.min() - 0.05, errors.max() - errors.min(), 0.5], 0.01, 0.99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, _ = curve_fit(power_law, budgets, errors, start, bounds=([0, 0, 0.05], [1, 1, 3]))
        except RuntimeError:
            return None
    return tuple(found)


def asymptotes(grid: pd.DataFrame) -> pd.DataFrame:
    """`power_law` of the mean error, a row an arm, with the interval of the floor over tasks and seeds.

    Columns: unit, arm, ratio, floor, scale, exponent, low, high (of the floor), and identified: whether the
    interval is narrower than IDENTIFIED and does not touch 0, where the fit ends. Where it does, the budgets
    that were run do not tell the floor.
    """
    rows = []
    for unit, of_unit in grid.groupby("unit", sort=False):
        table = errors_by_seed(of_unit)
        for arm, of_arm in of_unit.groupby("arm", sort=False):
            budgets = np.sort(of_arm["budget"].unique())
            errors = seeds_in_common(table, *((arm, budget) for budget in budgets))
            curve = fitted(budgets, np.array([error.mean() for error in errors]))
            drawn = np.array([drawn.mean(1) for drawn in draws(*errors)])[:, :REFITS]
            floors = [found[0] for means in drawn.T if (found := fitted(budgets, means))]
            low, high = np.percentile(floors, [2.5, 97.5]) if len(floors) > REFITS / 2 else (0.0, 1.0)
            floor, scale, exponent = curve or (np.nan, np.nan, np.nan)
            rows.append({
                "unit": unit, "arm": arm, "ratio": of_arm["ratio"].iloc[0], "floor": floor, "scale": scale,
                "exponent": exponent, "low": low, "high": high,
                "identified": low > 1e-6 and high - low < IDENTIFIED,
            })  # fmt: skip
    return pd.DataFrame(rows)
