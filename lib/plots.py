"""One style, and one function a figure. Every function takes tables and returns a matplotlib figure."""

from collections.abc import Callable

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from lib.files import atomic_path, write_json
from lib.paths import FIGURES
from lib.provenance import provenance

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.9  # inches, of a two-column page
_RATIOS = sns.color_palette("flare", as_cmap=True)  # pruning ratio 0..1, light to dark
BUDGET = "compute budget (dense epochs of MACs)"
LEGEND = "share removed, criterion, scope if not uniform + repair; fine-tuned, or as named"
_MARKERS = {"activation": "o", "l1": "s", "l2": "D", "random": "X", "activation_images": "*"}


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
    """Dense is black, another network blue, others coloured by ratio; the marker tells the criterion,
    hollow is unrepaired, a dotted line a scope that ranks the filters of many sites together; a plus on a
    line of dashes and dots is a probe."""
    look = _look_of_network(arm)
    if arm["learner"] == "probe":
        look |= {"marker": "P", "linestyle": "-."}
    return look


def _look_of_network(arm: pd.Series) -> dict:
    if arm["backbone"] != arm["unit"].split("@")[0]:
        return {"color": "tab:blue", "marker": "^"}
    if arm["ratio"] == 0:
        return {"color": "black", "marker": "o"}
    look = {"color": _RATIOS(arm["ratio"]), "marker": _MARKERS.get(arm["criterion"], "v")}
    if arm["criterion"] != "activation":
        look["linestyle"] = (0, (3, 1.5))
    if arm["scope"] != "uniform":
        look["linestyle"] = ":"
    if arm["repair"] == "none":
        look["markerfacecolor"] = "white"
    return look


def _label(arm: pd.Series) -> str:
    learner = "" if arm["learner"] == "independent" else f", {arm['learner']}"
    return _label_of_network(arm) + learner


def _label_of_network(arm: pd.Series) -> str:
    if arm["ratio"] == 0:
        return "dense" if arm["backbone"] == arm["unit"].split("@")[0] else f"{arm['backbone']}, dense"
    repaired = "" if arm["repair"] == "none" else f" + {arm['repair'].replace('_', ' ')}"
    scope = "" if arm["scope"] == "uniform" else f", {arm['scope']}"
    return f"{100 * arm['ratio']:.0f} %, {arm['criterion'].replace('_', ' ')}{scope}{repaired}"


def _arms(records: pd.DataFrame) -> pd.DataFrame:
    """What tells the arms apart, a row an arm, in the order of the records."""
    columns = ["unit", "backbone", "ratio", "criterion", "scope", "repair", "learner"]
    return records.drop_duplicates("arm").set_index("arm")[columns]


def _legend(figure: Figure, panels: list[plt.Axes], columns: int = 3, title: str | None = LEGEND) -> None:
    """One legend of the curves of all panels, below the figure."""
    entries = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True)}
    figure.legend(
        entries.values(), entries.keys(), frameon=False, ncols=columns, loc="outside lower center",
        fontsize=6.5, columnspacing=1, title=title, title_fontsize=7,
    )  # fmt: skip


def _budget_axis(axes: plt.Axes, budgets: np.ndarray) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(BUDGET)


def error_against_compute(records: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Mean test error over tasks against the budget, a panel a unit and a curve an arm."""
    arms, units = _arms(records), list(means["unit"].unique())
    figure, grid = plt.subplots(1, len(units), figsize=(PAGE_WIDTH, 3.7), sharey=True, squeeze=False)
    for axes, unit in zip(grid[0], units, strict=True):
        of_unit = means[means["unit"] == unit]
        names = list(of_unit["arm"].unique())
        for dodge, name in zip(np.geomspace(0.93, 1.07, len(names)), names, strict=True):
            curve, look = of_unit[of_unit["arm"] == name], _look(arms.loc[name])
            places = curve["budget"] * dodge
            axes.plot(places, curve["error"], label=_label(arms.loc[name]), **look)
            axes.vlines(places, curve["low"], curve["high"], color=look["color"], linewidth=0.5, alpha=0.5)
        _budget_axis(axes, np.sort(of_unit["budget"].unique()))
        axes.set_title(unit.replace("@", " at ") + " px")
    grid[0, 0].set_ylabel("test error, mean over tasks\n(95 % interval over tasks)")
    _legend(figure, list(grid[0]))
    return figure


def error_by_task(records: pd.DataFrame) -> Figure:
    """Test error against the budget, a panel a task of the stream, for the arms of the first unit."""
    of_unit = records[records["unit"] == records["unit"].iloc[0]]
    arms, tasks = _arms(of_unit), of_unit.drop_duplicates("event").sort_values("event")
    budgets = np.sort(of_unit["budget"].unique())
    rows, columns = 2, -(-len(tasks) // 2)
    figure, grid = plt.subplots(rows, columns, figsize=(PAGE_WIDTH, 3.9), sharex=True, squeeze=False)
    for panel in grid.flat[len(tasks) :]:
        panel.set_visible(False)
    for panel, (_, task) in zip(grid.flat, tasks.iterrows(), strict=False):
        for name, arm in arms.iterrows():
            of_task = of_unit[(of_unit["arm"] == name) & (of_unit["event"] == task["event"])]
            curve = of_task.groupby("budget")["error_test"].mean()
            panel.plot(curve.index, curve, label=_label(arm), **_look(arm) | {"markersize": 2}, linewidth=0.9)
        _budget_axis(panel, budgets)
        panel.set_xlabel("")
        panel.set_title(task["task"].replace("_", " "))
    grid[-1, columns // 2].set_xlabel(BUDGET)
    figure.supylabel("test error", fontsize=8)
    _legend(figure, list(grid.flat))
    return figure


def improvement(records: pd.DataFrame, gains: pd.DataFrame) -> Figure:
    """Gain in accuracy, cut in error, and points gained over dense at equal compute, a row a unit."""
    arms, units = _arms(records), list(gains["unit"].unique())
    panels = {
        "accuracy_gain": ("accuracy gained (relative)", 1),
        "error_cut": ("error cut (relative)", 1),
        "points_gained": ("accuracy gained (points)", 100),
    }
    height = 1.2 + 1.9 * len(units)
    figure, grid = plt.subplots(len(units), 3, figsize=(PAGE_WIDTH, height), squeeze=False, sharey="col")
    for place, unit in enumerate(units):
        row = grid[place]
        of_unit = gains[gains["unit"] == unit]
        names = list(of_unit["arm"].unique())
        for axes, (measure, (title, scale)) in zip(row, panels.items(), strict=True):
            axes.axhline(0, color="black", linewidth=0.8)
            for dodge, name in zip(np.geomspace(0.9, 1.1, len(names)), names, strict=True):
                curve = of_unit[of_unit["arm"] == name]
                low, high = curve[f"{measure}_low"], curve[f"{measure}_high"]
                axes.errorbar(
                    curve["budget"] * dodge, curve[measure],
                    yerr=[curve[measure] - low, high - curve[measure]],
                    label=_label(arms.loc[name]), elinewidth=0.6, **_look(arms.loc[name]),
                )  # fmt: skip
            _budget_axis(axes, np.sort(of_unit["budget"].unique()))
            if axes is not grid[-1, 1]:
                axes.set_xlabel("")
            if place == 0:
                axes.set_title(title)
            form = "{:+.0%}" if scale == 1 else "{:+g}"
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form.format(value)))
        row[0].set_ylabel(unit.replace("@", " at ") + " px")
    _legend(figure, list(grid[:, 0]))
    return figure


def large_or_small(records: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Mean test error over the budget: the large network dense, its best pruned arm, and the small one."""
    arms = _arms(records)
    budgets = np.sort(means["budget"].unique())
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH * 1.4, 3.2))
    for dodge, name in zip(np.geomspace(0.96, 1.04, len(arms)), arms.index, strict=True):
        curve = means[means["arm"] == name]
        axes.errorbar(
            curve["budget"] * dodge, curve["error"],
            yerr=[curve["error"] - curve["low"], curve["high"] - curve["error"]],
            label=_label(arms.loc[name]), elinewidth=0.6, **_look(arms.loc[name]),
        )  # fmt: skip
    _budget_axis(axes, budgets)
    axes.set_ylabel("test error, mean over tasks\n(95 % interval over tasks)")
    _legend(figure, [axes], columns=2)
    return figure


def learners(table: pd.DataFrame) -> Figure:
    """Mean test error over tasks against the budget, a panel a ratio and a curve a learner."""
    dodges = np.geomspace(0.94, 1.06, table["learner"].nunique())

    def draw(axes: plt.Axes, place: int, curve: pd.DataFrame, colour: tuple, name: str) -> None:
        places = curve["budget"] * dodges[place]
        axes.plot(places, curve["error"], marker="o", color=colour, label=name)
        axes.vlines(places, curve["low"], curve["high"], color=colour, linewidth=0.5, alpha=0.5)

    figure, panels = _learners_by_ratio(table, 3.2, draw)
    for axes in panels:
        _budget_axis(axes, np.sort(table["budget"].unique()))
    panels[0].set_ylabel("test error, mean over tasks\n(95 % interval over tasks)")
    return figure


def along_the_stream(table: pd.DataFrame) -> Figure:
    """Mean test error so far against the compute spent so far, a panel a ratio, a point a task."""

    def draw(axes: plt.Axes, _: int, curve: pd.DataFrame, colour: tuple, name: str) -> None:
        spent = curve["cumulative_macs"] / 1e12
        axes.plot(spent, curve["mean_error_so_far"], marker=".", color=colour, label=name)

    figure, panels = _learners_by_ratio(table, 2.8, draw)
    for axes in panels:
        axes.set_xlabel("compute spent so far (tera MACs)")
    panels[0].set_ylabel("test error, mean so far")
    return figure


def _learners_by_ratio(
    table: pd.DataFrame, height: float, draw: Callable[..., None]
) -> tuple[Figure, list[plt.Axes]]:
    """A panel a ratio; `draw` gets the axes, place, rows, colour and name of each learner in it."""
    ratios, names = table["ratio"].unique(), list(table["learner"].unique())
    colours = sns.color_palette("colorblind", len(names))
    figure, grid = plt.subplots(1, len(ratios), figsize=(PAGE_WIDTH, height), sharey=True, squeeze=False)
    panels = list(grid[0])
    for axes, ratio in zip(panels, ratios, strict=True):
        for place, name in enumerate(names):
            curve = table[(table["ratio"] == ratio) & (table["learner"] == name)]
            draw(axes, place, curve, colours[place], name)
        axes.set_title("dense" if ratio == 0 else f"{ratio:.0%} of the filters removed")
    _legend(figure, panels, columns=len(names), title=None)
    return figure, panels


def stream_overview(tasks: pd.DataFrame) -> Figure:
    """Years, domains and sizes: a row a task, the newest on top (columns name, year, domain, train, test)."""
    domains = list(tasks["domain"].unique())
    colours = dict(zip(domains, sns.color_palette("colorblind", len(domains)), strict=True))
    figure, (years, sizes) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.8), sharey=True)
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
        len(images), count, figsize=(PAGE_WIDTH, PAGE_WIDTH / count * len(images)), squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.05},
    )  # fmt: skip
    for row, (name, pictures) in zip(grid, images.items(), strict=True):
        for axes, picture in zip(row, pictures, strict=False):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            sns.despine(ax=axes, left=True, bottom=True)
        row[0].set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center")
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
            *axes.get_legend_handles_labels(), frameon=False, ncols=3, loc=f"outside lower {side}",
            title=title, title_fontsize=8,
        )  # fmt: skip
    figure.supylabel("mean cosine with the dense representation", fontsize=8)
    return figure


def time_against_macs(table: pd.DataFrame) -> Figure:
    """Share of the dense network's time against the share of its MACs, a panel a backbone."""
    names = list(table["backbone"].unique())
    figure, grid = plt.subplots(1, len(names), figsize=(PAGE_WIDTH, 2.8), sharey=True, squeeze=False)
    styles = {"fp32": "-", "bf16": "--"}
    for axes, name in zip(grid[0], names, strict=True):
        part = table[table["backbone"] == name]
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        colours = dict(zip(part["batch"].unique(), sns.color_palette("deep"), strict=False))
        for (batch, precision), curve in part.groupby(["batch", "precision"], sort=False):
            axes.plot(
                curve["share_of_macs"], curve["share_of_time"], marker="o", color=colours[batch],
                linestyle=styles[precision], label=f"batch {batch}, {precision}",
            )  # fmt: skip
        axes.set_xlabel("share of the dense network's MACs")
        axes.set_title(name)
    grid[0, 0].set_ylabel("share of its measured time")
    grid[0, 0].legend(frameon=False)
    return figure
