"""How error falls with compute: the compute-optimal front, the best ratio at each budget, and the asymptote.

Reads records only, like lib/evidence/records.py, and imports nothing that trains.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from lib.evidence.analysis import dense_arm, draws, errors_by_seed, interval, mean_errors, seeds_in_common
from lib.evidence.records import arms, at_shared_budgets, per, stacked

REFITS = 200  # of a curve, on draws of tasks and seeds
FITTED_FROM = 1.0  # dense epochs: below, errors fall slowly at first and are no power law
NEEDED = 4  # budgets, for three parameters
IDENTIFIED = 0.1  # a floor whose 95 % interval is wider than this is not known
EXPONENTS = 0.05, 3.0  # between which a power law is looked for


def main_grid(records: pd.DataFrame, granularity: str = "filter") -> pd.DataFrame:
    """The arms that differ in the ratio alone: the unit's own network, fine-tuned, one criterion.

    Of the units that have such arms of the granularity beside the dense one.
    """
    usual = {"criterion": "activation", "repair": "mean", "scope": "uniform", "granularity": granularity}
    alike = (records[list(usual)] == list(usual.values())).all(axis=1)
    fine_tuned = records["own"] & (records["learner"] == "independent") & (records["trials"] == 1)
    grid = records[fine_tuned & (alike | (records["ratio"] == 0))]
    return grid[grid.groupby("unit")["ratio"].transform("max") > 0]


def by_granularity(records: pd.DataFrame, table_of: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """`table_of` the main grid of every granularity that was run, one below the other."""
    grids = {name: main_grid(records, name) for name in records["granularity"].unique()}
    tables = [table_of(grid).assign(granularity=name) for name, grid in grids.items() if len(grid)]
    return stacked(tables, "ratios of one network that differ in nothing else")


def front(records: pd.DataFrame) -> pd.DataFrame:
    """The arm of the lowest mean error at each budget of each unit, with its interval: the envelope."""
    means = _means_and_ratios(records)
    return means.loc[means.groupby(["unit", "budget"], sort=False)["error"].idxmin()]


def _means_and_ratios(records: pd.DataFrame) -> pd.DataFrame:
    means = mean_errors(records)
    return means.assign(ratio=means["arm"].map(arms(records)["ratio"]))


@per("unit")
def error_by_ratio(of_unit: pd.DataFrame) -> pd.DataFrame:
    """Mean error of each ratio at each budget that all ratios of a unit were run with, with its interval."""
    means = _means_and_ratios(at_shared_budgets(of_unit))
    return means.drop(columns="unit").sort_values(["budget", "ratio"])


@per("unit")
def best_ratio(of_unit: pd.DataFrame) -> pd.DataFrame:
    """The ratio of the lowest mean error at each budget that all ratios of a unit were run with.

    Columns: unit, budget, ratio, low and high (95 % of the draws of tasks and seeds have their best ratio
    between them), support: the share of draws in which this ratio is the best, and seeds: how many all ratios
    were run with.
    """
    shared, ratios = at_shared_budgets(of_unit), arms(of_unit)["ratio"].sort_values()
    table, rows = errors_by_seed(shared), []
    for budget in np.sort(shared["budget"].unique()):
        errors = seeds_in_common(table, *((arm, budget) for arm in ratios.index))
        best = ratios.iloc[errors.mean((1, 2)).argmin()]
        drawn = ratios.to_numpy()[np.argmin([drawn.mean(1) for drawn in draws(*errors)], axis=0)]
        rows.append((budget, best, *interval(drawn, method="nearest"), (drawn == best).mean(), errors.shape[2]))
    return pd.DataFrame(rows, columns=["budget", "ratio", "low", "high", "support", "seeds"])


def power_law(budget: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
    """error = floor + scale * budget ** -exponent"""
    return floor + scale * budget**-exponent


def fitted(budgets: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Floor, scale and exponent of least squared error, in their ranges; NaN where no fit is found."""
    start = np.clip([errors.min() - 0.05, errors.max() - errors.min(), 0.5], 0.01, 0.99)
    bounds = [0, 0, EXPONENTS[0]], [1, 1, EXPONENTS[1]]
    found = least_squares(lambda parameters: power_law(budgets, *parameters) - errors, start, bounds=bounds)
    return found.x if found.success else np.full(3, np.nan)


@per("unit")
def asymptotes(of_unit: pd.DataFrame) -> pd.DataFrame:
    """`power_law` of the mean error from FITTED_FROM on, one row per arm; NaN where its budgets are too few.

    Columns: unit, arm, ratio, floor, scale, exponent; low and high: the floor's 95 % interval over draws of
    tasks and seeds, the error at the largest budget held: how hard the drawn tasks are is not in question;
    identified: whether that interval is narrower than IDENTIFIED, and neither floor nor exponent end at the
    limit of what is looked for; cost: by how much the floor is above dense's, paired, with cost_low and
    cost_high, which say how sure that is.
    """
    table, ratios = errors_by_seed(of_unit), arms(of_unit)["ratio"]
    fits = {arm: _fits(table.loc[[arm]]) for arm in of_unit["arm"].unique()}
    dense, rows = fits[dense_arm(of_unit)], []
    for arm, fit in fits.items():
        floor, scale, exponent, last = fit[0]
        # The floor's interval, if the last error is what it is.
        low, high = last - np.flip(interval(fit[1:, 3] - fit[1:, 0]))
        within = EXPONENTS[0] < exponent < 0.99 * EXPONENTS[1] and interval(fit[1:, 0])[0] > 1e-6
        identified = bool(high - low < IDENTIFIED and within)
        cost = floor - dense[0, 0], *interval(fit[1:, 0] - dense[1:, 0])
        rows.append((arm, ratios[arm], floor, scale, exponent, low, high, identified, *cost))
    names = "arm ratio floor scale exponent low high identified cost cost_low cost_high"
    return pd.DataFrame(rows, columns=names.split())


def _fits(table: pd.DataFrame) -> np.ndarray:
    """Floor, scale, exponent and last error of an arm of `errors_by_seed`: (1 + REFITS, 4).

    First of its means, then of draws of tasks and seeds; NaN where budgets are fewer than NEEDED, or no fit is
    found.
    """
    points = sorted((arm, budget) for arm, budget in table.index if budget >= FITTED_FROM)
    if len(points) < NEEDED:
        return np.full((1 + REFITS, 4), np.nan)
    errors, budgets = seeds_in_common(table, *points), np.array([budget for _, budget in points])
    curves = np.column_stack([errors.mean((1, 2)), np.array([drawn.mean(1)[:REFITS] for drawn in draws(*errors)])]).T
    return np.array([[*fitted(budgets, curve), curve[-1]] for curve in curves])
