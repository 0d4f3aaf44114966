"""Further views of records: a stream as a whole, as Nevis'22 reports it; by the size of a task; by the rates.

Reads records only, like lib/evidence/records.py, and imports nothing that trains.
"""

import numpy as np
import pandas as pd

from lib.evidence.analysis import Estimate, estimate
from lib.evidence.records import arms


def over_the_stream(records: pd.DataFrame) -> pd.DataFrame:
    """As Nevis'22 reports: mean error over the events against all compute spent on them, by the benchmark's counting.

    A row per arm and budget that computes anything. Columns: arm, family, budget, flops (two a MAC, validation left
    out; with what pruning prepared once for the whole stream), error (percent), on_front (nothing spends less and errs
    less).
    """
    spent, errors = _over_the_stream(records)
    found = pd.DataFrame({"flops": spent, "error": errors.mean(axis=1)}).reset_index()
    ordered = found.sort_values(["flops", "error"])["error"]
    before = ordered.cummin().shift(fill_value=np.inf)
    return found.assign(on_front=ordered < before)


def front_gain(records: pd.DataFrame, *families: str) -> Estimate:
    """By how many points of error the front of `over_the_stream` is lower with the networks of some families.

    Mean over the logarithm of the compute, from where both fronts begin to the most that is spent, with the interval
    over events; both fronts are those in hindsight.
    """
    spent, errors = _over_the_stream(records)
    flops, without = spent.to_numpy(), ~spent.index.get_level_values("family").isin(families)
    grid = np.geomspace(max(flops.min(), flops[without].min()), flops.max(), 1000)

    def gain(drawn: np.ndarray) -> float:
        means = drawn.mean(axis=1)
        fronts = [
            np.where(flops[own, None] <= grid, means[own, None], np.inf).min(axis=0)
            for own in (without, np.full_like(without, True))
        ]
        return float((fronts[0] - fronts[1]).mean())

    return estimate(gain, errors.to_numpy())


def _over_the_stream(records: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """FLOPs, and the errors in percent with a column per event, of every arm and budget that computes anything."""
    index = ["arm", "family", "budget"]
    of_event = records.groupby([*index, "event"], sort=False)[["nevis_flops", "error_test"]].mean()
    once = records.groupby(index, sort=False)["preparation_macs"].first()
    spent = of_event["nevis_flops"].groupby(level=index, sort=False).sum() + 2 * once
    return spent[spent > 0], 100 * of_event["error_test"].unstack("event").loc[spent[spent > 0].index]


def by_task_size(cut: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    """Accuracy against how many training images a task has, at equal compute.

    `cut`: records of arms on the first images of a few tasks; `whole`: of the same networks on all of them. Columns:
    label, family, budget, images (of training; infinite for all), accuracy (percent, mean over the tasks of `cut`).
    """
    cut, whole = (part.assign(label=part["arm"].map(arms(part)["label"])) for part in (cut, whole))
    alike = whole["task"].isin(cut["task"]) & whole["label"].isin(cut["label"]) & whole["budget"].isin(cut["budget"])
    both = pd.concat([cut, whole[alike]])
    both["images"] = both["train_images"].astype(float).fillna(np.inf)
    means = both.groupby(["label", "family", "budget", "images"], sort=False)["error_test"].mean()
    return (100 * (1 - means)).rename("accuracy").reset_index()


def gain_by_rates(errors: pd.DataFrame, body: float, head: float) -> pd.DataFrame:
    """Points of accuracy that the most pruned network leads the dense one by: a row per choice of rates.

    `errors`: columns ratio, budget, body_rate, head_rate, error_dev (0 to 1; of several tasks, or their mean). Rows:
    one rate for body and head together, each that was tried; the pair `body`, `head`; the best pair of each network and
    budget. A column per budget.
    """
    table = errors.pivot_table("error_dev", ["body_rate", "head_rate", "budget"], "ratio")
    points = 100 * (table.iloc[:, 0] - table.iloc[:, -1])
    equal = sorted({one for one, other, _ in points.index if one == other})
    best = table.groupby("budget").min()
    rows = {f"one rate, {rate:g}": points.loc[rate, rate] for rate in equal} | {
        "the committed pair": points.loc[body, head],
        "the best pair of each": 100 * (best.iloc[:, 0] - best.iloc[:, -1]),
    }
    return pd.DataFrame(rows).T
