"""Every figure: errors and gains against compute, and what pruning does to a network before any training.

Each takes tables of lib/evidence, or of a notebook, and draws them with lib/evidence/style.py.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lib.evidence import style
from lib.evidence.records import arms
from lib.evidence.scaling import FITTED_FROM, power_law
from lib.evidence.style import BUDGET, Axis, Curve, Look, arm_looks, curves_by, in_order, in_style, palette, panels

ERROR = Axis("error", "test error\n(mean, 95 % interval)")
POINTS = {"points_gained": "accuracy gained (points)"}
ALL_GAINS = {"accuracy_gain": "accuracy gained (%)", "error_cut": "error cut (%)"} | POINTS


@in_style
def errors(records: pd.DataFrame, means: pd.DataFrame, front: pd.DataFrame | None = None) -> Figure:
    """Mean test error against the budget with 95 % intervals: a column per unit, a row per granularity.

    `front` lies behind the arms, a broad line. Dense networks and other alternatives are in every row.
    """
    about = arms(records)
    names = list(about.loc[about["ratio"] > 0, "granularity"].unique()) or ["dense"]
    if front is not None:
        means = pd.concat([means, front.assign(arm="front").drop(columns=["low", "high"])])
    pruned, own = means["arm"].map(about["ratio"]) > 0, means["arm"].map(about["granularity"])
    shown = pd.concat([means[~pruned | (own == name)].assign(granularity=name) for name in names])
    curves = curves_by(shown.assign(network=in_order(style.unit_names(shown["unit"]))), "arm", arm_looks(records))
    height = 0.9 + 0.06 * len(curves) + 1.5 * len(names)
    return panels(curves, BUDGET, ERROR, height, col="network", row="granularity")


def _told_apart(records: pd.DataFrame) -> pd.Series:
    """The tasks' names in the stream's order, with the event where two tasks have one name."""
    twice = records.groupby("task")["event"].transform("nunique") > 1
    named = records["task"].str.replace("_", " ")
    return in_order(named.mask(twice, named + ", event " + records["event"].astype(str)))


@in_style
def one_run(records: pd.DataFrame) -> Figure:
    """Test error against the budget, one curve per task of a run."""
    table = records.assign(task=_told_apart(records))
    curves = curves_by(table, "task", palette(table["task"], "husl"))
    return panels(curves, BUDGET, Axis("error_test", "test error"), 3.4, 4.5, columns=4)


@in_style
def error_by_task(records: pd.DataFrame) -> Figure:
    """Test error against the budget, one panel per task of the stream, for the arms of the first unit."""
    records = records[records["unit"] == records["unit"].iloc[0]]
    means = records.groupby(["event", "task", "arm", "budget"])["error_test"].mean().reset_index()
    curves = curves_by(means.assign(task=_told_apart(means)), "arm", arm_looks(records))
    figure = panels(curves, BUDGET, Axis("error_test", "test error"), 4, col="task", wrap=5)
    for axes in figure.axes:
        axes.set_xlabel(BUDGET.label.replace(" (", "\n("))
    return figure


@in_style
def improvement(records: pd.DataFrame, gains: pd.DataFrame, measures: dict[str, str] = ALL_GAINS) -> Figure:
    """What arms gain over dense at equal compute, with 95 % intervals, in panels per unit and measure.

    `measures` are those of records.GAINS to show, and what they are called.
    """
    tables = []
    for measure, called in measures.items():
        found = gains[[measure, f"{measure}_low", f"{measure}_high"]] * (1 if measure in POINTS else 100)
        found = found.set_axis(["gain", "low", "high"], axis=1)
        tables.append(found.join(gains[["unit", "arm", "budget"]]).assign(measure=called))
    table = pd.concat(tables)
    table["network"] = in_order(style.unit_names(table["unit"]))
    curves = curves_by(table, "arm", arm_looks(records))
    if len(measures) == 1:
        return panels(curves, BUDGET, Axis("gain", called, zero=True), 3.1, col="network")
    height = 1 + 1.6 * gains["unit"].nunique()
    return panels(
        curves, BUDGET, Axis("gain", "gained over dense", "col", zero=True), height, col="measure", row="network"
    )


def _by_learner(table: pd.DataFrame, x: Axis, y: Axis) -> Figure:
    """A curve per learner in panels per unit and ratio."""
    shares = table["ratio"].map(lambda ratio: style.share_look(ratio).label)
    table = table.assign(network=in_order(table["unit"].str.split("@").str[0] + "\n" + shares))
    looks = palette(table["learner"], "colorblind")
    return panels(curves_by(table, "learner", looks), x, y, 2.7, columns=len(looks), col="network")


@in_style
def learners(table: pd.DataFrame) -> Figure:
    """Mean test error against the budget with 95 % intervals: a panel per network, a curve per learner."""
    return _by_learner(table, BUDGET, ERROR)


@in_style
def along_the_stream(table: pd.DataFrame) -> Figure:
    """Mean test error so far against the compute so far: one panel per network, one point per task."""
    table = table.assign(spent=table["cumulative_macs"] / 1e12)
    x, y = Axis("spent", "compute so far (tera MACs)"), Axis("mean_error_so_far", "test error, mean so far")
    return _by_learner(table, x, y)


def _panel(table: pd.DataFrame) -> pd.DataFrame:
    """A table with a column that names its unit and granularity."""
    return table.assign(panel=in_order(style.unit_names(table["unit"]) + "\n" + table["granularity"]))


@in_style
def best_ratio(by_ratio: pd.DataFrame) -> Figure:
    """Mean test error against the share of filters removed, one curve per budget, its minimum starred."""
    table = _panel(by_ratio).drop(columns=["low", "high"]).sort_values("budget", kind="stable")
    least = table.loc[table.groupby(["budget", "panel"], observed=True)["error"].idxmin()]
    star = {"marker": "*", "pointsize": 10, "linewidth": 0, "edgecolor": "black", "edgewidth": 0.6}
    looks = palette(table["budget"], "viridis", "{:g} dense epochs")
    stars = {budget: Look(look.line | star) for budget, look in looks.items()}
    curves = curves_by(table, "budget", looks) + curves_by(least, "budget", stars)
    x, y = Axis("ratio", "share of filters removed"), Axis("error", "test error, mean over tasks")
    figure = panels(curves, x, y, 2.9, columns=5, col="panel")
    for axes in figure.axes:
        axes.xaxis.set_major_formatter("{x:.0%}")
    return figure


@in_style
def asymptotes(means: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Mean errors against the budget, their power laws where those were fitted, and at the right the floors.

    A floor has its 95 % interval, and is drawn where it is identified.
    """
    largest, fits = means["budget"].max(), _panel(fits)
    points = means[["unit", "arm", "budget", "error"]].merge(fits[["unit", "arm", "ratio", "panel"]])
    laws = fits.merge(pd.DataFrame({"budget": np.geomspace(FITTED_FROM, 2 * largest, 50)}), how="cross")
    laws["error"] = power_law(laws["budget"], laws["floor"], laws["scale"], laws["exponent"])
    floors = fits.assign(error=fits["floor"], budget=2.5 * largest * 1.15 ** (fits["ratio"].rank(method="dense") - 1))
    curves = []
    for ratio, (colour, label) in style.share_looks(fits["ratio"]).items():
        for table, line, named in (
            (points, {"linewidth": 0}, label),
            (laws.drop(columns=["low", "high"]), {"linewidth": 0.8, "marker": ""}, None),
            (floors[floors["identified"]], {"linewidth": 0, "marker": "_", "pointsize": 7}, None),
        ):
            curves.append(Curve(table[table["ratio"] == ratio], Look(colour | line, named)))
    y = Axis("error", "test error, mean over tasks\n(right: fitted floors)")
    return panels(curves, BUDGET, y, 2.8, columns=6, col="panel")


@in_style
def regret(table: pd.DataFrame, records: pd.DataFrame, named: Iterable[str]) -> Figure:
    """Mean regret against the budget: one panel per choice, the adviser a broad line among fixed choices.

    These are always an arm of `named`, and the best arm of each panel. Columns of the table: choice, policy,
    arm, budget, regret (one row per task).
    """
    advised = table["policy"] == "adviser"
    best = table[~advised].groupby(["arm", "choice"])["regret"].mean().unstack("choice").idxmin()
    table = table.assign(choice=in_order(table["choice"]), arm=table["arm"].mask(advised, "adviser"))
    shown = table[table["arm"].isin(["adviser", *named, *best])]
    means = shown.groupby(["choice", "arm", "budget"], observed=True)["regret"].mean().reset_index()
    curves = curves_by(means, "arm", arm_looks(records, "always {}"))
    y = Axis("regret", "error above the best in hindsight\n(mean over tasks)")
    return panels(curves, BUDGET, y, 3.2, col="choice")


@in_style
def filters_and_macs(table: pd.DataFrame) -> Figure:
    """Filters and million MACs of every site, before and after, one colour per ratio.

    `table` is that of plans, with a column `ratio`.
    """
    dense = table[table["ratio"] == table["ratio"].min()]
    dense = dense.assign(ratio=0.0, after=dense["before"], macs_after=dense["macs_before"])
    sites = pd.concat([dense, table])
    sites = sites.assign(site=sites.groupby("ratio").cumcount() + 1, macs_after=sites["macs_after"] / 1e6)
    sites = sites.rename(columns={"after": "filters", "macs_after": "million MACs, one image"})
    sites = sites.melt(["ratio", "site"], ["filters", "million MACs, one image"], "shown")
    x, y = Axis("site", "site, from image to representation"), Axis("value", "", False)
    figure = panels(curves_by(sites, "ratio", style.share_looks(sites["ratio"])), x, y, 2.7, columns=6, col="shown")
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    return figure


@in_style
def fidelity_against_ratio(table: pd.DataFrame) -> Figure:
    """Zero-shot fidelity by ratio: a row per backbone, criteria on the left, repairs on the right."""
    backbones, varied = table["backbone"].unique(), table["varied"].unique()
    figure = Figure(figsize=(style.PAGE_WIDTH, 0.5 + 1.9 * len(backbones)), layout="constrained")
    grid = figure.subplots(len(backbones), len(varied), squeeze=False)
    grid = pd.DataFrame(grid, backbones, varied)
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
    curves = []
    for rows, (line, work) in curves_by(table, "work", palette(table["work"], "colorblind")):
        for name, dashes in (("filter", "-"), ("channel", "--")):
            look = Look(line | {"linestyle": dashes}, f"{work}, {name}")
            curves += curves_by(rows, "granularity", {name: look})
    x, y = (
        Axis("share_of_macs", "share of its MACs"),
        Axis("share_of_time", "share of the dense network's\nmeasured time"),
    )
    figure = panels(curves, x, y, 2.6, style.COLUMN_WIDTH, columns=2, col="backbone")
    for axes in figure.axes:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, zorder=0)
    return figure


@in_style
def granularity_by_distance(table: pd.DataFrame) -> Figure:
    """Points by which `filter` is ahead of `channel` against a task's distance to the pretraining images.

    A row of panels per unit, a column per ratio, a colour per budget. Columns of the table: unit, task,
    distance, ratio, budget, points.
    """
    removed = in_order(table.sort_values("ratio")["ratio"].map("{:.0%} removed".format))
    table = table.assign(network=in_order(style.unit_names(table["unit"])), removed=removed).sort_values("budget")
    looks = palette(table["budget"], "viridis", "{:g} dense epochs", linewidth=0, pointsize=3)
    x = Axis("distance", "a task's distance (nats)", "row")
    y = Axis("points", "filter minus channel\n(points of accuracy)", zero=True)
    height = 0.8 + 1.6 * table["unit"].nunique()
    return panels(curves_by(table, "budget", looks), x, y, height, columns=5, col="removed", row="network")


@in_style
def contact_sheet(names: Sequence[str], images: Sequence[np.ndarray]) -> Figure:
    """What the tasks look like: a row of pictures per task, in the stream's order from top to bottom.

    `names` are what the rows are called, `images` uint8 (N, H, W, 3) each.
    """
    count = min(len(row) for row in images)
    narrow = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure = Figure(figsize=(style.PAGE_WIDTH, 0.85 * style.PAGE_WIDTH / count * len(images)), layout=narrow)
    grid = figure.subplots(
        len(images), count, squeeze=False, subplot_kw={"xticks": [], "yticks": [], "frame_on": False}
    )
    for row, name, pictures in zip(grid, names, images, strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, pixels in zip(row, pictures, strict=False):
            axes.imshow(pixels)
    return figure
