"""Learners at equal compute."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.evidence.figures.style import NARROW_BUDGET, PAGE_WIDTH, budget_axis, legend_below


def learners(table: pd.DataFrame) -> Figure:
    """Mean test error over tasks against the budget, a panel a network and a curve a learner."""
    dodges = np.geomspace(0.94, 1.06, table["learner"].nunique())

    def draw(axes: plt.Axes, place: int, curve: pd.DataFrame, colour: tuple, name: str) -> None:
        places = curve["budget"] * dodges[place]
        axes.plot(places, curve["error"], marker="o", color=colour, label=name)
        axes.vlines(places, curve["low"], curve["high"], color=colour, linewidth=0.5, alpha=0.5)

    figure, panels = _learners_by_network(table, 2.7, draw)
    for axes in panels:
        budget_axis(axes, np.sort(table["budget"].unique()), NARROW_BUDGET)
    panels[0].set_ylabel("test error, mean\n(95 % interval over tasks and seeds)")
    return figure


def along_the_stream(table: pd.DataFrame) -> Figure:
    """Mean test error so far against the compute spent so far, a panel a network, a point a task."""

    def draw(axes: plt.Axes, _: int, curve: pd.DataFrame, colour: tuple, name: str) -> None:
        spent = curve["cumulative_macs"] / 1e12
        axes.plot(spent, curve["mean_error_so_far"], marker=".", color=colour, label=name)

    figure, panels = _learners_by_network(table, 2.8, draw)
    for axes in panels:
        axes.set_xlabel("compute so far (tera MACs)")
    panels[0].set_ylabel("test error, mean so far")
    return figure


def _learners_by_network(
    table: pd.DataFrame, height: float, draw: Callable[..., None]
) -> tuple[Figure, list[plt.Axes]]:
    """A panel a unit and ratio; `draw` gets the axes, place, rows, colour and name of each learner in it."""
    networks = list(table.groupby(["unit", "ratio"], sort=False))
    names = list(table["learner"].unique())
    colours = sns.color_palette("colorblind", len(names))
    figure, grid = plt.subplots(1, len(networks), figsize=(PAGE_WIDTH, height), sharey=True, squeeze=False)
    panels = list(grid[0])
    for axes, ((unit, ratio), of_network) in zip(panels, networks, strict=True):
        for place, name in enumerate(names):
            curve = of_network[of_network["learner"] == name]
            if len(curve):
                draw(axes, place, curve, colours[place], name)
        share = "dense" if ratio == 0 else f"{ratio:.0%} removed"
        axes.set_title(f"{unit.split('@')[0]}\n{share}", fontsize=7)
    legend_below(figure, panels, columns=len(names), title=None)
    return figure, panels
