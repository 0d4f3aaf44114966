"""What a stream holds."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.evidence.figures.style import PAGE_WIDTH


def stream_overview(tasks: pd.DataFrame) -> Figure:
    """Years, domains and sizes: a row a task, the newest on top (columns name, year, domain, train, test)."""
    domains = list(tasks["domain"].unique())
    colours = dict(zip(domains, sns.color_palette("colorblind", len(domains)), strict=True))
    figure, (years, sizes) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.4), sharey=True)
    places = np.arange(len(tasks))
    years.hlines(places, tasks["year"].min() - 1, tasks["year"], color="lightgrey", linewidth=0.8)
    for domain, of_domain in tasks.assign(place=places).groupby("domain", sort=False):
        years.scatter(of_domain["year"], of_domain["place"], color=colours[domain], label=domain, zorder=2)
    years.set_yticks(places, tasks["name"].str.replace("_", " "))
    years.set_xlabel("year")
    years.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    sizes.barh(places, tasks["train"], color="0.35", label="training images")
    sizes.barh(places, tasks["test"], left=tasks["train"], color="0.75", label="test images")
    sizes.set_xlabel("images")
    figure.legend(
        loc="outside lower left", ncols=3, frameon=False, handles=years.get_legend_handles_labels()[0]
    )
    sizes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def contact_sheet(images: dict[str, np.ndarray]) -> Figure:
    """A row of pictures a task: `images` maps its name to uint8 (N, H, W, 3)."""
    count = min(len(row) for row in images.values())
    figure, grid = plt.subplots(
        len(images),
        count,
        figsize=(PAGE_WIDTH, PAGE_WIDTH / count * len(images)),
        squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.05},
    )
    for row, (name, pictures) in zip(grid, images.items(), strict=True):
        for axes, picture in zip(row, pictures, strict=False):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            sns.despine(ax=axes, left=True, bottom=True)
        row[0].set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center")
    return figure
