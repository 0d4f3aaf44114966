"""Errors at matched compute, and what is gained over dense, with intervals over tasks and seeds.

Reads records only and imports nothing that trains. Accuracy here is 1 - error: for a multi-label task
that is the mean average precision.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lib.common.errors import UserError
from lib.evidence.records import LEARNING, NETWORK, PRUNING, learner_names, per, some

RESAMPLES = 4000


class Estimate(NamedTuple):
    """A value and its 95 % interval, which is the value itself where nothing was sampled."""

    value: float
    low: float
    high: float


def errors_by_seed(records: pd.DataFrame) -> pd.DataFrame:
    """Test error of the arms of one unit, rows (arm, budget), columns (event, seed) in their order.

    All of them spend the same compute at the same budget, so a column compares at matched compute. A seed
    that an arm was not run with at a budget is NaN. Raises UserError where a seed of an arm lacks a task that
    another has.
    """
    if records["unit"].nunique() > 1:
        units = " and ".join(records["unit"].unique())
        raise UserError(f"The budgets of these records are in units of {units}: expected one. Compare those of each.")
    alike = records.groupby("event")["task"], records.groupby(["event", "budget"])["limit_macs"]
    whole = len(records[["arm", "seed", "budget"]].drop_duplicates()) * records["event"].nunique()
    table = records.pivot_table("error_test", ["arm", "budget"], ["event", "seed"], sort=False).sort_index(axis=1)
    if any(values.nunique().max() > 1 for values in alike) or table.count().sum() != whole:
        expected = "the same tasks, and the same compute at the same budget, for all of them"
        raise UserError(f"The arms' records do not compare: expected {expected}. Run the profile's arms again.")
    return table


def seeds_in_common(table: pd.DataFrame, *points: tuple[str, float]) -> np.ndarray:
    """The errors (N, T, S) at N of the arms and budgets of `errors_by_seed`, with the seeds that all were run with.

    Raises UserError where they have none in common, or an arm was not run with that budget.
    """
    chosen = table.reindex(list(points)).dropna(axis=1)
    if chosen.empty:
        named, budgets = (" and ".join(map(str, dict.fromkeys(part))) for part in zip(*points, strict=True))
        common = f"no seed in common at budgets of {budgets}: expected one, and each budget, of every arm"
        raise UserError(f"{named} have {common}. Run the profile's arms again.")
    return chosen.to_numpy().reshape(len(points), chosen.columns.get_level_values("event").nunique(), -1)


def draws(*errors: np.ndarray) -> list[np.ndarray]:
    """Tasks drawn with replacement, and seeds within each: errors (T, S) -> means over seeds (R, T).

    The same draw is used for all of `errors`.
    """
    generator = np.random.default_rng(0)
    tasks, seeds = errors[0].shape
    drawn = generator.integers(tasks, size=(RESAMPLES, tasks, 1))
    within = generator.integers(seeds, size=(RESAMPLES, tasks, seeds))
    return [error[drawn, within].mean(-1) for error in errors]


def interval(values: np.ndarray, **how: Any) -> tuple[float, float]:
    """Between what 95 % of the values (R,) lie that are numbers; NaN where fewer than half of them are."""
    found = values[~np.isnan(values)]
    low, high = np.percentile(found, [2.5, 97.5], **how) if 2 * len(found) > len(values) else 2 * [np.nan]
    return float(low), float(high)


def mean(errors: np.ndarray) -> np.ndarray:
    """Mean over tasks: errors (..., T) -> (...)."""
    return errors.mean(-1)


def accuracy_gain(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Relative gain of the mean accuracy over the dense network's: errors (..., T) -> (...)."""
    return mean(1 - pruned) / mean(1 - dense) - 1


def error_cut(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Share of the dense network's mean error that is gone: errors (..., T) -> (...)."""
    return 1 - mean(pruned) / mean(dense)


def points_gained(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Mean accuracy minus the dense network's, in percentage points: errors (..., T) -> (...)."""
    return 100 * mean(dense - pruned)


GAINS = {"accuracy_gain": accuracy_gain, "error_cut": error_cut, "points_gained": points_gained}


def estimate(statistic: Callable[..., np.ndarray], *errors: np.ndarray) -> Estimate:
    """A statistic of errors (T, S), with the 95 % percentile interval over `draws` of tasks and seeds.

    `statistic` maps arrays (..., T), the errors' means over seeds, to (...).
    """
    value = statistic(*(error.mean(1) for error in errors))
    return Estimate(float(value), *interval(statistic(*draws(*errors))))


@per("unit")
def mean_errors(of_unit: pd.DataFrame) -> pd.DataFrame:
    """Mean test error over tasks and seeds of every arm at every budget, with its interval over both.

    Columns: unit, arm, budget, error, low, high.
    """
    table = errors_by_seed(of_unit)
    found = [estimate(mean, *seeds_in_common(table, point)) for point in table.index]
    return pd.DataFrame(found, table.index, ["error", "low", "high"]).reset_index()


def dense_arm(of_unit: pd.DataFrame, learner: str = "independent") -> str:
    """The arm of a unit's dense network with that learner. Raises MissingArms where there is none."""
    alike = of_unit["own"] & (of_unit["learner"] == learner) & (of_unit["ratio"] == 0)
    expected = f"one of {of_unit['unit'].iloc[0]} with ratio 0 and learner {learner}"
    return some(of_unit[alike], f"{expected} beside {', '.join(of_unit['arm'].unique())}")["arm"].iloc[0]


def unlimited_table(records: pd.DataFrame) -> pd.DataFrame:
    """Mean test error over tasks, with its interval, one row per network: each has a budget of its own."""
    means = mean_errors(records.assign(unit=records["arm"])).set_index("arm").drop(columns="unit")
    about = records.drop_duplicates("arm").set_index("arm")[["backbone", "pretrained", "forward_macs"]]
    about["forward_macs"] = (about["forward_macs"] / 1e6).round(1)
    return about.rename(columns={"forward_macs": "forward (million MACs)"}).join(means.round(3))


def gains_over(baseline: str, of_unit: pd.DataFrame) -> pd.DataFrame:
    """What every other arm of a unit gains over the arm `baseline` at the same budget.

    Columns: arm, budget, and for each of GAINS its value, `_low` and `_high`: 95 % intervals over tasks and
    seeds, paired: both arms see the same draw of the seeds that both were run with.
    """
    table = errors_by_seed(of_unit)
    others = table.index.drop(baseline, level="arm")
    pairs = [seeds_in_common(table, (arm, budget), (baseline, budget)) for arm, budget in others]
    rows = [np.ravel([estimate(gain, *pair) for gain in GAINS.values()]) for pair in pairs]
    return pd.DataFrame(rows, others, [f"{name}{end}" for name in GAINS for end in ("", "_low", "_high")]).reset_index()


@per("unit")
def improvement_over_dense(of_unit: pd.DataFrame, learner: str = "independent") -> pd.DataFrame:
    """`gains_over` its unit's dense arm of `learner`, for every other arm, after a column `unit`."""
    return gains_over(dense_arm(of_unit, learner), of_unit)


def granularities_compared(records: pd.DataFrame) -> pd.DataFrame:
    """By how many points `filter` is ahead of `channel`, one row per unit, task, ratio and budget.

    Compares arms of one unit that differ in the granularity alone, over the seeds that both were run with.
    """
    for _, of_unit in records.groupby("unit"):
        errors_by_seed(of_unit)  # refuses what does not compare
    thin, inner = (records[records["granularity"] == name] for name in ("channel", "filter"))
    alike = [name for name in NETWORK + PRUNING + LEARNING if name != "granularity"]
    pairs = thin.merge(inner, on=[*alike, "event", "task", "budget", "seed"], suffixes=("_channel", "_filter"))
    pairs["points"] = 100 * (pairs["error_test_channel"] - pairs["error_test_filter"])
    order = [pairs["unit"].factorize()[0], pairs["arm_channel"].factorize()[0], pairs["budget"].to_numpy()]
    means = pairs.groupby([*order, "unit", "event", "task", "ratio", "budget"])["points"].mean()
    return some(means.droplevel([0, 1, 2]).reset_index(), "two that differ in the granularity alone")


@per("unit", "ratio")
def learners_compared(of_network: pd.DataFrame) -> pd.DataFrame:
    """Every learner on each network (one per unit and ratio), one row per budget, with 95 % intervals.

    Intervals are over tasks and seeds. Columns: unit, ratio, learner, budget, error (mean over tasks), low,
    high, tera_macs (of the whole stream), and forward_transfer: by how many points the mean error is below
    that of `independent` on the same network at the same budget, paired, with `_low` and `_high`.
    """
    of_network = of_network.assign(arm=learner_names(of_network))
    spent = of_network.groupby(["arm", "budget", "event"])["total_macs"].mean().groupby(["arm", "budget"]).sum() / 1e12
    gains = gains_over("independent", of_network).set_index(["arm", "budget"]).filter(like="points_gained")
    gains.columns = gains.columns.str.replace("points_gained", "forward_transfer")
    means = mean_errors(of_network).drop(columns="unit").set_index(["arm", "budget"])
    found = means.join([spent.rename("tera_macs"), gains]).fillna(0)  # independent's own transfer
    return found.reset_index(names=["learner", "budget"])


def along_the_stream(records: pd.DataFrame) -> pd.DataFrame:
    """After each event of an arm at a budget: the compute spent so far, and the mean error so far.

    Adds the columns cumulative_macs and mean_error_so_far; expects one seed per arm.
    """
    ordered = records.sort_values("event", kind="stable")
    groups = ordered.groupby(["arm", "budget"], sort=False)
    so_far = groups["error_test"].cumsum() / (groups.cumcount() + 1)
    return ordered.assign(cumulative_macs=groups["total_macs"].cumsum(), mean_error_so_far=so_far)
