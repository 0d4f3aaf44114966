"""What pruning does to a network, before any training."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lib.evidence.figures.style import COLUMN_WIDTH, PAGE_WIDTH, RATIO_COLOURS, legend_below


def filters_and_macs(table: pd.DataFrame) -> Figure:
    """Filters and MACs of every site before and after, one colour a ratio (`table` has a column ratio)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.8))
    first = table[table["ratio"] == table["ratio"].min()]
    places = np.arange(len(first))
    for axes, before, after, scale, label in (
        (left, "before", "after", 1, "filters of the site"),
        (right, "macs_before", "macs_after", 1e6, "million MACs of the site, one image"),
    ):
        axes.step(places, first[before] / scale, where="mid", color="black", label="dense")
        for ratio, of_ratio in table.groupby("ratio"):
            axes.step(
                places,
                of_ratio[after] / scale,
                where="mid",
                color=RATIO_COLOURS(ratio),
                label=f"{ratio:.0%} removed",
            )
        axes.set_xlabel("site, from the image to the representation")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.set_xticks(places[::2], (places + 1)[::2])
    left.legend(frameon=False)
    return figure


def fidelity_against_ratio(table: pd.DataFrame) -> Figure:
    """Zero-shot fidelity against the ratio: a row a backbone, criteria on the left, repairs on the right."""
    names = list(table["backbone"].unique())
    titles = {"criterion": "criteria, no repair", "repair": "repairs, criterion activation"}
    height = 1.2 + 2.1 * len(names)
    figure, grid = plt.subplots(
        len(names), 2, figsize=(PAGE_WIDTH, height), sharex=True, sharey=True, squeeze=False
    )
    for row, name in zip(grid, names, strict=True):
        for axes, (varied, title) in zip(row, titles.items(), strict=True):
            part = table[(table["backbone"] == name) & (table["varied"] == varied)]
            curves = list(part.groupby("name", sort=False))
            for colour, (label, curve) in zip(sns.color_palette("deep", len(curves)), curves, strict=True):
                axes.plot(
                    curve["ratio"], curve["fidelity"], marker="o", color=colour, label=label.replace("_", " ")
                )
            axes.set_title(f"{name}: {title}")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    for axes, side, title in zip(grid[-1], ("left", "right"), ("criterion", "repair"), strict=True):
        axes.set_xlabel("share of filters removed")
        figure.legend(
            *axes.get_legend_handles_labels(),
            frameon=False,
            ncols=3,
            loc=f"outside lower {side}",
            title=title,
            title_fontsize=8,
        )
    figure.supylabel("mean cosine with the dense representation", fontsize=8)
    return figure


def time_against_macs(table: pd.DataFrame) -> Figure:
    """Share of the dense network's time against the share of its MACs, a panel a backbone.

    Colours tell the work; a dashed curve is of whole channels.
    """
    names, works = list(table["backbone"].unique()), list(table["work"].unique())
    figure, grid = plt.subplots(1, len(names), figsize=(COLUMN_WIDTH, 2.5), sharey=True, squeeze=False)
    colours = dict(zip(works, sns.color_palette("colorblind", len(works)), strict=True))
    for axes, name in zip(grid[0], names, strict=True):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        curves = table[table["backbone"] == name].groupby(["work", "granularity"], sort=False)
        for (work, granularity), curve in curves:
            axes.plot(
                curve["share_of_macs"],
                curve["share_of_time"],
                marker="o",
                markersize=3,
                color=colours[work],
                linestyle="--" if granularity == "channel" else "-",
                label=f"{work}, {granularity}",
            )
        axes.set_xlabel("share of its MACs")
        axes.set_title(name)
    grid[0, 0].set_ylabel("share of the dense network's\nmeasured time")
    legend_below(figure, list(grid[0]), columns=2, title=None)
    return figure
