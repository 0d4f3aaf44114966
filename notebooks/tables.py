"""Tables that one notebook or two show: of several streams, learners, criteria, sizes, and the adviser's regret.

Reads records only, by lib/evidence.
"""

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import pandas as pd

from lib.evidence.analysis import estimate, leads, summarised
from lib.evidence.records import (
    DENSE,
    NETWORK,
    PRUNED,
    PRUNING,
    MissingArms,
    arms,
    at_shared_budgets,
    learner_said,
    load_records,
    of_reference,
    said,
    some,
)
from lib.evidence.reports import with_front
from lib.evidence.scaling import ROUTES, best_sizes, sizes
from lib.runs.profiles import arms_of, records_file

_STREAMS = {"pocket": "the pocket stream", "nevis/short": "Nevis'22", "nevis/full": "further data sets of Nevis'22"}


def load_streams(profile: str, *groups: str, beside: Iterable[str] = ("nevis",)) -> dict[str, pd.DataFrame]:
    """`load_records` by the stream's name in words: and with the paper's those of the profiles `beside`, if there."""
    others = [other for other in beside if profile == "paper" and are_there(other)]
    loaded = [load_records(one, *groups) for one in (profile, *others)]
    return {_STREAMS.get(stream := records["stream"].iloc[0], stream): records for records in loaded}


def are_there(profile: str) -> bool:
    """Whether all arms of a profile have been run."""
    return all(records_file(profile, arm).exists() for arm in arms_of(profile))


def against(records: pd.DataFrame, baseline: str, others: Iterable[str]) -> pd.DataFrame:
    """What each of the arms `others` leads the arm `baseline` by: `summarised`, after a column arm.

    `p_holm` is adjusted for all rows of the table.
    """
    found = [leads(records, [arm], [baseline]) for arm in others]
    return summarised(some(pd.concat([pd.DataFrame(), *found]), f"others beside {baseline}"), "arm", "budget")


def learners_compared(records: pd.DataFrame) -> pd.DataFrame:
    """Ways to learn against fine-tuning all layers, on the dense network and on the pruned one learnt in most ways.

    `against`, after the columns network and learner, both in words.
    """
    about = arms(records)
    own = about[about["family"].isin([*DENSE, *PRUNED]) & of_reference(about)]
    tables = []
    for is_pruned, part in own.groupby(own["ratio"] > 0):
        alike = part.groupby([*NETWORK, *(PRUNING if is_pruned else [])], sort=False, dropna=False)
        most = max((group for _, group in alike), key=len)
        plain = most[(most["learner"] == "independent") & (most["trials"] == 1)]
        if len(plain) and len(most) > 1:
            found = against(records, plain.index[0], most.index.drop(plain.index[0]))
            learner = found["arm"].map(lambda arm, of=most: learner_said(of.loc[arm]))
            name = f"{most['ratio'].iloc[0]:.0%} removed" if is_pruned else "dense"
            tables.append(found.assign(network=name, learner=learner))
    return some(pd.concat([pd.DataFrame(), *tables]), "one network learnt in two ways").reset_index(drop=True)


def alternatives(records: pd.DataFrame) -> pd.DataFrame:
    """Other ways to prune, against the usual one, fine-tuned and probed: `against`, after panel and label.

    The usual one removes the share that most others do; another share is said. Budgets that did not pay for looking at
    a task's images are left out.
    """
    about, tables = arms(records), []
    short = records.groupby(["arm", "budget"])["note"].transform(lambda notes: (notes != "").any())
    for (*_, learner), part in about[about["ratio"] > 0].groupby(["backbone", "image_size", "learner"], sort=False):
        others = part[part["how"] != ""]
        ratio = others["ratio"].mode().max()
        usual = part.index[(part["how"] == "") & (part["ratio"] == ratio)]
        if len(usual) and len(others):
            shares = others["ratio"].map(lambda share, usual=ratio: f", {share:.0%} removed" if share != usual else "")
            found = against(records[~short], usual[0], others.index)
            tables.append(found.assign(panel=said(learner), label=found["arm"].map(others["how"] + shares)))
    return some(pd.concat([pd.DataFrame(), *tables]), "other criteria and repairs").reset_index(drop=True)


def iso_curves(records: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The table of `sizes` of all probes, and `best_sizes` by route.

    Without a route that has too few sizes. Raises MissingArms where every one has.
    """
    probes, found = records[records["learner"] == "probe"], {}
    for route in ROUTES:
        with suppress(MissingArms):
            found[route] = best_sizes(probes, route)
    if not found:
        raise MissingArms("The records have no arms to compare: expected four sizes of one network, learnt alike.")
    return sizes(probes), found


def explained(table: pd.DataFrame, by: str) -> float:
    """The share of the variance of `sizes`' errors that a quadratic in the logarithm of the column `by` explains."""
    place = np.log10(table[by])
    curve = np.polyfit(place, table["error"], min(2, place.nunique() - 1))
    left = table["error"] - np.polyval(curve, place)
    return float(1 - left.var() / table["error"].var())


def networks(records: pd.DataFrame) -> pd.DataFrame:
    """Every probe at the largest budget that all were run with, by the size of its network.

    Columns: those of `scaling.sizes`, ratio, label, on_front (no network is smaller and errs less).
    """
    probes = at_shared_budgets(records[records["learner"] == "probe"])
    found = sizes(probes[probes["budget"] == probes["budget"].max()]).join(arms(probes)[["ratio", "label"]], on="arm")
    return with_front(found.assign(label=found["label"].str.removesuffix(", probe")), "forward_macs")


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


def mean_regrets(table: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """Mean regret of each policy over budgets and tasks, the lowest first, with its 95 % interval over tasks.

    `labels` are what arms are called. Columns, for drawing: label, budget (0), points, low, high.
    """
    of_task = table.groupby(["policy", "event"], sort=False)["regret"].mean().unstack("event")
    found = pd.DataFrame(
        [estimate(np.mean, row) for row in of_task.to_numpy()], of_task.index, ["points", "low", "high"]
    )
    names = found.index.str.removeprefix("always ")
    found["label"] = [labels.get(name, "the adviser") for name in names]
    return found.sort_values("points", kind="stable").reset_index(drop=True).assign(budget=0)
