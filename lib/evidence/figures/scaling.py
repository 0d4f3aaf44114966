"""The best ratio at each budget, asymptotes, nearness to the pretraining images, and regret."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lib.evidence.figures.style import (
    NARROW_BUDGET,
    PAGE_WIDTH,
    RATIO_COLOURS,
    arms_table,
    budget_axis,
    label_of,
    legend_below,
    look_of,
    panels_of,
)
from lib.evidence.scaling import FITTED_FROM, power_law

REMOVED = "share of filters removed"


def best_ratio(by_ratio: pd.DataFrame, best: pd.DataFrame) -> Figure:
    """Above, error against ratio, a curve a budget, its minimum ringed; below, the best ratio by budget."""
    budgets = np.sort(by_ratio["budget"].unique())
    colours = dict(zip(budgets, sns.color_palette("viridis", len(budgets)), strict=True))
    panels = list(zip(panels_of(by_ratio), panels_of(best), strict=True))
    figure, grid = plt.subplots(2, len(panels), figsize=(PAGE_WIDTH, 4.0), squeeze=False, sharey="row")
    for (above, below), ((title, curves), (_, of_best)) in zip(grid.T, panels, strict=True):
        for budget, curve in curves.groupby("budget"):
            label = f"{budget:g} dense epochs"
            above.plot(curve["ratio"], curve["error"], marker="o", color=colours[budget], label=label)
            least = curve.loc[curve["error"].idxmin()]
            ring = {"color": "none", "markeredgecolor": "black", "markersize": 8}
            above.plot(least["ratio"], least["error"], "o", **ring)
        above.set_title(title, fontsize=7)
        above.set_xlabel(REMOVED)
        below.errorbar(
            of_best["budget"],
            of_best["ratio"],
            color="black",
            marker="o",
            elinewidth=0.6,
            yerr=[of_best["ratio"] - of_best["low"], of_best["high"] - of_best["ratio"]],
        )
        budget_axis(below, budgets, NARROW_BUDGET)
        above.xaxis.set_major_formatter(PercentFormatter(1))
        below.yaxis.set_major_formatter(PercentFormatter(1))
    grid[0, 0].set_ylabel("test error, mean over tasks")
    grid[1, 0].set_ylabel("best share removed\n(95 % of draws)")
    legend_below(figure, list(grid[0]), columns=min(len(budgets), 5), title=None)
    return figure


def asymptotes(means: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Mean errors, their power laws where those were fitted, and on the right the floors that are known."""
    panels = panels_of(fits)
    figure, grid = plt.subplots(1, len(panels), figsize=(PAGE_WIDTH, 2.7), sharey=True, squeeze=False)
    for axes, (title, of_panel) in zip(grid[0], panels, strict=True):
        budgets = np.sort(means["budget"].unique())
        along = np.geomspace(FITTED_FROM, budgets[-1] * 2, 50)
        for place, fit in enumerate(of_panel.sort_values("ratio").itertuples()):
            colour = "black" if fit.ratio == 0 else RATIO_COLOURS(fit.ratio)
            points = means[(means["unit"] == fit.unit) & (means["arm"] == fit.arm)]
            label = "dense" if fit.ratio == 0 else f"{fit.ratio:.0%} removed"
            axes.plot(points["budget"], points["error"], "o", color=colour, label=label)
            law = power_law(along, fit.floor, fit.scale, fit.exponent)
            axes.plot(along, law, color=colour, linewidth=0.8)
            if fit.identified:
                where = budgets[-1] * 2.5 * 1.15**place
                axes.plot(where, fit.floor, "_", color=colour, markersize=7)
                axes.vlines(where, fit.low, fit.high, color=colour, linewidth=0.8)
        budget_axis(axes, budgets, NARROW_BUDGET)
        axes.set_title(title, fontsize=7)
    grid[0, 0].set_ylabel("test error, mean over tasks\n(right: fitted floors)")
    legend_below(figure, list(grid[0]), columns=6, title=None)
    return figure


def granularity_by_distance(table: pd.DataFrame) -> Figure:
    """Points that `filter` is ahead of `channel` against a task's distance: a row a unit, a panel a ratio.

    Columns of the table: unit, task, distance, ratio, budget, points.
    """
    units, ratios = list(table["unit"].unique()), np.sort(table["ratio"].unique())
    budgets = np.sort(table["budget"].unique())
    colours = dict(zip(budgets, sns.color_palette("viridis", len(budgets)), strict=True))
    figure, grid = plt.subplots(
        len(units),
        len(ratios),
        figsize=(PAGE_WIDTH, 0.6 + 1.5 * len(units)),
        sharex="row",
        sharey=True,
        squeeze=False,
    )
    for row, unit in zip(grid, units, strict=True):
        for axes, ratio in zip(row, ratios, strict=True):
            shown = table[(table["unit"] == unit) & (table["ratio"] == ratio)]
            axes.set_visible(len(shown) > 0)
            axes.axhline(0, color="black", linewidth=0.8)
            for budget, points in shown.groupby("budget"):
                axes.plot(
                    points["distance"],
                    points["points"],
                    "o",
                    color=colours[budget],
                    markersize=3,
                    label=f"{budget:g} dense epochs",
                )
            axes.set_title(f"{unit.split('@')[0]}\n{ratio:.0%} removed", fontsize=7)
        row[0].set_ylabel("filter minus channel\n(points of accuracy)")
    for axes in grid[-1]:
        axes.set_xlabel("a task's distance (nats)")
    legend_below(figure, list(grid[0]), columns=len(budgets), title=None)
    return figure


def regret(table: pd.DataFrame, records: pd.DataFrame, named: list[str]) -> Figure:
    """Mean regret against the budget: a panel a choice, the adviser a broad line.

    Always choosing an arm of `named`, or the best arm of a panel, looks like the arm; the others are grey.
    Columns of the table: choice, policy, arm, budget, regret (a row a task).
    """
    choices = list(table["choice"].unique())
    fixed = table[table["policy"] != "adviser"]
    overall = fixed.groupby(["choice", "arm"], sort=False)["regret"].mean()
    named = {*named, *(overall[choice].idxmin() for choice in choices)}
    arms = arms_table(records)
    figure, grid = plt.subplots(1, len(choices), figsize=(PAGE_WIDTH, 2.9), sharey=True, squeeze=False)
    for axes, choice in zip(grid[0], choices, strict=True):
        means = fixed[fixed["choice"] == choice].pivot_table("regret", "budget", "arm", sort=False)
        for arm in arms.index.intersection(means.columns):
            look = {"color": "0.8", "linewidth": 0.7, "zorder": 1, "label": "always another"}
            if arm in named:
                look = look_of(arms.loc[arm]) | {"label": f"always {label_of(arms.loc[arm])}"}
            axes.plot(means.index, means[arm], **look)
        advised = table[(table["choice"] == choice) & (table["policy"] == "adviser")]
        along = advised.groupby("budget")["regret"].mean()
        axes.plot(along.index, along, color="tab:cyan", linewidth=3.5, alpha=0.8, label="adviser")
        budget_axis(axes, along.index.to_numpy(), NARROW_BUDGET)
        axes.set_title(choice, fontsize=7)
    grid[0, 0].set_ylabel("error above the best in hindsight\n(mean over tasks)")
    legend_below(figure, list(grid[0]), columns=3, title=None)
    return figure
