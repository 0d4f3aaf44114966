"""Pictures that one notebook each shows: of pruned networks (01, 05, 06), of tasks (07), of their distances (11)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lib.evidence.style import COLUMN_WIDTH, PAGE_WIDTH, Axis, Look, in_style, palette, panels, share_look


@in_style
def filters_and_macs(table: pd.DataFrame) -> Figure:
    """Filters and million MACs of every site, before and after, one colour per ratio.

    `table` is that of plans, with a column `ratio`.
    """
    dense = table[table["ratio"] == table["ratio"].min()]
    sites = pd.concat([dense.assign(ratio=0.0, after=dense["before"], macs_after=dense["macs_before"]), table])
    sites = sites.assign(site=sites.groupby("ratio").cumcount() + 1, macs_after=sites["macs_after"] / 1e6)
    sites = sites.rename(columns={"after": "filters", "macs_after": "million MACs, one image"})
    sites = sites.melt(["ratio", "site"], ["filters", "million MACs, one image"], "shown")
    looks = {ratio: share_look(ratio) for ratio in sorted(set(sites["ratio"]))}
    x, y = Axis("site", "site, from image to representation"), Axis("value", "", shared=False)
    figure = panels(sites, "ratio", looks, x, y, height=2.7, columns=6, col="shown")
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    return figure


@in_style
def fidelity_against_ratio(table: pd.DataFrame) -> Figure:
    """Zero-shot fidelity by ratio: a row per backbone, criteria on the left, repairs on the right."""
    backbones, varied = table["backbone"].unique(), table["varied"].unique()
    figure = Figure(figsize=(PAGE_WIDTH, 0.5 + 1.9 * len(backbones)), layout="constrained")
    grid = pd.DataFrame(figure.subplots(len(backbones), len(varied), squeeze=False), backbones, varied)
    for (backbone, name), part in table.groupby(["backbone", "varied"], sort=False):
        cells = part.pivot_table("fidelity", "name", "ratio", sort=False).round(1) + 0.0
        cells = cells.set_axis(cells.index.str.replace("_", " ")).rename(columns="{:.0%}".format)
        axes = grid.loc[backbone, name]
        sns.heatmap(cells, vmin=0, vmax=1, cmap="viridis", annot=True, fmt=".1f", cbar=False, ax=axes)
        axes.set(title=f"{backbone}: {name}", xlabel="share of filters removed", ylabel="")
    return figure


@in_style
def time_against_macs(table: pd.DataFrame) -> Figure:
    """Share of the dense network's time against the share of its MACs, one panel per backbone.

    Colours tell the work; a dashed curve is of whole channels.
    """
    looks = {
        (work, name): Look(look.line | {"linestyle": dashes}, f"{work}, {name}")
        for work, look in palette(table["work"], "colorblind").items()
        for name, dashes in (("filter", "-"), ("channel", "--"))
    }
    x, y = (
        Axis("share_of_macs", "share of its MACs"),
        Axis("share_of_time", "share of the dense network's\nmeasured time"),
    )
    figure = panels(
        table, ["work", "granularity"], looks, x, y, height=2.6, columns=2, col="backbone", width=COLUMN_WIDTH
    )
    for axes in figure.axes:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, zorder=0)
    return figure


@in_style
def granularity_by_distance(table: pd.DataFrame) -> Figure:
    """Points by which `filter` is ahead of `channel` against a task's distance to the pretraining images.

    A row of panels per unit, a column per ratio, a colour per budget. Columns of the table: unit, task,
    distance, ratio, budget, points.
    """
    table = table.assign(removed=table["ratio"].map("{:.0%} removed".format)).sort_values("ratio", kind="stable")
    looks = palette(sorted(set(table["budget"])), "viridis", "{:g} dense epochs", linewidth=0, pointsize=3)
    x = Axis("distance", "a task's distance (nats)", "row")
    y = Axis("points", "filter minus channel\n(points of accuracy)", zero=True)
    return panels(
        table, "budget", looks, x, y, height=0.8 + 1.6 * table["unit"].nunique(), columns=5, col="removed", row="unit"
    )


@in_style
def contact_sheet(names: Sequence[str], images: Sequence[np.ndarray]) -> Figure:
    """What the tasks look like: a row of pictures per task, in the stream's order from top to bottom.

    `names` are what the rows are called, `images` uint8 (N, H, W, 3) each.
    """
    count = min(len(row) for row in images)
    narrow = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure = Figure(figsize=(PAGE_WIDTH, 0.85 * PAGE_WIDTH / count * len(images)), layout=narrow)
    grid = figure.subplots(
        len(images), count, squeeze=False, subplot_kw={"xticks": [], "yticks": [], "frame_on": False}
    )
    for row, name, pictures in zip(grid, names, images, strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, pixels in zip(row, pictures, strict=False):
            axes.imshow(pixels)
    return figure
