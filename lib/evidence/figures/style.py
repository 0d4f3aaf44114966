"""One style for all figures: sizes, colours, markers, labels, and how a figure is saved."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lib.common.files import atomic_path, write_json
from lib.common.paths import FIGURES
from lib.common.provenance import provenance
from lib.evidence.records import network_of

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.9  # inches, of a two-column page
# Pruning ratio 0..1, light to dark, without the yellow that is the front's.
RATIO_COLOURS = ListedColormap(mpl.colormaps["plasma_r"](np.linspace(0.15, 0.95, 256)))
BUDGET = "compute budget (dense epochs of MACs)"
NARROW_BUDGET = "budget (dense epochs)"  # where panels are narrow
LEGEND = "share removed, criterion, scope if not uniform + repair; fine-tuned, or as named"
_MARKERS = {
    "activation": "o",
    "l1": "s",
    "l2": "D",
    "random": "X",
    "activation_images": "*",
    "bn_scale": "p",
    "fpgm": "h",
    "lamp": "d",
}


def use_style() -> None:
    """8-point type, thin axes, no box."""
    sns.set_theme(style="ticks", context="paper")
    mpl.rcParams.update(
        {
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.2,
            "lines.markersize": 4,
            "figure.constrained_layout.use": True,
            "savefig.dpi": 200,
            "pdf.fonttype": 42,
        }
    )


def save_figure(figure: Figure, name: str, data: pd.DataFrame, profile: str) -> None:
    """Write `figures/<profile>/<name>` as csv (the source data), json (provenance), png and pdf.

    Does nothing when `profile` is empty. The pdf comes last: where it is, the others are.
    """
    if not profile:
        return
    stem = FIGURES / profile / name
    with atomic_path(stem.with_suffix(".csv")) as temporary:
        data.to_csv(temporary, index=False, float_format="%.6g")
    write_json(stem.with_suffix(".json"), {"notebook": f"notebooks/{name}.ipynb", **provenance()})
    with atomic_path(stem.with_suffix(".png")) as temporary:
        figure.savefig(temporary)
    with atomic_path(stem.with_suffix(".pdf")) as temporary:
        figure.savefig(temporary, metadata={"CreationDate": None})


def look_of(arm: pd.Series) -> dict:
    """How an arm is drawn.

    Dense is black, another network blue, fewer pixels green, others are coloured by ratio; the marker tells
    the criterion, hollow is unrepaired, a dotted line a scope that ranks the filters of many sites together,
    a thick one the granularity channel; a plus on a line of dashes and dots is a probe.
    """
    look = _look_of_network(arm)
    if arm["learner"] == "probe":
        look |= {"marker": "P", "linestyle": "-."}
    return look


def _look_of_network(arm: pd.Series) -> dict:
    network, pixels = arm["unit"].split("@")
    if arm["backbone"] != network:
        return {"color": "tab:blue", "marker": "^"}
    if arm["image_size"] != int(pixels):
        return {"color": "tab:green", "marker": "v", "alpha": arm["image_size"] / int(pixels)}
    if arm["ratio"] == 0:
        return {"color": "black", "marker": "o"}
    look = {"color": RATIO_COLOURS(arm["ratio"]), "marker": _MARKERS[arm["criterion"]]}
    if arm["criterion"] != "activation":
        look["linestyle"] = (0, (3, 1.5))
    if arm["scope"] != "uniform":
        look["linestyle"] = ":"
    if arm["repair"] == "none":
        look["markerfacecolor"] = "white"
    if arm["granularity"] == "channel":
        look["linewidth"] = 2.5
    return look


def label_of(arm: pd.Series) -> str:
    """What an arm is called in a legend."""
    learner = "" if arm["learner"] == "independent" else f", {arm['learner']}"
    return _label_of_network(arm) + learner


def _label_of_network(arm: pd.Series) -> str:
    network, pixels = arm["unit"].split("@")
    if arm["ratio"] == 0:
        named = "dense" if arm["backbone"] == network else f"{arm['backbone']}, dense"
        return named if arm["image_size"] == int(pixels) else f"{named}, {arm['image_size']} px"
    repaired = "" if arm["repair"] == "none" else f" + {arm['repair'].replace('_', ' ')}"
    scope = "" if arm["scope"] == "uniform" else f", {arm['scope']}"
    granularity = "" if arm["granularity"] == "filter" else f", {arm['granularity']}"
    return f"{100 * arm['ratio']:.0f} %, {arm['criterion'].replace('_', ' ')}{scope}{granularity}{repaired}"


def arms_table(records: pd.DataFrame) -> pd.DataFrame:
    """What tells the arms apart, a row an arm: dense first, then by ratio; the alternatives last."""
    columns = [
        "unit",
        "backbone",
        "ratio",
        "criterion",
        "scope",
        "granularity",
        "repair",
        "learner",
        "image_size",
    ]
    arms = records.drop_duplicates("arm").set_index("arm")[columns]
    own = network_of(arms) == arms["unit"]
    order = pd.DataFrame(
        {
            "another learner": arms["learner"] != "independent",
            "another network": ~own,
            "pruned": arms["ratio"] > 0,
            "criterion": arms["criterion"].ne("activation") & arms["ratio"].gt(0),
            "channel": arms["granularity"] == "channel",
            "ratio": arms["ratio"],
        }
    )
    return arms.loc[order.sort_values(list(order.columns), kind="stable").index]


def legend_below(
    figure: Figure, panels: list[plt.Axes], columns: int = 3, title: str | None = LEGEND
) -> None:
    """One legend of the curves of all panels, below the figure."""
    entries = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True)}
    figure.legend(
        entries.values(),
        entries.keys(),
        frameon=False,
        ncols=columns,
        loc="outside lower center",
        fontsize=6.5,
        columnspacing=1,
        title=title,
        title_fontsize=7,
    )


def panels_of(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The part of a table that each panel shows, a unit and granularity each, and its title of two lines."""
    return [
        (f"{unit.replace('@', ' at ')} px\n{granularity}", part)
        for (unit, granularity), part in table.groupby(["unit", "granularity"], sort=False)
    ]


def budget_axis(axes: plt.Axes, budgets: np.ndarray, label: str = BUDGET) -> None:
    """A tick a budget in doublings; where there are many, every other has a number."""
    axes.set_xscale("log", base=2)
    every = 1 if len(budgets) <= 5 else 2
    axes.set_xticks(budgets, [f"{b:g}" if place % every == 0 else "" for place, b in enumerate(budgets)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
