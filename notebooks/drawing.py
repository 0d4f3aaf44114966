"""Figures of records: the front, the best size, the map of tasks, and what explains them. One message each."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    TYPE,
    budget_axis,
    budget_said,
    colour_of,
    dashes_of,
    images_said,
    in_style,
    label_ends,
    panels,
    short,
)

from lib.evidence.analysis import front, mean_accuracy
from lib.evidence.records import CONTROLS, ELSE, FAMILIES
from lib.evidence.scaling import on_route, parabola

ACCURACY = "accuracy (%, mean over tasks)"
POINTS = "points of accuracy"
_MARKERS = {
    "channels removed": "o",
    "inner filters removed": "s",
    "fewer pixels": "v",
    "both": "P",
    "dense": "D",
    "other network": "x",
}


@in_style
def fronts(streams: dict[str, pd.DataFrame], message: str) -> Figure:
    """Accuracy against compute: a panel per stream, a line per family of networks, named at its end.

    A line is the family's best arm at each budget, chosen with the task left out. Thin grey lines are of controls.
    """
    figure, grid = panels(len(streams), 3.3, message, sharey=True)
    for axes, (name, records) in zip(grid, streams.items(), strict=True):
        axes.set_title(name)
        _front(axes, records)
        axes.set_ylabel(ACCURACY if axes is grid[0] else "")
    _name_lines(grid)
    return figure


def _front(axes: Axes, records: pd.DataFrame) -> None:
    for family, line in front(records).groupby("family", sort=False):
        look = {"color": colour_of(family), "linestyle": dashes_of(family), "marker": "o", "label": family}
        axes.plot(line["budget"], line["accuracy"], **look)
    for control, rows in records[records["family"].isin(CONTROLS)].groupby("family"):
        line = mean_accuracy(rows)
        axes.plot(line["budget"], line["accuracy"], color=colour_of(control), linewidth=0.7, label=control)
    budget_axis(axes, records["budget"], records.groupby("budget")["limit_macs"].mean())


def _name_lines(grid: list[Axes]) -> None:
    """Name every labelled line of the axes at its end."""
    for axes in grid:
        named = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        label_ends(axes, {name: (*line.get_xydata()[-1], line.get_color()) for name, line in named.items()})


@in_style
def iso_flop(table: pd.DataFrame, optima: dict[str, pd.DataFrame], message: str) -> Figure:
    """Error against the MACs of the network itself, a curve per budget, its optimum starred, and how that moves.

    `table` is that of `scaling.sizes`, `optima` those of `scaling.best_sizes` by route, a panel each. A curve is fitted
    to the sizes of its route, drawn full; paler marks are of all others. The panel at the right shows the best size
    against the budget.
    """
    figure, grid = panels(len(optima) + 1, 3.1, message)
    budgets = sorted(set(pd.concat(optima.values())["budget"]))
    colours = dict(zip(budgets, mpl.colormaps["viridis"](np.linspace(0, 0.85, len(budgets))), strict=True))
    for axes, (route, best) in zip(grid, optima.items(), strict=False):
        axes.set(title=route, xscale="log", xlabel="MACs of one image, forward", ylabel="error (%, mean over tasks)")
        _size_axis(axes, table["forward_macs"])
        ends = {}
        for budget, rows in table[table["budget"].isin(best["budget"])].groupby("budget"):
            ends[budget_said(budget)] = *_one_budget(axes, rows, route, colours[budget], best), colours[budget]
        label_ends(axes, ends)
    for look, (route, best) in zip((("-", "black"), ("--", "white")), optima.items(), strict=False):
        _best_sizes(grid[-1], best, f"{route}: slope {best['slope'].iloc[0]:.2f}", *look)
    grid[-1].set(title="best size", yscale="log", ylabel="MACs of one image, forward")
    budget_axis(grid[-1], budgets)
    _size_axis(grid[-1], pd.concat([on_route(table, route) for route in optima])["forward_macs"], "y")
    grid[-1].set_ylim(top=2.5 * grid[-1].get_ylim()[1])  # room for the legend
    grid[-1].legend(loc="upper left", handlelength=1.5)
    keys = {name: mpl.lines.Line2D([], [], color="0.3", linewidth=0, marker=mark) for name, mark in _MARKERS.items()}
    used = {name: key for name, key in keys.items() if name in set(table["origin"])}
    figure.legend([*used.values()], [*used], loc="outside lower center", ncols=6, handletextpad=0.2)
    return figure


def _one_budget(
    axes: Axes, rows: pd.DataFrame, route: str, colour: np.ndarray, best: pd.DataFrame
) -> tuple[float, float]:
    """The sizes of one budget, the curve fitted to a route's and its optimum; returns a place beside the largest."""
    own = on_route(rows, route)
    for origin, of_origin in rows.groupby("origin", sort=False):
        look = {"marker": _MARKERS[origin], "linewidth": 0, "color": colour}
        fitted = origin in set(own["origin"])
        axes.plot(of_origin["forward_macs"], of_origin["error"], alpha=1 if fitted else 0.35, **look)
    curve = parabola(own["forward_macs"], own["error"])
    xs = np.geomspace(own["forward_macs"].min(), own["forward_macs"].max(), 60)
    axes.plot(xs, np.polyval(curve, np.log10(xs)), color=colour, linewidth=1)
    at = best.loc[best["budget"] == rows["budget"].iloc[0], "macs"].iloc[0]
    star = {"marker": "*", "markersize": 9, "color": colour, "markeredgecolor": "black", "markeredgewidth": 0.5}
    axes.plot(at, np.polyval(curve, np.log10(at)), **star)
    return max(xs[-1], rows["forward_macs"].max()), own.sort_values("forward_macs")["error"].iloc[-1]


def _best_sizes(axes: Axes, best: pd.DataFrame, label: str, dashes: str, fill: str) -> None:
    """The optima and the line through their logarithms."""
    logs = np.log10(best["budget"]), np.log10(best["macs"])
    axes.plot(best["budget"], 10 ** np.polyval(np.polyfit(*logs, 1), logs[0]), "k", linestyle=dashes, label=label)
    axes.plot(best["budget"], best["macs"], "k*", markersize=8, markerfacecolor=fill, markeredgewidth=0.7)


def _size_axis(axes: Axes, macs: pd.Series, which: str = "x") -> None:
    """Ticks in millions of MACs, doubling, or where there is no room for all, more."""
    axis = getattr(axes, f"{which}axis")
    ticks = [1e6 * 2**power for power in range(12) if macs.min() / 1.5 < 1e6 * 2**power < 1.5 * macs.max()]
    ticks = ticks[:: 1 + len(ticks) // 5]
    axis.set_ticks(ticks, [short(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


@in_style
def task_map(blocks: dict[str, pd.DataFrame], message: str) -> Figure:
    """Points of accuracy by which pruned networks lead: a row per task, by domain, a column per budget.

    `blocks`: the tables of `analysis.leads` by what the lead is over. Red: pruned is behind. Blue: it is ahead.
    """
    tables = {name: table.sort_values(["domain", "event"]) for name, table in blocks.items()}
    first = next(iter(tables.values())).drop_duplicates("event")
    figure, grid = panels(len(blocks), 1.0 + 0.17 * len(first), message, sharey=True)
    limit = max(np.abs(table["points"]).quantile(0.95) for table in tables.values())
    look = {"cmap": "RdBu", "center": 0, "vmin": -limit, "vmax": limit, "cbar": False}
    for axes, (name, table) in zip(grid, tables.items(), strict=True):
        cells = table.pivot(index="event", columns="budget", values="points").reindex(first["event"])
        said = cells.map(lambda points: f"{round(points):+d}" if round(points) else "0")
        sns.heatmap(cells, annot=said, fmt="", annot_kws={"size": TYPE}, ax=axes, **look)
        axes.set(title=name, xlabel="budget (dense images)", ylabel="")
        axes.set_xticks(np.arange(cells.shape[1]) + 0.5, map(budget_said, cells.columns), rotation=0)
    names = first["task"].str.replace("_", " ") + " (" + first["domain"] + ")"
    grid[0].set_yticks(np.arange(len(first)) + 0.5, names, rotation=0)
    for axes in grid:
        axes.tick_params(length=0)
        for edge in np.flatnonzero(first["domain"].to_numpy()[1:] != first["domain"].to_numpy()[:-1]):
            axes.axhline(edge + 1, color="white", linewidth=2)
    figure.colorbar(grid[-1].collections[0], ax=grid, label=f"lead in {POINTS}", pad=0.01, aspect=30, extend="both")
    return figure


@in_style
def image_passes(table: pd.DataFrame, message: str) -> Figure:
    """Accuracy against the images that went through the network in training, a line per fine-tuned network.

    Beside it the same against the compute. `table` is that of `scaling.sizes`, with a column `family`.
    """
    figure, grid = panels(2, 2.9, message, sharey=True)
    for axes, column in zip(grid, ("budget", "image_passes"), strict=True):
        for (family, _), line in table.groupby(["family", "arm"], sort=False):
            name = family.removesuffix(", fine-tuned")
            known = {drawn.get_label() for drawn in axes.lines}
            look = {"color": colour_of(family), "marker": "o", "label": "_" if name in known else name}
            axes.plot(line[column], 100 - line["error"], linewidth=1, **look)
    budget_axis(grid[0], table["budget"])
    grid[0].set_ylabel(ACCURACY)
    grid[1].set(xscale="log", xlabel="image passes in training")
    grid[0].legend(loc="upper left")
    return figure


@in_style
def learners(table: pd.DataFrame, message: str) -> Figure:
    """Points by which ways to learn lead fine-tuning all layers, a panel per network, a line per way.

    Columns of the table: network, learner, budget, points, low, high. The band is the interval of the first.
    """
    networks = list(table["network"].unique())
    figure, grid = panels(len(networks), 3.0, message, sharey=True)
    found = list(table["learner"].unique())
    colours = dict(zip(found, mpl.colormaps["tab10"](range(len(found))), strict=True))
    for axes, network in zip(grid, networks, strict=True):
        for learner, line in table[table["network"] == network].groupby("learner", sort=False):
            axes.plot(line["budget"], line["points"], marker="o", color=colours[learner], label=learner)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(network)
        budget_axis(axes, table["budget"])
    grid[0].set_ylabel(f"{POINTS} over\nfine-tuning all layers")
    # Lines end at different budgets, so that names at their ends would lie on others.
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found))
    return figure


@in_style
def dots(table: pd.DataFrame, message: str, called: str) -> Figure:
    """Differences in points with their 95 % intervals over tasks: a row per alternative, a colour per budget.

    Columns of the table: panel, label, budget, points, low, high. A panel each, with rows of its own; `called` is
    what the axis is.
    """
    names = list(table["panel"].unique())
    rows = table.groupby("panel")["label"].nunique().max()
    figure, grid = panels(len(names), 1.0 + 0.24 * rows, message, sharex=True)
    budgets = sorted(table["budget"].unique())
    colours = dict(zip(budgets, mpl.colormaps["viridis"](np.linspace(0.1, 0.75, len(budgets))), strict=True))
    for axes, name in zip(grid, names, strict=True):
        part = table[table["panel"] == name]
        labels = list(part["label"].unique())[::-1]
        for number, (budget, rows) in enumerate(part.groupby("budget")):
            places = rows["label"].map(labels.index) + 0.24 * ((len(budgets) - 1) / 2 - number)
            axes.hlines(places, rows["low"], rows["high"], color=colours[budget], linewidth=1)
            axes.plot(rows["points"], places, "o", color=colours[budget], label=f"{budget_said(budget)} dense images")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(title=name, xlabel=called, ylim=(-0.6, len(labels) - 0.4))
        axes.tick_params(axis="y", length=0)
    if len(budgets) > 1:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(budgets))
    return figure


@in_style
def by_distance(table: pd.DataFrame, message: str) -> Figure:
    """Points of a lead against a task's distance to the pretraining images: a dot per task, a panel per lead.

    Columns of the table: panel, stream (in words), distance, points.
    """
    names = list(table["panel"].unique())
    figure, grid = panels(len(names), 2.6, message, sharex=True)
    fills = dict(zip(table["stream"].unique(), ("white", colour_of("pruned"), "#f0b89a"), strict=False))
    for axes, name in zip(grid, names, strict=True):
        part = table[table["panel"] == name]
        for stream, dots in part.groupby("stream", sort=False):
            look = {"color": colour_of("pruned"), "markerfacecolor": fills[stream], "label": stream}
            axes.plot(dots["distance"], dots["points"], "o", **look)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title=name, xlabel="distance (nats)")
    grid[0].set_ylabel(POINTS)
    if len(fills) > 1:
        fullest = max(grid, key=lambda axes: len(axes.lines))
        figure.legend(*fullest.get_legend_handles_labels(), loc="outside lower center", ncols=len(fills))
    return figure


@in_style
def over_the_stream(tables: dict[str, pd.DataFrame], message: str) -> Figure:
    """Mean error over events against all compute spent on them: a dot per network, learner and budget, a panel each.

    `tables` are those of `reports.over_the_stream`, by which events they are of. The line is the Pareto front.
    """
    figure, grid = panels(len(tables), 3.3, message)
    kinds = dict.fromkeys(family.partition(",")[0] for family in (*FAMILIES, *CONTROLS))
    for axes, (name, table) in zip(grid, tables.items(), strict=True):
        kind, probed = table["family"].str.partition(",")[0], table["learner"].str.startswith("probe")
        for own in kinds:
            look = {"color": colour_of(own), "marker": "o", "linewidth": 0}
            for dots, fill in ((table[(kind == own) & ~probed], None), (table[(kind == own) & probed], "white")):
                axes.plot(dots["flops"], dots["error"], markerfacecolor=fill, **look)
        line = table[table["on_front"]].sort_values("flops")
        axes.step(line["flops"], line["error"], where="post", color="0.5", linewidth=0.9, zorder=0)
        axes.set(title=name, xscale="log", xlabel="FLOPs over the events", ylabel="error (%, mean over events)")
    shown = [own for own in kinds if any(table["family"].str.startswith(own).any() for table in tables.values())]
    keys = [mpl.lines.Line2D([], [], color=colour_of(own), marker="o", linewidth=0) for own in shown]
    keys.append(mpl.lines.Line2D([], [], color="0.3", marker="o", linewidth=0, markerfacecolor="white"))
    figure.legend(keys, [*shown, "open: a probe"], loc="outside lower center", ncols=6, handletextpad=0.2)
    return figure


@in_style
def networks(tables: dict[str, pd.DataFrame], message: str) -> Figure:
    """Accuracy of probes against the MACs of the network itself: a mark per network, a panel per stream.

    `tables` are those of `tables.networks`. The line is the front. Named: what of it is not pruned, and dense.
    """
    figure, grid = panels(len(tables), 3.3, message, sharey=True)
    for axes, (name, table) in zip(grid, tables.items(), strict=True):
        for origin, mark in _MARKERS.items():
            rows = table[table["origin"] == origin]
            colour = colour_of(origin if origin in ("dense", *ELSE) else "pruned")
            axes.plot(rows["forward_macs"], 100 - rows["error"], mark, color=colour, label=origin)
        line = table[table["on_front"]].sort_values("forward_macs")
        axes.step(line["forward_macs"], 100 - line["error"], where="post", color="0.5", linewidth=0.9, zorder=0)
        axes.set(title=f"{name}, {budget_said(table['budget'].iloc[0])} dense images", xscale="log")
        axes.set(xlabel="MACs of one image, forward", ylabel=ACCURACY if axes is grid[0] else "")
        _size_axis(axes, table["forward_macs"])
        axes.set_xlim(left=table["forward_macs"].min() / 12)  # room for names: nothing lies to the left of the front
        for row in table[table["on_front"] & (table["ratio"] == 0) | (table["origin"] == "dense")].itertuples():
            side = {"xytext": (5, -7)} if row.origin == "dense" else {"xytext": (-5, 0), "ha": "right"}
            look = {"textcoords": "offset points", "va": "center", "color": colour_of(row.origin), **side}
            axes.annotate(row.label, (row.forward_macs, 100 - row.error), annotation_clip=False, **look)
    shown = [line for line in grid[0].lines if line.get_label() in _MARKERS and len(line.get_xdata())]
    figure.legend(shown, [one.get_label() for one in shown], loc="outside lower center", ncols=6, handletextpad=0.2)
    return figure


@in_style
def task_sizes(table: pd.DataFrame, message: str) -> Figure:
    """Accuracy against how many training images a task has: a panel per budget, a line per network and learner.

    `table` is that of `tables.by_task_size`.
    """
    budgets = sorted(table["budget"].unique())
    figure, grid = panels(len(budgets), 3.0, message, sharey=True)
    images = sorted(table["images"].unique())
    for axes, budget in zip(grid, budgets, strict=True):
        axes.set(title=f"{budget_said(budget)} dense images", xlabel="training images of a task")
        for (label, family), line in table[table["budget"] == budget].groupby(["label", "family"], sort=False):
            look = {"color": colour_of(family), "linestyle": dashes_of(family), "marker": "o", "label": label}
            line = line.sort_values("images")
            axes.plot(line["images"].map(images.index), line["accuracy"], **look)
        axes.set_xticks(range(len(images)), map(images_said, images))
    grid[0].set_ylabel("accuracy (%, mean over tasks)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@in_style
def rates(table: pd.DataFrame, rule: pd.DataFrame, message: str) -> Figure:
    """Dev error over the rates of body and head: a panel per share removed and budget, the rule's choice marked.

    Columns of the table: ratio, budget, body_rate, head_rate, error_dev (mean over tasks); of `rule`: ratio, budget,
    body, head. A dot is the best of the grid, a cross the rule.
    """
    places = list(table.groupby(["ratio", "budget"]).groups)
    shares = sorted({ratio for ratio, _ in places})
    figure = Figure(figsize=(PAGE_WIDTH, 0.6 + 1.7 * len(shares)), layout="constrained")
    figure.suptitle(message, x=0.01, ha="left")
    grid = figure.subplots(len(shares), len(places) // len(shares), sharex=True, sharey=True, squeeze=False)
    limits = 100 * table["error_dev"].min(), 100 * table["error_dev"].max()
    for axes, (ratio, budget) in zip(grid.flat, places, strict=True):
        part = table[(table["ratio"] == ratio) & (table["budget"] == budget)]
        cells = 100 * part.pivot(index="head_rate", columns="body_rate", values="error_dev")
        mesh = axes.pcolormesh(
            cells.columns, cells.index, cells, cmap="viridis_r", vmin=limits[0], vmax=limits[1], shading="nearest"
        )
        best, chosen = part.loc[part["error_dev"].idxmin()], rule[(rule["ratio"] == ratio) & (rule["budget"] == budget)]
        axes.plot(best["body_rate"], best["head_rate"], "o", color="white")
        axes.plot(chosen["body"], chosen["head"], "x", color="red", markersize=7, markeredgewidth=1.8)
        what = f"{ratio:.0%} removed" if ratio else "dense"
        axes.set(xscale="log", yscale="log", title=f"{what}, {budget_said(budget)} dense images")
    figure.supxlabel("rate of the body", fontsize=TYPE)
    figure.supylabel("rate of the head", fontsize=TYPE)
    figure.colorbar(mesh, ax=grid, label="dev error (%)", pad=0.01)
    return figure


@in_style
def one_run(records: pd.DataFrame) -> Figure:
    """Test error against the budget, one curve per task of a run, named at its end."""
    figure, (axes,) = panels(1, 3.4, "", COLUMN_WIDTH + 1.5)
    twice = records.groupby("task")["event"].transform("nunique") > 1
    named = records["task"].str.replace("_", " ")
    table = records.assign(task=named.mask(twice, named + ", event " + records["event"].astype(str)))
    colours = iter(mpl.colormaps["turbo"](np.linspace(0.05, 0.95, table["task"].nunique())))
    for task, line in table.groupby("task", sort=False):
        axes.plot(line["budget"], 100 * line["error_test"], marker="o", color=next(colours), label=task)
    budget_axis(axes, records["budget"])
    axes.set_ylabel("test error (%)")
    _name_lines([axes])
    return figure
