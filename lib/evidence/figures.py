"""Figures of records: errors, and what is gained over dense, against compute, by arm, ratio, learner or task."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.evidence.records import arms
from lib.evidence.scaling import FITTED_FROM, power_law
from lib.evidence.style import BUDGET, Axis, Look, arm_looks, in_style, palette, panels, share_look

ERROR = Axis("error", "test error\n(mean, 95 % interval)")
ONE_ERROR = Axis("error_test", "test error")
POINTS = {"points_gained": "accuracy gained (points)"}
ALL_GAINS = {"accuracy_gain": "accuracy gained (%)", "error_cut": "error cut (%)"} | POINTS


@in_style
def errors(records: pd.DataFrame, means: pd.DataFrame, front: pd.DataFrame | None = None) -> Figure:
    """Mean test error against the budget with 95 % intervals: a column per unit, a row per granularity.

    `front` lies behind the arms, a broad line. Dense networks and other alternatives are in every row.
    """
    about = arms(records)
    names = list(about.loc[about["ratio"] > 0, "granularity"].unique()) or ["dense"]
    if front is not None:
        means = pd.concat([means, front.assign(arm="front").drop(columns=["low", "high"])])
    pruned, own = means["arm"].map(about["ratio"]) > 0, means["arm"].map(about["granularity"])
    shown = pd.concat([means[~pruned | (own == name)].assign(granularity=name) for name in names])
    height = 0.9 + 0.06 * shown["arm"].nunique() + 1.5 * len(names)
    return panels(shown, "arm", arm_looks(records), BUDGET, ERROR, height=height, col="unit", row="granularity")


def _told_apart(records: pd.DataFrame) -> pd.DataFrame:
    """Records whose tasks have the event in their name where two tasks have one name."""
    twice = records.groupby("task")["event"].transform("nunique") > 1
    named = records["task"].str.replace("_", " ")
    return records.assign(task=named.mask(twice, named + ", event " + records["event"].astype(str)))


@in_style
def one_run(records: pd.DataFrame) -> Figure:
    """Test error against the budget, one curve per task of a run."""
    table = _told_apart(records)
    return panels(table, "task", palette(table["task"], "husl"), BUDGET, ONE_ERROR, height=3.4, columns=4, width=4.5)


@in_style
def error_by_task(records: pd.DataFrame) -> Figure:
    """Test error against the budget, one panel per task of the stream, for the arms of the first unit."""
    records = records[records["unit"] == records["unit"].iloc[0]]
    means = records.groupby(["event", "task", "arm", "budget"])["error_test"].mean().reset_index()
    budget = BUDGET._replace(label=BUDGET.label.replace(" (", "\n("))  # panels are narrow
    return panels(_told_apart(means), "arm", arm_looks(records), budget, ONE_ERROR, height=4, col="task", wrap=5)


@in_style
def improvement(records: pd.DataFrame, gains: pd.DataFrame, measures: dict[str, str] = ALL_GAINS) -> Figure:
    """What arms gain over dense at equal compute, with 95 % intervals, in panels per unit and measure.

    `measures` are those of analysis.GAINS to show, and what they are called.
    """
    tables = []
    for measure, called in measures.items():
        found = gains[[measure, f"{measure}_low", f"{measure}_high"]].set_axis(["gain", "low", "high"], axis=1)
        scaled = found * (1 if measure in POINTS else 100)
        tables.append(gains[["unit", "arm", "budget"]].join(scaled).assign(measure=called))
    curves = pd.concat(tables), "arm", arm_looks(records), BUDGET
    if len(measures) == 1:
        return panels(*curves, Axis("gain", called, zero=True), height=3.1, col="unit")
    height = 1 + 1.6 * gains["unit"].nunique()
    return panels(
        *curves, Axis("gain", "gained over dense", "col", zero=True), height=height, col="measure", row="unit"
    )


def _by_learner(table: pd.DataFrame, x: Axis, y: Axis) -> Figure:
    """A curve per learner in panels per unit and ratio."""
    shares = table["ratio"].map(lambda ratio: share_look(ratio).label)
    looks = palette(table["learner"], "colorblind")
    table = table.assign(network=table["unit"].str.split("@").str[0] + "\n" + shares)
    return panels(table, "learner", looks, x, y, height=2.7, columns=len(looks), col="network")


@in_style
def learners(table: pd.DataFrame) -> Figure:
    """Mean test error against the budget with 95 % intervals: a panel per network, a curve per learner."""
    return _by_learner(table, BUDGET, ERROR)


@in_style
def along_the_stream(table: pd.DataFrame) -> Figure:
    """Mean test error so far against the compute so far: one panel per network, one point per task."""
    x, y = Axis("spent", "compute so far (tera MACs)"), Axis("mean_error_so_far", "test error, mean so far")
    return _by_learner(table.assign(spent=table["cumulative_macs"] / 1e12), x, y)


@in_style
def best_ratio(by_ratio: pd.DataFrame) -> Figure:
    """Mean test error against the share of filters removed, one curve per budget, its minimum starred."""
    table = by_ratio.drop(columns=["low", "high"]).assign(panel=by_ratio["unit"] + "\n" + by_ratio["granularity"])
    least = table.loc[table.groupby(["budget", "panel"])["error"].idxmin()]
    table = pd.concat([table.assign(best=False), least.assign(best=True)])
    star = {"marker": "*", "pointsize": 10, "linewidth": 0, "edgecolor": "black", "edgewidth": 0.6}
    budgets = palette(sorted(set(table["budget"])), "viridis", "{:g} dense epochs")
    looks = {(False, budget): look for budget, look in budgets.items()}
    looks |= {(True, budget): Look(look.line | star) for budget, look in budgets.items()}
    x, y = Axis("ratio", "share of filters removed"), Axis("error", "test error, mean over tasks")
    figure = panels(table, ["best", "budget"], looks, x, y, height=2.9, columns=5, col="panel")
    figure.axes[0].xaxis.set_major_formatter("{x:.0%}")  # which the panels share
    return figure


@in_style
def asymptotes(means: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Mean errors against the budget, their power laws where those were fitted, and at the right the floors.

    A floor has its 95 % interval, and is drawn where it is identified.
    """
    largest, fits = means["budget"].max(), fits.assign(panel=fits["unit"] + "\n" + fits["granularity"])
    points = means[["unit", "arm", "budget", "error"]].merge(fits[["unit", "arm", "ratio", "panel"]])
    laws = fits.merge(pd.DataFrame({"budget": np.geomspace(FITTED_FROM, 2 * largest, 50)}), how="cross")
    laws["error"] = power_law(laws["budget"], laws["floor"], laws["scale"], laws["exponent"])
    floors = fits.assign(error=fits["floor"], budget=2.5 * largest * 1.15 ** (fits["ratio"].rank(method="dense") - 1))
    kinds = {"law": laws.drop(columns=["low", "high"]), "mean": points, "floor": floors[floors["identified"]]}
    table = pd.concat(kinds, names=["kind"]).reset_index("kind")
    looks = {}
    for ratio in sorted(set(fits["ratio"])):
        colour, label = share_look(ratio)
        looks["mean", ratio] = Look(colour | {"linewidth": 0}, label)
        looks["law", ratio] = Look(colour | {"linewidth": 0.8, "marker": ""})
        looks["floor", ratio] = Look(colour | {"linewidth": 0, "marker": "_", "pointsize": 7})
    y = Axis("error", "test error, mean over tasks\n(right: fitted floors)")
    return panels(table, ["kind", "ratio"], looks, BUDGET, y, height=2.8, columns=6, col="panel")


@in_style
def regret(table: pd.DataFrame, records: pd.DataFrame, named: Iterable[str]) -> Figure:
    """Mean regret against the budget: one panel per choice, the adviser a broad line among fixed choices.

    These are always an arm of `named`, and the best arm of each panel. Columns of the table: choice, policy,
    arm, budget, regret (one row per task).
    """
    advised = table["policy"] == "adviser"
    best = table[~advised].groupby(["arm", "choice"])["regret"].mean().unstack("choice").idxmin()
    table = table.assign(arm=table["arm"].mask(advised, "adviser"))
    shown = table[table["arm"].isin(["adviser", *named, *best])]
    means = shown.groupby(["choice", "arm", "budget"], sort=False)["regret"].mean().reset_index()
    y = Axis("regret", "error above the best in hindsight\n(mean over tasks)")
    return panels(means, "arm", arm_looks(records, "always {}"), BUDGET, y, height=3.2, col="choice")
