"""One style, and one function a figure. Every function takes tables and returns a matplotlib figure."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lib.analysis import DENSE
from lib.files import atomic_path, write_json
from lib.paths import FIGURES
from lib.provenance import provenance

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.9  # inches, of a two-column page
_RATIOS = sns.color_palette("flare", as_cmap=True)  # pruning ratio 0..1, light to dark
LEGEND = "share of filters removed, criterion + repair"
_MARKERS = {"activation": "o", "l1": "s", "l2": "D", "random": "X"}


def use_style() -> None:
    """8-point type, thin axes, no box."""
    sns.set_theme(style="ticks", context="paper")
    mpl.rcParams.update({
        "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
        "legend.fontsize": 7, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2,
        "lines.markersize": 4, "figure.constrained_layout.use": True, "savefig.dpi": 200, "pdf.fonttype": 42,
    })  # fmt: skip


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


def _look(arm: pd.Series) -> dict:
    """Dense is black, others coloured by ratio; the marker tells the criterion, hollow is unrepaired."""
    if arm["ratio"] == 0:
        return {"color": "black", "marker": "o"}
    look = {"color": _RATIOS(arm["ratio"]), "marker": _MARKERS[arm["criterion"]]}
    if arm["criterion"] != "activation":
        look["linestyle"] = (0, (3, 1.5))
    if arm["repair"] == "none":
        look["markerfacecolor"] = "white"
    return look


def _label(arm: pd.Series) -> str:
    if arm["ratio"] == 0:
        return "dense"
    repaired = "" if arm["repair"] == "none" else f" + {arm['repair']}"
    return f"{100 * arm['ratio']:.0f} %, {arm['criterion']}{repaired}"


def _arms(records: pd.DataFrame) -> pd.DataFrame:
    """What tells the arms apart, a row an arm, in the order of the records."""
    return records.drop_duplicates("arm").set_index("arm")[["backbone", "ratio", "criterion", "repair"]]


def _budget_axis(axes: plt.Axes, budgets: np.ndarray) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("compute budget (dense epochs of MACs)")


def error_against_compute(records: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Mean test error over tasks against the budget, a curve an arm; beside it each task by itself."""
    arms = _arms(records)
    budgets = np.sort(means["budget"].unique())
    tasks = records.drop_duplicates("event").sort_values("event")
    rows = 3
    columns = -(-len(tasks) // rows)
    figure = plt.figure(figsize=(PAGE_WIDTH, 4.2))
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 0.18])
    main, small = upper.subfigures(1, 2, width_ratios=[1, 1.35])
    axes = main.subplots()
    spread = np.geomspace(0.93, 1.07, len(arms))
    for dodge, (name, arm) in zip(spread, arms.iterrows(), strict=True):
        curve = means[means["arm"] == name]
        look = _look(arm)
        axes.plot(curve["budget"] * dodge, curve["error"], label=_label(arm), **look)
        axes.vlines(
            curve["budget"] * dodge,
            curve["low"],
            curve["high"],
            color=look["color"],
            linewidth=0.5,
            alpha=0.5,
        )
    _budget_axis(axes, budgets)
    axes.set_ylabel("test error, mean over tasks (95 % interval over tasks)")
    lower.legend(
        *axes.get_legend_handles_labels(),
        frameon=False,
        ncols=4,
        loc="center",
        title=LEGEND,
        title_fontsize=7,
    )

    grid = small.subplots(rows, columns, sharex=True, squeeze=False)
    for panel in grid.flat[len(tasks) :]:
        panel.set_visible(False)
    for place, (panel, (_, task)) in enumerate(zip(grid.flat, tasks.iterrows(), strict=False)):
        for name, arm in arms.iterrows():
            of_task = records[(records["arm"] == name) & (records["event"] == task["event"])]
            curve = of_task.groupby("budget")["error_test"].mean()
            panel.plot(curve.index, curve, **_look(arm) | {"marker": None}, linewidth=0.9)
        _budget_axis(panel, budgets)
        panel.set_xticks(budgets[::2], [f"{budget:g}" for budget in budgets[::2]])
        panel.tick_params(labelbottom=place + columns >= len(tasks))
        panel.set_xlabel("")
        panel.set_title(task["task"].replace("_", " "))
    small.supxlabel("compute budget (dense epochs of MACs)", fontsize=8)
    small.supylabel("test error", fontsize=8)
    return figure


def improvement(records: pd.DataFrame, gains: pd.DataFrame) -> Figure:
    """Relative gain in accuracy, cut in error, and points gained over dense at equal compute."""
    arms = _arms(records)
    panels = {
        "accuracy_gain": ("accuracy gained (relative)", 1),
        "error_cut": ("error cut (relative)", 1),
        "points_gained": ("accuracy gained (points)", 100),
    }
    figure, grid = plt.subplots(1, 3, figsize=(PAGE_WIDTH, 2.9))
    budgets = np.sort(gains["budget"].unique())
    names = [name for name in arms.index if name != DENSE]
    for axes, (measure, (title, scale)) in zip(grid, panels.items(), strict=True):
        axes.axhline(0, color="black", linewidth=0.8)
        for dodge, name in zip(np.geomspace(0.9, 1.1, len(names)), names, strict=True):
            curve = gains[gains["arm"] == name]
            axes.errorbar(
                curve["budget"] * dodge, curve[measure],
                yerr=[curve[measure] - curve[f"{measure}_low"], curve[f"{measure}_high"] - curve[measure]],
                label=_label(arms.loc[name]), elinewidth=0.6, **_look(arms.loc[name]),
            )  # fmt: skip
        _budget_axis(axes, budgets)
        if axes is not grid[1]:
            axes.set_xlabel("")
        axes.set_title(title)
        percent = scale == 1
        axes.yaxis.set_major_formatter(
            FuncFormatter(
                lambda value, _, percent=percent: (
                    f"{value:+.1%}".replace(".0%", "%") if percent else f"{value:+g}"
                )
            )
        )
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, ncols=4, loc="outside lower center", title=LEGEND, title_fontsize=7
    )
    return figure


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
                color=_RATIOS(ratio),
                label=f"{ratio:.0%} removed",
            )
        axes.set_xlabel("site, from the image to the representation")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.set_xticks(places[::2], (places + 1)[::2])
    left.legend(frameon=False)
    return figure
