"""Accuracy at equal compute, and what one network, or the best of several, leads another by.

Everything is in points of accuracy (percent of the test images; for a multi-label task mean average precision), paired
over the same tasks and seeds, with 95 % intervals over tasks. Reads records only and imports nothing that trains.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from lib.common.errors import UserError
from lib.evidence.records import FAMILIES, of_families, some

LEVEL = 0.95
MARGIN = 1.0  # points of accuracy: two whose difference is sure to be within are called equal. Stated before


class Estimate(NamedTuple):
    """A value and its interval over tasks: the value itself where nothing was sampled, NaN for a single task."""

    value: float
    low: float
    high: float


def estimate(statistic: Callable[..., float], *values: np.ndarray, level: float = LEVEL) -> Estimate:
    """A statistic of arrays (..., T) over the same T tasks, with the t interval of the jackknife over tasks.

    Of a mean that is the usual t interval; a percentile bootstrap of ten tasks covers 87 % where this covers 92.
    """
    value, tasks = float(statistic(*values)), values[0].shape[-1]
    if tasks < 2:
        return Estimate(value, np.nan, np.nan)
    without = np.array([statistic(*(np.delete(array, task, -1) for array in values)) for task in range(tasks)])
    spread = np.sqrt((tasks - 1) / tasks * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf((1 + level) / 2, tasks - 1) * spread
    return Estimate(value, value - half, value + half)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """By how many percent a mean accuracy (T) is above another."""
    return 100 * (ours.mean() / theirs.mean() - 1)


def verdict(lead: Estimate, margin: float = MARGIN) -> Literal["ahead", "behind", "equal", "open"]:
    """What an interval of points says: above or below 0, sure to be within the margin, or neither."""
    if lead.low > 0 or lead.high < 0:
        return "ahead" if lead.low > 0 else "behind"
    return "equal" if -margin < lead.low and lead.high < margin else "open"


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values (N) adjusted for being N, by Holm's step-down (NaN stays NaN, and counts)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(order))
    stepped = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


def accuracies(records: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in percent, rows (arm, budget), columns (event, seed) in their order.

    All spend the same compute at the same budget, so a column compares at equal compute. A seed that an arm was not
    run with at a budget is NaN. Raises UserError for records in several units, or where a seed of an arm lacks a task
    that another has.
    """
    if records["reference"].nunique() > 1:
        units = " and ".join(records["reference"].unique())
        raise UserError(f"The budgets of these records are in images of {units}: expected one. Compare those of each.")
    same = records.groupby("event")["task"], records.groupby(["event", "budget"])["limit_macs"]
    whole = len(records[["arm", "seed", "budget"]].drop_duplicates()) * records["event"].nunique()
    table = records.pivot_table("error_test", ["arm", "budget"], ["event", "seed"], sort=False).sort_index(axis=1)
    if any(values.nunique().max() > 1 for values in same) or table.count().sum() != whole:
        expected = "the same tasks, and the same compute at the same budget, for all of them"
        raise UserError(f"The arms' records do not compare: expected {expected}. Run the profile's arms again.")
    return 100 * (1 - table)


def by_task(records: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in percent, mean over an arm's own seeds: rows (arm, budget), columns event."""
    return accuracies(records).T.groupby(level="event").mean().T


def mean_accuracy(records: pd.DataFrame) -> pd.DataFrame:
    """Of every arm at every budget, over tasks and its own seeds. Columns: arm, budget, accuracy, low, high."""
    table = by_task(records)
    found = [estimate(np.mean, row) for row in table.to_numpy()]
    return pd.DataFrame(found, table.index, ["accuracy", "low", "high"]).reset_index()


# --- the best of several, and leads -----------------------------------------------------------------------


def chosen(means: pd.DataFrame, tasks: pd.Series, hindsight: bool = False) -> pd.Series:
    """The arm to choose for each task, of accuracies with a row per arm and a column per event.

    It is the best on all *other* tasks, so that no task has a say in its own choice; in hindsight, on all. `tasks` are
    the events' names: events of one name are one task, in the mean as in the choice.
    """
    of_tasks = means.T.groupby(tasks).mean()
    if hindsight or len(of_tasks) < 2:
        return pd.Series(of_tasks.mean().idxmax(), means.columns)
    best = {task: of_tasks.drop(task).mean().idxmax() for task in of_tasks.index}
    return tasks.loc[means.columns].map(best)


def leads(records: pd.DataFrame, ours: Iterable[str], theirs: Iterable[str], hindsight: bool = False) -> pd.DataFrame:
    """What the best of the arms `ours` leads the best of `theirs` by, a row per budget and event.

    Ours is `chosen` among those that were run at that budget; the rival is the best of theirs in hindsight, so that no
    lead is due to a rival that was chosen badly. The two are compared over the seeds that both have.
    Columns: budget, event, task, domain, arm, other, accuracy, over (of the other), points. Raises MissingArms where
    there is no budget at which either was run, UserError where two have no seed in common.
    """
    table, rows = accuracies(records), []
    tasks = records.drop_duplicates("event").set_index("event")[["task", "domain"]].sort_index()
    sides = [[arm for arm in side if arm in table.index] for side in (ours, theirs)]
    events, places = table.columns.get_level_values("event"), np.arange(table.shape[1])
    for budget in np.sort(records["budget"].unique()):
        at_budget = table.xs(budget, level="budget")
        both = [at_budget[at_budget.index.isin(side)] for side in sides]
        if any(side.empty for side in both):
            continue
        means = [side.T.groupby(level="event").mean().T for side in both]
        picked = [chosen(means[0], tasks["task"], hindsight), chosen(means[1], tasks["task"], hindsight=True)]
        found = [at_budget.to_numpy()[at_budget.index.get_indexer(names[events]), places] for names in picked]
        pairs = pd.DataFrame(zip(*found, strict=True), table.columns, ["accuracy", "over"])
        shared = pairs.dropna().groupby(level="event").mean().reindex(tasks.index)
        if (none := shared["over"].isna()).any():
            first = tasks.index[none][0]
            raise UserError(
                f"{' and '.join(names[first] for names in picked)} have no seed in common at a budget of {budget}: "
                "expected one. Run the profile's arms again."
            )
        rows.append(tasks.assign(budget=budget, arm=picked[0], other=picked[1], **shared).reset_index())
    found = some(pd.concat([pd.DataFrame(), *rows], ignore_index=True), "two kinds of network at one budget")
    columns = ["budget", "event", "task", "domain", "arm", "other", "accuracy", "over"]
    return found[columns].assign(points=found["accuracy"] - found["over"])


def summarised(found: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Mean of `leads` over tasks, a row for each value of `by` (budgets if none is named). A name is one task.

    Columns: those of `by`, tasks, accuracy, over, points, low, high (95 % t interval of the paired difference);
    relative, relative_low, relative_high (percent gained); p (paired t test), p_holm (adjusted for the number of
    rows), verdict.
    """
    rows, keys = {}, list(by or ["budget"])
    found = found.groupby([*keys, "task"], sort=False)[["points", "accuracy", "over"]].mean().reset_index()
    for key, part in found.groupby(keys, sort=False):
        points, pair = part["points"].to_numpy(), part[["accuracy", "over"]].to_numpy().T
        lead = estimate(np.mean, points)
        p = stats.ttest_1samp(points, 0).pvalue if len(points) > 1 and np.ptp(points) else float(lead.value == 0)
        rows[key] = len(part), *pair.mean(1), *lead, *estimate(relative, *pair), p, verdict(lead)
    columns = "tasks accuracy over points low high relative relative_low relative_high p verdict"
    table = pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=keys), columns.split())
    return table.assign(p_holm=holm(table["p"].to_numpy())).reset_index()


def front(records: pd.DataFrame) -> pd.DataFrame:
    """The best arm of each family at each budget, with the task left out of the choice.

    Columns: family, budget, arm (the most often chosen), accuracy, low, high.
    """
    table, rows = by_task(records), []
    tasks = records.groupby("event")["task"].first()
    for family in FAMILIES:
        of_family = table[table.index.isin(of_families(records, family), level="arm")]
        for budget, means in of_family.groupby(level="budget"):
            names = chosen(means.droplevel("budget"), tasks)
            found = [means.loc[(arm, budget), event] for event, arm in names.items()]
            rows.append((family, budget, names.mode()[0], *estimate(np.mean, np.array(found))))
    return pd.DataFrame(rows, columns=["family", "budget", "arm", "accuracy", "low", "high"])


def carried_on(records: pd.DataFrame) -> pd.DataFrame:
    """The records, and at larger budgets those of what solves one head and stops: more compute changes nothing.

    A probe that left a tenth of its largest budget unspent on every task would do the same with any larger one.
    """
    last = records[records["budget"] == records.groupby("arm")["budget"].transform("max")]
    stops = last["learner"].isin(["probe", "pixels", "majority"])
    unspent = (last["total_macs"] < 0.9 * last["limit_macs"]).groupby(last["arm"]).transform("min")
    limits = records.groupby(["event", "budget"])["limit_macs"].first().rename("limit").reset_index()
    later = last[stops & unspent].merge(limits, on="event", suffixes=("_measured", ""))
    later = later[later["budget"] > later["budget_measured"]].assign(limit_macs=lambda rows: rows["limit"])
    return pd.concat([records, later[records.columns]], ignore_index=True)
