"""A stream as a whole, as Nevis'22 reports it: error against all compute, and the front.

Reads records only, like lib/evidence/records.py, and imports nothing that trains.
"""

import numpy as np
import pandas as pd

from lib.evidence.analysis import Estimate, estimate


def over_the_stream(records: pd.DataFrame) -> pd.DataFrame:
    """As Nevis'22 reports: mean error over the events against all compute spent on them, by the benchmark's counting.

    A row per arm and budget that computes anything. Columns: arm, family, learner, budget, flops (two a MAC, validation
    left out; with what pruning prepared once for the whole stream), error (percent), on_front (nothing spends less and
    errs less).
    """
    spent, errors = _over_the_stream(records)
    return with_front(pd.DataFrame({"flops": spent, "error": errors.mean(axis=1)}).reset_index(), "flops")


def with_front(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    """A table with the column error, and on_front: whether nothing costs less and errs less."""
    ordered = table.sort_values([cost, "error"])["error"]
    return table.assign(on_front=ordered < ordered.cummin().shift(fill_value=np.inf))


def front_gain(records: pd.DataFrame, *families: str) -> Estimate:
    """By how many points of error the front of `over_the_stream` is lower with the networks of some families.

    Mean over the logarithm of the compute, from where both fronts begin to the most that is spent, with the interval
    over events; both fronts are those in hindsight. Between its budgets an arm's error is linear in the logarithm, for
    it can be run at any; beyond the largest it stays.
    """
    spent, errors = _over_the_stream(records)
    flops, without = np.log(spent.to_numpy()), ~spent.index.get_level_values("family").isin(families)
    grid = np.linspace(max(flops.min(), flops[without].min()), flops.max(), 1000)
    arms = [rows for rows in spent.groupby(level="arm", sort=False).indices.values()]

    def gain(drawn: np.ndarray) -> float:
        means = drawn.mean(axis=1)
        curves = np.stack([np.interp(grid, flops[rows], means[rows], left=np.inf) for rows in arms])
        rivals = curves[[without[rows[0]] for rows in arms]]
        return float((rivals.min(axis=0) - curves.min(axis=0)).mean())

    return estimate(gain, errors.to_numpy())


def _over_the_stream(records: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """FLOPs, and the errors in percent with a column per event, of every arm and budget that computes anything."""
    index = ["arm", "family", "learner", "budget"]
    of_event = records.groupby([*index, "event"], sort=False)[["nevis_flops", "error_test"]].mean()
    once = records.groupby(index, sort=False)["preparation_macs"].first()
    spent = of_event["nevis_flops"].groupby(level=index, sort=False).sum() + 2 * once
    return spent[spent > 0], 100 * of_event["error_test"].unstack("event").loc[spent[spent > 0].index]
