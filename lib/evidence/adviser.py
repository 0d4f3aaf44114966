"""Which network and learner to use for a budget: what did best on the other tasks.

Reads records only. A task never has a say in its own recommendation.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.common.errors import UserError
from lib.evidence.records import (
    COMPARED,
    LEARNING,
    PRUNING,
    Estimate,
    at_shared_budgets,
    errors_by_seed,
    estimate,
    load_records,
    seeds_in_common,
)

CHOSEN = ["backbone", "image_size", "reference", *PRUNING, *LEARNING]


@dataclass(frozen=True)
class Recommendation:
    """An arm, the fields of its RunSpec that matter, and the error to expect, with its 95 % interval.

    `RunSpec(**spec, budgets=[budget])` spends the compute that was asked for: in the unit of the records.
    """

    arm: str
    spec: dict
    error: Estimate


def recommend(budget: float, task: str, records: pd.DataFrame | None = None) -> Recommendation:
    """The arm with the lowest mean error at about `budget` (dense epochs) over all tasks but `task`.

    Neighbouring budgets have a say, by a normal weight one doubling wide: a few tasks alone would make the
    choice jump from budget to budget by chance. The error to expect is that at `budget`, between two measured
    ones linear in the logarithm. `task` is a task of the records, or any other name for one that they do not
    have. `records` are those of one unit; those of the paper's main network if None. Arms that were not run
    up to `budget` are left out. Raises UserError for a budget outside of what was measured.
    """
    if records is None:
        records = load_records("paper", *COMPARED)
        records = records[records["unit"] == records["unit"].iloc[0]]
    others = records[records["task"] != task]
    reach = others.groupby("arm")["budget"].transform("max")
    if not others["budget"].min() <= budget <= reach.max():
        raise UserError(
            f"budget={budget:g} was not measured: expected {others['budget'].min():g} to {reach.max():g} "
            "dense epochs."
        )
    others = at_shared_budgets(others[reach >= budget])
    arm = _best_about(budget, others)
    first = records.loc[records["arm"] == arm, CHOSEN].iloc[[0]]
    spec = {name: None if pd.isna(value) else value for name, value in first.to_dict("records")[0].items()}
    return Recommendation(arm, spec, _error_at(budget, others[others["arm"] == arm]))


def _best_about(budget: float, records: pd.DataFrame) -> str:
    """The arm with the lowest mean error over tasks, weighted by how near its budgets are."""
    means = records.groupby(["arm", "budget", "task"], sort=False)["error_test"].mean()
    means = means.groupby(level=["arm", "budget"], sort=False).mean().unstack("budget")
    doublings = np.log2(means.columns.to_numpy() / budget)
    return (means * np.exp(-(doublings**2) / 2)).sum(axis=1).idxmin()


def _error_at(budget: float, records: pd.DataFrame) -> Estimate:
    """The mean error of an arm at a budget, over the seeds of the measured budgets around it."""
    budgets = np.sort(records["budget"].unique())
    above = budgets[np.searchsorted(budgets, budget)]
    below = budgets[budgets <= budget][-1]
    share = 0.0 if above == below else np.log(budget / below) / np.log(above / below)
    arm = records["arm"].iloc[0]
    lower, upper = seeds_in_common(errors_by_seed(records), (arm, below), (arm, above))
    return estimate(lambda drawn: drawn.mean(-1), lower + share * (upper - lower))


def regrets(records: pd.DataFrame) -> pd.DataFrame:
    """What each policy loses to the best arm in hindsight, one row per policy, task and shared budget.

    Policies: the adviser; and always the same arm, one policy an arm. Columns: policy, task, budget, arm,
    regret (error minus the lowest of all arms, each the mean over its seeds).
    """
    records = at_shared_budgets(records)
    errors = records.groupby(["budget", "task", "arm"], sort=False)["error_test"].mean().unstack("arm")
    rows = []
    for (budget, task), of_arms in errors.iterrows():
        advised = _best_about(budget, records[records["task"] != task])
        policies = {"adviser": advised} | {f"always {arm}": arm for arm in errors.columns}
        for policy, arm in policies.items():
            regret = of_arms[arm] - of_arms.min()
            rows.append({"policy": policy, "task": task, "budget": budget, "arm": arm, "regret": regret})
    return pd.DataFrame(rows)
