"""How error falls with compute: the compute-optimal front, the best ratio at each budget, and the asymptote.

Reads records only, like lib/evidence/records.py, and imports nothing that trains.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from lib.evidence.analysis import dense_arm, draws, errors_by_seed, interval, mean_errors, seeds_in_common
from lib.evidence.records import arms, at_shared_budgets, per, some

REFITS = 200  # of a curve, on draws of tasks and seeds
FITTED_FROM = 1.0  # dense epochs: below, errors fall slowly at first and are no power law
NEEDED = 4  # budgets, for three parameters
IDENTIFIED = 0.1  # a floor whose 95 % interval is wider than this is not known
RANGES = (0, 0, 0.05), (1, 1, 3.0)  # between which floor, scale and exponent are looked for


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
    grids = [main_grid(records, name).assign(granularity=name) for name in records["granularity"].unique()]
    grid = some(pd.concat(grids), "ratios of one network that differ in nothing else")
    tables = [table_of(part).assign(granularity=name) for name, part in grid.groupby("granularity", sort=False)]
    return pd.concat(tables, ignore_index=True)


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
    return _means_and_ratios(at_shared_budgets(of_unit)).drop(columns="unit").sort_values(["budget", "ratio"])


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
    found = least_squares(lambda parameters: power_law(budgets, *parameters) - errors, start, bounds=RANGES)
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
    table, ratios, rows = errors_by_seed(of_unit), arms(of_unit)["ratio"], []
    fits = {arm: _fits(table.loc[[arm]]) for arm in of_unit["arm"].unique()}
    costs = {arm: fit[:, 0] - fits[dense_arm(of_unit)][:, 0] for arm, fit in fits.items()}
    for arm, fit in fits.items():
        curve, floors, drops = fit[0, :3], fit[1:, 0], fit[1:, 3] - fit[1:, 0]
        low, high = fit[0, 3] - np.flip(interval(drops))  # the floor's interval, if the last error is what it is
        within = RANGES[0][2] < curve[2] < 0.99 * RANGES[1][2] and interval(floors)[0] > 1e-6
        identified = bool(high - low < IDENTIFIED and within)
        rows.append((arm, ratios[arm], *curve, low, high, identified, costs[arm][0], *interval(costs[arm][1:])))
    columns = "arm ratio floor scale exponent low high identified cost cost_low cost_high"
    return pd.DataFrame(rows, columns=columns.split())


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
