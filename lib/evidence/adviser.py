"""Which network and learner to use for a budget: what did best on the other tasks.

Reads records only. A task never has a say in its own recommendation.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.common.errors import UserError
from lib.evidence.analysis import Estimate, by_task, estimate
from lib.evidence.records import COMPARED, LEARNING, NETWORK, PRUNING, at_shared_budgets, described, load_records

CHOSEN = [*NETWORK, "reference", *PRUNING, *LEARNING]


class Recommendation(NamedTuple):
    """An arm, the fields of its RunSpec that matter, and the error to expect (0 to 1), with its 95 % interval.

    `RunSpec(**spec, budgets=[budget])` spends the compute that was asked for: in the unit of the records.
    """

    arm: str
    spec: dict
    error: Estimate


def recommend(budget: float, task: str, records: pd.DataFrame | None = None) -> Recommendation:
    """The arm with the lowest mean error at about `budget` (dense images) over all tasks but `task`.

    Neighbouring budgets have a say, by a normal weight one doubling wide: a few tasks alone would make the
    choice jump from budget to budget by chance. The error to expect is that at `budget`, between two measured
    ones linear in the logarithm. `task` is a task of the records, or any other name for one that they do not
    have. `records` are the paper's if None. Arms that were not run up to `budget` are left out. Raises UserError for
    a budget outside of what was measured.
    """
    records = load_records("paper", *COMPARED) if records is None else described(records)
    others = records[records["task"] != task]
    if others.empty:
        raise UserError(f"The records are of {task} alone: expected another task to learn from.")
    least, most = (others.groupby("arm")["budget"].transform(end) for end in ("min", "max"))
    able = others[(least <= budget) & (budget <= most)]
    if able.empty:
        raise UserError(f"budget={budget:g} was not measured: expected {least.min():g} to {most.max():g} dense images.")
    table, best = by_task(able), _best_about(budget, able)
    fields = able.loc[able["arm"] == best, CHOSEN].iloc[[0]].to_dict("records")[0]
    spec = {name: None if pd.isna(value) else value for name, value in fields.items()}
    measured = table.loc[best].index
    below, above = measured[measured <= budget].max(), measured[measured >= budget].min()
    lower, upper = (1 - table.loc[(best, end)].to_numpy() / 100 for end in (below, above))
    share = np.log(budget / below) / np.log(above / below) if below < above else 0.0
    return Recommendation(best, spec, estimate(np.mean, lower + share * (upper - lower)))


def _best_about(budget: float, records: pd.DataFrame) -> str:
    """The arm with the lowest mean error over tasks, weighted by how near its budgets are.

    At the budgets of any arm between the least and the most that all were run with; between its own, an
    arm's error is linear in the logarithm.
    """
    means = records.groupby(["arm", "budget", "event"], sort=False)["error_test"].mean()
    means = means.groupby(level=["arm", "budget"], sort=False).mean().unstack("budget").sort_index(axis=1)
    means.columns = np.log2(means.columns / budget)
    means = means.interpolate("index", axis=1, limit_area="inside").dropna(axis=1)
    return (means * np.exp(-(means.columns**2) / 2)).sum(axis=1).idxmin()


def regrets(records: pd.DataFrame, since: int | None = None) -> pd.DataFrame:
    """What each policy loses to the best arm in hindsight, one row per policy, task and shared budget.

    Policies: the adviser; and always the same arm, one policy per arm. The adviser knows all other tasks; with a year
    `since`, it knows those before that year, and is asked about those from it on. Columns: policy, event, task, budget,
    arm, regret (points below the highest accuracy of all arms, each the mean over its seeds). Raises UserError for a
    year that leaves nothing to know or to ask.
    """
    records = at_shared_budgets(records)
    asked = records if since is None else records[records["year"] >= since]
    if since is not None and not 0 < len(asked) < len(records):
        years = f"{records['year'].min() + 1} to {records['year'].max()}"
        raise UserError(f"since={since} leaves nothing to know or nothing to ask about: expected a year of {years}.")
    errors = 100 * asked.pivot_table("error_test", ["budget", "event", "task"], "arm", sort=False)
    rows = []
    for (budget, event, task), of_arms in errors.iterrows():
        known = records["task"] != task if since is None else records["year"] < since
        advised = _best_about(budget, records[known])
        for policy, arm in {"adviser": advised, **{f"always {arm}": arm for arm in errors.columns}}.items():
            rows.append((policy, event, task, budget, arm, of_arms[arm] - of_arms.min()))
    return pd.DataFrame(rows, columns=["policy", "event", "task", "budget", "arm", "regret"])
