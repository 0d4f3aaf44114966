"""Pictures that one notebook each shows: of pruned networks (01, 05, 06) and of tasks (07)."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from style import COLUMN_WIDTH, PAGE_WIDTH, colour_of, in_style, label_ends, panels


@in_style
def filters_and_macs(table: pd.DataFrame, message: str) -> Figure:
    """Filters and million MACs of every site, from the image to the representation: dense grey, what is left colour.

    `table` is that of plans, with a column `ratio`.
    """
    figure, grid = panels(2, 2.5, message)
    ratios = sorted(table["ratio"].unique())
    colours = mpl.colormaps["autumn"](np.linspace(0.75, 0, len(ratios)))
    shown = ("", "filters of a site", 1), ("macs_", "million MACs of a site, one image", 1e6)
    for axes, (prefix, called, unit) in zip(grid, shown, strict=True):
        dense = table[table["ratio"] == ratios[0]]
        edges = np.arange(len(dense) + 1) + 0.5
        axes.stairs(dense[f"{prefix}before"] / unit, edges, fill=True, color="0.88", label="dense")
        for ratio, colour in zip(ratios, colours, strict=True):
            left = table.loc[table["ratio"] == ratio, f"{prefix}after"] / unit
            axes.stairs(left, edges, baseline=None, color=colour, linewidth=1.4, label=f"{ratio:.0%} removed")
        axes.set(xlabel="site, from image to representation", title=called)
    tight = {"ncols": len(ratios) + 1, "handlelength": 1.2, "columnspacing": 1.2}
    figure.legend(*grid[1].get_legend_handles_labels(), loc="outside lower center", **tight)
    return figure


@in_style
def fidelity_against_ratio(table: pd.DataFrame, message: str) -> Figure:
    """Zero-shot fidelity by the share removed: a row of panels per network, criteria on the left, repairs on the right.

    Columns of the table: backbone, varied, name, ratio, fidelity.
    """
    backbones, varied = table["backbone"].unique(), table["varied"].unique()
    figure = Figure(figsize=(PAGE_WIDTH, 0.5 + 1.9 * len(backbones)), layout="constrained")
    figure.suptitle(message, x=0.01, ha="left")
    grid = pd.DataFrame(figure.subplots(len(backbones), len(varied), squeeze=False), backbones, varied)
    for (backbone, name), part in table.groupby(["backbone", "varied"], sort=False):
        cells, axes = part.pivot_table("fidelity", "name", "ratio", sort=False), grid.loc[backbone, name]
        axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (row, column), cosine in np.ndenumerate(cells.to_numpy().round(1) + 0.0):
            axes.text(
                column, row, f"{cosine:.1f}", ha="center", va="center", color="black" if cosine > 0.6 else "white"
            )
        axes.set_xticks(range(cells.shape[1]), [f"{ratio:.0%}" for ratio in cells.columns])
        axes.set_yticks(range(cells.shape[0]), cells.index)
        axes.set(title=f"{backbone}: {name}", xlabel="share removed")
        axes.tick_params(length=0)
    return figure


@in_style
def time_against_macs(table: pd.DataFrame, message: str) -> Figure:
    """Measured time of a training step against its MACs, both as a share of the dense network's, a point per network.

    Columns of the table: network, family, share_of_macs, share_of_time. On the diagonal MACs are worth their time.
    """
    figure, (axes,) = panels(1, 2.9, message, COLUMN_WIDTH + 0.9)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    for family, line in table.groupby("family", sort=False):
        axes.plot(line["share_of_macs"], line["share_of_time"], "o", color=colour_of(family))
    axes.set(xlim=(0, 1.25), ylim=(0, 1.1), xlabel="share of the dense network's MACs", ylabel="share of its time")
    above = table["share_of_time"] > table["share_of_macs"] + 0.02
    for rows, side in ((table[above], -1), (table[~above], 1)):  # names keep off the diagonal
        places = zip(rows["share_of_macs"], rows["share_of_time"], rows["family"].map(colour_of), strict=True)
        label_ends(axes, dict(zip(rows["network"], places, strict=True)), side=side)
    return figure


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
