"""What pruning does to a network before any training, what that takes, and what is learnt."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lib.evidence.figures import style
from lib.evidence.figures.style import Curve, in_style


@in_style
def filters_and_macs(table: pd.DataFrame) -> Figure:
    """Filters and million MACs of every site, before and after, one colour per ratio.

    `table` is that of plans, with a column `ratio`.
    """
    of_ratios = {0.0: table[table["ratio"] == table["ratio"].min()], **dict(list(table.groupby("ratio")))}
    curves = []
    for ratio, sites in of_ratios.items():
        when, at = "after" if ratio else "before", np.arange(1, len(sites) + 1)
        filters = {"value": sites[when], "shown": "filters", "site": at}
        macs = {"value": sites[f"macs_{when}"] / 1e6, "shown": "million MACs, one image", "site": at}
        curves.append(Curve(pd.concat([pd.DataFrame(filters), pd.DataFrame(macs)]), *style.share_look(ratio)))
    x = "site", "site, from image to representation"
    figure = style.panels(curves, x, ("value", ""), height=2.7, columns=6, share=(True, False), col="shown")
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    return figure


@in_style
def fidelity_against_ratio(table: pd.DataFrame) -> Figure:
    """Zero-shot fidelity by ratio: a row per backbone, criteria on the left, repairs on the right."""
    backbones, varied = list(table["backbone"].unique()), list(table["varied"].unique())
    figure = Figure(figsize=(style.PAGE_WIDTH, 0.5 + 1.9 * len(backbones)), layout="constrained")
    grid = figure.subplots(len(backbones), len(varied), squeeze=False)
    for (backbone, name), part in table.groupby(["backbone", "varied"], sort=False):
        cells = part.pivot_table("fidelity", "name", "ratio", sort=False).round(1) + 0.0
        cells = cells.set_axis(cells.index.str.replace("_", " ")).rename(columns="{:.0%}".format)
        axes = grid[backbones.index(backbone), varied.index(name)]
        sns.heatmap(cells, vmin=0, vmax=1, cmap="viridis", annot=True, fmt=".1f", cbar=False, ax=axes)
        axes.set(title=f"{backbone}: {name}", xlabel="share of filters removed", ylabel="")
    return figure


@in_style
def time_against_macs(table: pd.DataFrame) -> Figure:
    """Share of the dense network's time against the share of its MACs, one panel per backbone.

    Colours tell the work; a dashed curve is of whole channels.
    """
    curves = [
        Curve(rows, look | {"linestyle": "--" if granularity == "channel" else "-"}, f"{work}, {granularity}")
        for of_work, look, work in style.coloured(table, "work", "colorblind")
        for granularity, rows in of_work.groupby("granularity", sort=False)
    ]
    x = "share_of_macs", "share of its MACs"
    y = "share_of_time", "share of the dense network's\nmeasured time"
    width = style.COLUMN_WIDTH
    figure = style.panels(curves, x, y, height=2.6, width=width, columns=2, col="backbone")
    for axes in figure.axes:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, zorder=0)
    return figure


@in_style
def granularity_by_distance(table: pd.DataFrame) -> Figure:
    """Points by which `filter` is ahead of `channel` against a task's distance to the pretraining images.

    A row of panels per unit, a column per ratio, a colour per budget. Columns of the table: unit, task,
    distance, ratio, budget, points.
    """
    table = table.assign(network=style.in_order(style.unit_names(table["unit"]))).sort_values("ratio", kind="stable")
    table["removed"] = style.in_order(table["ratio"].map("{:.0%} removed".format))
    table = table.sort_values("budget", kind="stable")
    curves = style.coloured(table, "budget", "viridis", "{:g} dense epochs", linewidth=0, pointsize=3)
    x, y = ("distance", "a task's distance (nats)"), ("points", "filter minus channel\n(points of accuracy)")
    how = {"height": 0.8 + 1.6 * table["unit"].nunique(), "columns": 5, "share": ("row", True), "zero": True}
    return style.panels(curves, x, y, col="removed", row="network", **how)


@in_style
def contact_sheet(names: Sequence[str], images: Sequence[np.ndarray]) -> Figure:
    """What the tasks look like: a row of pictures per task, in the stream's order from top to bottom.

    `names` are what the rows are called, `images` uint8 (N, H, W, 3) each.
    """
    count = min(len(row) for row in images)
    size = style.PAGE_WIDTH, 0.85 * style.PAGE_WIDTH / count * len(images)
    narrow = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure = Figure(figsize=size, layout=narrow)
    grid = figure.subplots(len(images), count, squeeze=False)
    for row, name, pictures in zip(grid, names, images, strict=True):
        for axes, pixels in zip(row, pictures, strict=False):
            axes.imshow(pixels)
            axes.set(xticks=[], yticks=[], frame_on=False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
