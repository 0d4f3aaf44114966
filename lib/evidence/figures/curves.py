"""Error and improvement against compute."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lib.evidence.figures.style import (
    BUDGET,
    PAGE_WIDTH,
    arms_table,
    budget_axis,
    label_of,
    legend_below,
    look_of,
)


def error_against_compute(records: pd.DataFrame, means: pd.DataFrame, front: pd.DataFrame) -> Figure:
    """Mean test error against the budget: a column a unit, a row a granularity, the front behind the arms."""
    arms, units = arms_table(records), list(means["unit"].unique())
    granularities = list(arms.loc[arms["ratio"] > 0, "granularity"].unique())
    size = PAGE_WIDTH, 1.1 + 1.75 * len(granularities)
    figure, grid = plt.subplots(
        len(granularities), len(units), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for row, granularity in zip(grid, granularities, strict=True):
        for axes, unit in zip(row, units, strict=True):
            of_front = front[front["unit"] == unit]
            axes.plot(
                of_front["budget"], of_front["error"], color="gold", linewidth=5, alpha=0.6, label="front"
            )
            of_unit = arms[arms["unit"] == unit]
            shown = of_unit[(of_unit["ratio"] == 0) | (of_unit["granularity"] == granularity)]
            for dodge, name in zip(np.geomspace(0.93, 1.07, len(shown)), shown.index, strict=True):
                curve, look = means[means["arm"] == name], look_of(arms.loc[name])
                places = curve["budget"] * dodge
                axes.plot(places, curve["error"], label=label_of(arms.loc[name]), **look)
                axes.vlines(
                    places, curve["low"], curve["high"], color=look["color"], linewidth=0.5, alpha=0.5
                )
            budget_axis(axes, np.sort(means["budget"].unique()))
            axes.set_title(f"{unit.replace('@', ' at ')} px, {granularity}")
        row[0].set_ylabel("test error\n(mean, 95 % interval)")
    legend_below(figure, list(grid.flat))
    return figure


def error_by_task(records: pd.DataFrame) -> Figure:
    """Test error against the budget, a panel a task of the stream, for the arms of the first unit."""
    of_unit = records[records["unit"] == records["unit"].iloc[0]]
    arms, tasks = arms_table(of_unit), of_unit.drop_duplicates("event").sort_values("event")
    budgets = np.sort(of_unit["budget"].unique())
    rows, columns = 2, -(-len(tasks) // 2)
    figure, grid = plt.subplots(rows, columns, figsize=(PAGE_WIDTH, 3.9), sharex=True, squeeze=False)
    for panel in grid.flat[len(tasks) :]:
        panel.set_visible(False)
    for panel, (_, task) in zip(grid.flat, tasks.iterrows(), strict=False):
        for name, arm in arms.iterrows():
            of_task = of_unit[(of_unit["arm"] == name) & (of_unit["event"] == task["event"])]
            curve = of_task.groupby("budget")["error_test"].mean()
            thin = {"markersize": 2, "linewidth": 0.9}
            panel.plot(curve.index, curve, label=label_of(arm), **look_of(arm) | thin)
        budget_axis(panel, budgets)
        panel.set_xlabel("")
        panel.set_title(task["task"].replace("_", " "))
    grid[-1, columns // 2].set_xlabel(BUDGET)
    figure.supylabel("test error", fontsize=8)
    legend_below(figure, list(grid.flat))
    return figure


def improvement(records: pd.DataFrame, gains: pd.DataFrame) -> Figure:
    """Gain in accuracy, cut in error, and points gained over dense at equal compute, a row a unit."""
    arms, units = arms_table(records), list(gains["unit"].unique())
    panels = {
        "accuracy_gain": ("accuracy gained (relative)", 1),
        "error_cut": ("error cut (relative)", 1),
        "points_gained": ("accuracy gained (points)", 100),
    }
    height = 1.2 + 1.5 * len(units)
    figure, grid = plt.subplots(len(units), 3, figsize=(PAGE_WIDTH, height), squeeze=False, sharey="col")
    for place, unit in enumerate(units):
        row = grid[place]
        of_unit = gains[gains["unit"] == unit]
        names = arms.index[arms.index.isin(of_unit["arm"])]
        for axes, (measure, (title, scale)) in zip(row, panels.items(), strict=True):
            axes.axhline(0, color="black", linewidth=0.8)
            for dodge, name in zip(np.geomspace(0.82, 1.22, len(names)), names, strict=True):
                _with_bars(
                    axes, of_unit[of_unit["arm"] == name], measure, f"{measure}_", dodge, arms.loc[name]
                )
            budget_axis(axes, np.sort(of_unit["budget"].unique()))
            if axes is not grid[-1, 1]:
                axes.set_xlabel("")
            if place == 0:
                axes.set_title(title)
            form = "{:+.0%}" if scale == 1 else "{:+g}"
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form.format(value)))
        row[0].set_ylabel(unit.replace("@", " at ") + " px")
    legend_below(figure, list(grid[:, 0]))
    return figure


def points_gained(records: pd.DataFrame, gains: pd.DataFrame) -> Figure:
    """Points of accuracy gained over dense at equal compute, a panel a unit."""
    arms, units = arms_table(records), list(gains["unit"].unique())
    figure, grid = plt.subplots(1, len(units), figsize=(PAGE_WIDTH, 3.4), squeeze=False, sharey=True)
    for axes, unit in zip(grid[0], units, strict=True):
        of_unit = gains[gains["unit"] == unit]
        names = arms.index[arms.index.isin(of_unit["arm"])]
        axes.axhline(0, color="black", linewidth=0.8)
        for dodge, name in zip(np.geomspace(0.82, 1.22, len(names)), names, strict=True):
            curve = of_unit[of_unit["arm"] == name]
            _with_bars(axes, curve, "points_gained", "points_gained_", dodge, arms.loc[name])
        budget_axis(axes, np.sort(of_unit["budget"].unique()))
        axes.set_title(unit.replace("@", " at ") + " px")
    grid[0, 0].set_ylabel("accuracy gained over dense (points)")
    legend_below(figure, list(grid[0]))
    return figure


def _with_bars(
    axes: plt.Axes,
    curve: pd.DataFrame,
    value: str,
    prefix: str,
    dodge: float,
    arm: pd.Series,
    label: str | None = None,
) -> None:
    """Draw an arm's `value` over the budget, with bars from `<prefix>low` to `<prefix>high`."""
    below, above = curve[value] - curve[f"{prefix}low"], curve[f"{prefix}high"] - curve[value]
    axes.errorbar(
        curve["budget"] * dodge,
        curve[value],
        yerr=[below, above],
        label=label or label_of(arm),
        elinewidth=0.6,
        **look_of(arm),
    )


def large_or_small(records: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Mean test error over the budget, a panel a unit: the network dense and pruned, and the alternatives."""
    arms, units = arms_table(records), list(records["unit"].unique())
    figure, grid = plt.subplots(1, len(units), figsize=(PAGE_WIDTH, 2.9), squeeze=False, sharey=True)
    for axes, unit in zip(grid[0], units, strict=True):
        of_unit = arms[arms["unit"] == unit]
        dodges = np.geomspace(0.95, 1.05, len(of_unit))
        for dodge, (name, arm) in zip(dodges, of_unit.iterrows(), strict=True):
            label = f"{arm['ratio']:.0%} removed" if arm["ratio"] else None
            if arm["learner"] != "independent" and label:
                label += f", {arm['learner']}"
            _with_bars(axes, means[means["arm"] == name], "error", "", dodge, arm, label)
        budget_axis(axes, np.sort(means["budget"].unique()))
        axes.set_title(unit.replace("@", " at ") + " px")
    grid[0, 0].set_ylabel("test error, mean\n(95 % interval over tasks and seeds)")
    legend_below(figure, list(grid[0]), columns=5, title=None)
    return figure
