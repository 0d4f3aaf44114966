"""Errors and what is gained over dense, against compute, by arm, ratio, learner or task."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lib.evidence.figures import style
from lib.evidence.figures.style import Curve, in_style
from lib.evidence.records import arms
from lib.evidence.scaling import FITTED_FROM, power_law

POINTS = {"points_gained": "accuracy gained (points)"}
ALL_GAINS = {"accuracy_gain": "accuracy gained (%)", "error_cut": "error cut (%)"} | POINTS


def _over_budgets(curves: Iterable[Curve], y: tuple[str, str], **how: Any) -> Figure:
    """Panels of curves over the budget."""
    curves = list(curves)
    figure = style.panels(curves, ("budget", style.BUDGET), y, **how)
    for axes in figure.axes:
        style.budget_axis(axes, pd.concat([curve.rows["budget"] for curve in curves if curve.label]))
    return figure


def _arm_curves(records: pd.DataFrame, table: pd.DataFrame) -> Iterator[Curve]:
    """A curve of every arm that a table has, as they are ordered."""
    for name, arm in arms(records).iterrows():
        if (table["arm"] == name).any():
            yield Curve(table[table["arm"] == name], style.look_of(arm), arm["label"])


@in_style
def errors(records: pd.DataFrame, means: pd.DataFrame, front: pd.DataFrame | None = None) -> Figure:
    """Mean test error against the budget with 95 % intervals: a column per unit, a row per granularity.

    `front` lies behind the arms, a broad line. Dense networks and other alternatives are in every row.
    """
    about = arms(records)
    names = list(about.loc[about["ratio"] > 0, "granularity"].unique()) or ["dense"]
    everywhere, own = (means["arm"].map(about[name]) for name in ("ratio", "granularity"))
    shown = pd.concat([means[(everywhere == 0) | (own == name)].assign(granularity=name) for name in names])
    shown["network"] = style.in_order(style.unit_names(shown["unit"]))
    curves = list(_arm_curves(records, shown))
    if front is not None:
        along = front.assign(network=style.unit_names(front["unit"]).astype(shown["network"].dtype))
        along = along.drop(columns=["low", "high"]).merge(pd.DataFrame({"granularity": names}), how="cross")
        curves.insert(0, Curve(along, {"color": "gold", "linewidth": 5, "marker": "", "alpha": 0.6}, "front"))
    height = 0.9 + 0.06 * len(curves) + 1.5 * len(names)
    y = "error", "test error\n(mean, 95 % interval)"
    return _over_budgets(curves, y, height=height, col="network", row="granularity")


def _told_apart(records: pd.DataFrame) -> pd.Series:
    """The tasks' names in the stream's order, with the event where two tasks have one name."""
    twice = records.groupby("task")["event"].transform("nunique") > 1
    named = records["task"].str.replace("_", " ")
    return style.in_order(named.mask(twice, named + ", event " + records["event"].astype(str)))


@in_style
def one_run(records: pd.DataFrame) -> Figure:
    """Test error against the budget, one curve per task of a run."""
    curves = style.coloured(records.assign(task=_told_apart(records)), "task", "husl")
    return _over_budgets(curves, ("error_test", "test error"), height=3.4, width=4.5, columns=4)


@in_style
def error_by_task(records: pd.DataFrame) -> Figure:
    """Test error against the budget, one panel per task of the stream, for the arms of the first unit."""
    records = records[records["unit"] == records["unit"].iloc[0]]
    means = records.groupby(["event", "task", "arm", "budget"])["error_test"].mean().reset_index()
    means["task"] = _told_apart(means)
    y = "error_test", "test error"
    figure = _over_budgets(_arm_curves(records, means), y, height=4, col="task", wrap=5)
    for axes in figure.axes:
        axes.set_xlabel(style.BUDGET.replace(" (", "\n("))
    return figure


@in_style
def improvement(records: pd.DataFrame, gains: pd.DataFrame, measures: dict[str, str] = ALL_GAINS) -> Figure:
    """What arms gain over dense at equal compute, with 95 % intervals, in panels per unit and measure.

    `measures` are those of records.GAINS to show, and what they are called.
    """
    tables = []
    for measure, called in measures.items():
        found = gains[[measure, f"{measure}_low", f"{measure}_high"]]
        found = found.set_axis(["gain", "low", "high"], axis=1)
        found = found if measure in POINTS else 100 * found
        tables.append(found.join(gains[["unit", "arm", "budget"]]).assign(measure=called))
    table = pd.concat(tables)
    table["network"] = style.in_order(style.unit_names(table["unit"]))
    how = {"col": "network", "height": 3.1}
    if len(measures) > 1:
        how = {"col": "measure", "row": "network", "share": (True, "col")}
        how["height"] = 1 + 1.6 * gains["unit"].nunique()
    y = "gain", "gained over dense" if len(measures) > 1 else called
    return _over_budgets(_arm_curves(records, table), y, zero=True, **how)


def _by_network(table: pd.DataFrame) -> tuple[list[Curve], dict]:
    """A curve per learner, and how their panels are laid out: one per unit and ratio."""
    shares = table["ratio"].map(lambda ratio: f"{ratio:.0%} removed" if ratio else "dense")
    table = table.assign(network=style.in_order(table["unit"].str.split("@").str[0] + "\n" + shares))
    curves = style.coloured(table, "learner", "colorblind")
    return curves, {"height": 2.7, "columns": len(curves), "col": "network"}


@in_style
def learners(table: pd.DataFrame) -> Figure:
    """Mean test error against the budget with 95 % intervals: a panel per network, a curve per learner."""
    curves, how = _by_network(table)
    return _over_budgets(curves, ("error", "test error\n(mean, 95 % interval)"), **how)


@in_style
def along_the_stream(table: pd.DataFrame) -> Figure:
    """Mean test error so far against the compute so far: one panel per network, one point per task."""
    curves, how = _by_network(table.assign(spent=table["cumulative_macs"] / 1e12))
    x = "spent", "compute so far (tera MACs)"
    return style.panels(curves, x, ("mean_error_so_far", "test error, mean so far"), **how)


def _panel(table: pd.DataFrame) -> pd.DataFrame:
    """A table with a column that names its unit and granularity."""
    return table.assign(panel=style.in_order(style.unit_names(table["unit"]) + "\n" + table["granularity"]))


@in_style
def best_ratio(by_ratio: pd.DataFrame) -> Figure:
    """Mean test error against the share of filters removed, one curve per budget, its minimum starred."""
    table = _panel(by_ratio).drop(columns=["low", "high"]).sort_values("budget", kind="stable")
    curves = style.coloured(table, "budget", "viridis", "{:g} dense epochs")
    star = {"marker": "*", "pointsize": 10, "linewidth": 0, "edgecolor": "black", "edgewidth": 0.6}
    for rows, look, _ in list(curves):
        least = rows.groupby("panel", observed=True)["error"].idxmin()
        curves.append(Curve(rows.loc[least], look | star))
    x = "ratio", "share of filters removed"
    figure = style.panels(curves, x, ("error", "test error, mean over tasks"), height=2.9, columns=5, col="panel")
    for axes in figure.axes:
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


@in_style
def asymptotes(means: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Mean errors against the budget, their power laws where those were fitted, and at the right the floors.

    A floor has its 95 % interval, and is drawn where it is identified.
    """
    largest, fits = means["budget"].max(), _panel(fits)
    points = means[["unit", "arm", "budget", "error"]].merge(fits[["unit", "arm", "ratio", "panel"]])
    laws = fits.merge(pd.DataFrame({"budget": np.geomspace(FITTED_FROM, 2 * largest, 50)}), how="cross")
    laws["error"] = power_law(laws["budget"], laws["floor"], laws["scale"], laws["exponent"])
    laws = laws.drop(columns=["low", "high"])
    floors = fits[fits["identified"]].rename(columns={"floor": "error"})
    curves = []
    for place, ratio in enumerate(np.sort(fits["ratio"].unique())):
        colour, label = style.share_look(ratio)
        curves.append(Curve(points[points["ratio"] == ratio], colour | {"linewidth": 0}, label))
        curves.append(Curve(laws[laws["ratio"] == ratio], colour | {"linewidth": 0.8, "marker": ""}))
        floor = floors[floors["ratio"] == ratio].assign(budget=2.5 * largest * 1.15**place)
        curves.append(Curve(floor, colour | {"linewidth": 0, "marker": "_", "pointsize": 7}))
    y = "error", "test error, mean over tasks\n(right: fitted floors)"
    return _over_budgets(curves, y, height=2.8, columns=6, col="panel")


@in_style
def regret(table: pd.DataFrame, records: pd.DataFrame, named: Iterable[str]) -> Figure:
    """Mean regret against the budget: one panel per choice, the adviser a broad line among fixed choices.

    These are always an arm of `named`, and the best arm of each panel. Columns of the table: choice, policy,
    arm, budget, regret (one row per task).
    """
    table = table.assign(choice=style.in_order(table["choice"]))
    advised = table["policy"] == "adviser"
    best = table[~advised].groupby(["arm", "choice"], observed=True)["regret"].mean().unstack("choice").idxmin()
    fixed = table[~advised & table["arm"].isin([*named, *best])]
    always = _arm_curves(records, _mean_regret(fixed, "arm"))
    curves = [curve._replace(label=f"always {curve.label}") for curve in always]
    broad = {"color": "tab:cyan", "linewidth": 3.5, "alpha": 0.8, "marker": ""}
    curves.append(Curve(_mean_regret(table[advised], "policy"), broad, "adviser"))
    y = "regret", "error above the best in hindsight\n(mean over tasks)"
    return _over_budgets(curves, y, height=3.2, col="choice")


def _mean_regret(table: pd.DataFrame, by: str) -> pd.DataFrame:
    return table.groupby(["choice", by, "budget"], observed=True)["regret"].mean().reset_index()
