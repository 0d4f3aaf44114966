"""One style for all figures, panels of curves in it, and how a figure is shown and saved."""

import io
import re
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
import seaborn as sns
import seaborn.objects as so
from IPython.display import Image
from matplotlib.figure import Figure

from lib.common.files import atomic_path, write_json
from lib.common.paths import FIGURES
from lib.common.provenance import provenance
from lib.evidence.records import arms, some

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.9  # inches, of a two-column page
_STYLE = {
    **sns.axes_style("ticks", {"axes.spines.top": False, "axes.spines.right": False}),
    **sns.plotting_context("paper", 8 / 9.6, {"axes.titlesize": 7, "legend.fontsize": 6.5}),
    **{"legend.frameon": False, "savefig.dpi": 200, "pdf.fonttype": 42},
}
# 8-point type, thin axes, no box, whatever matplotlibrc and the caller say; then theirs again.
style = partial(mpl.style.context, _STYLE, after_reset=True)


def in_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make `draw` draw in the style. What its docstring says first is the figure's alternative text."""

    @wraps(draw)
    def drawn(*arguments: object, **named: object) -> Figure:
        with style():
            figure = draw(*arguments, **named)
        figure.set_label(" ".join(str(draw.__doc__).split("\n\n")[0].split()))
        return figure

    return drawn


def picture(figure: Figure) -> Image:
    """The figure as a notebook shows it, with an alternative text."""
    file = io.BytesIO()
    with style():
        figure.savefig(file, format="png", dpi=110)
    return Image(file.getvalue(), alt=figure.get_label())


def save_figure(figure: Figure, name: str, data: pd.DataFrame, profile: str) -> Image:
    """Write `figures/<profile>/<name>` as csv (the source data), json (provenance), png and pdf.

    Writes nothing when `profile` is empty. The pdf comes last: where it is, the others are. Returns the
    picture.
    """
    if profile:
        stem = FIGURES / profile / name
        with atomic_path(stem.with_suffix(".csv")) as temporary:
            data.to_csv(temporary, index=False, float_format="%.6g")
        write_json(stem.with_suffix(".json"), {"notebook": f"notebooks/{name}.ipynb", **provenance()})
        for suffix, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
            with style(), atomic_path(stem.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, metadata=metadata)
    return picture(figure)


# --- panels of curves ---------------------------------------------------------------------------------


class Axis(NamedTuple):
    """The column along an axis, its label, which panels share it (all, none, "row", "col"), and if a line marks 0."""

    column: str
    label: str
    shared: bool | str = True
    zero: bool = False


class Look(NamedTuple):
    """How a curve is drawn (properties of seaborn's Line), and its name in the legend."""

    line: dict
    label: str | None = None


BUDGET = Axis("budget", "budget (dense epochs)")


def panels(
    table: pd.DataFrame, by: Any, looks: dict, x: Axis, y: Axis, *, height: float, columns: int = 3, **facets: Any
) -> Figure:
    """Curves in panels: one for each value of the column, or columns, `by`, the first of `looks` behind the others.

    Panels are told apart by the columns `col` and `row`, or `col` and `wrap`, in the table's order. Intervals are
    drawn for rows that have columns low and high. The legend below has `columns`. The figure is as wide as a page,
    or `width`. Raises MissingArms where there is nothing to draw.
    """
    table = some(table, "some to draw").reset_index(drop=True)
    curves = dict(list(table.groupby(by)))
    figure = Figure(figsize=(facets.pop("width", PAGE_WIDTH), height), layout="constrained")
    plot = so.Plot(table, x=x.column, y=y.column).facet(**facets).share(x=x.shared, y=y.shared).theme(_STYLE)
    drawn = {value: look for value, look in looks.items() if value in curves}
    for value, (line, label) in drawn.items():
        rows = curves[value]
        plot = plot.add(so.Line(**({"marker": "o", "pointsize": 4} | line)), data=rows, label=label)
        if "low" in rows and rows["low"].notna().any():
            plot = plot.add(so.Range(color=line["color"], linewidth=0.6, alpha=0.5), data=rows, ymin="low", ymax="high")
    plot.label(x=x.label, y=y.label).on(figure).plot()
    for axes in figure.axes:
        axes.set_visible(len(axes.lines) > 0)
        axes.set_title(re.sub(r"@(\d+)", r" at \1 px", axes.get_title()).replace(" | ", "\n"))
        if y.zero:
            axes.axhline(0, color="black", linewidth=0.8, zorder=0)
        if x.column == BUDGET.column:
            budget_axis(axes, pd.concat([curves[value]["budget"] for value, look in drawn.items() if look.label]))
    old = figure.legends.pop()
    entries = {text.get_text(): key for text, key in zip(old.get_texts(), old.legend_handles, strict=True) if key}
    figure.legend([*entries.values()], [*entries], loc="outside lower center", ncols=columns, columnspacing=1)
    return figure


def budget_axis(axes: mpl.axes.Axes, budgets: Iterable[float]) -> None:
    """A tick per budget in doublings; where there are many, every other has a number."""
    ticks = sorted(set(budgets))
    every = 1 if len(ticks) <= 5 else 2
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{b:g}" if place % every == 0 else "" for place, b in enumerate(ticks)])
    axes.tick_params(axis="x", which="minor", labelbottom=False)


# --- looks --------------------------------------------------------------------------------------------

_MARKERS = dict(activation="o", l1="s", l2="D", random="X", activation_images="*", bn_scale="p", fpgm="h", lamp="d")


def palette(values: Iterable, name: str, label: str = "{}", **line: Any) -> dict[Any, Look]:
    """Looks in the colours of a palette for the values there are, as they come; `label` formats a value."""
    found = list(dict.fromkeys(values))
    colours = zip(found, sns.color_palette(name, len(found)), strict=True)
    return {value: Look({"color": colour} | line, label.format(value)) for value, colour in colours}


def share_look(ratio: float) -> Look:
    """How a share of filters removed is drawn: light to dark, without the yellow that is the front's."""
    colour = mpl.colormaps["plasma_r"](0.15 + 0.8 * ratio) if ratio else "black"
    return Look({"color": colour}, f"{ratio:.0%} removed" if ratio else "dense")


def arm_looks(records: pd.DataFrame, label: str = "{}") -> dict[str, Look]:
    """How arms are drawn, as they are ordered, behind them a front and before them the adviser.

    Dense is black, another network blue, fewer pixels green, others are coloured by ratio; the marker tells
    the criterion, hollow is unrepaired, a dotted line a scope that ranks the filters of many sites together,
    a thick one the granularity channel; a plus on a line of dashes and dots is a probe.
    """
    front = Look({"color": "gold", "linewidth": 5, "marker": "", "alpha": 0.6}, "front")
    looks = {name: Look(_line(arm), label.format(arm["label"])) for name, arm in arms(records).iterrows()}
    adviser = Look({"color": "tab:cyan", "linewidth": 3.5, "alpha": 0.8, "marker": ""}, "adviser")
    return {"front": front, **looks, "adviser": adviser}


def _line(arm: pd.Series) -> dict:
    network, pixels = arm["unit"].split("@")
    line: dict[str, Any] = {"color": "black"}
    if arm["backbone"] != network:
        line = {"color": "tab:blue", "marker": "^"}
    elif arm["image_size"] != int(pixels):
        line = {"color": "tab:green", "marker": "v", "alpha": min(1, arm["image_size"] / int(pixels))}
    elif arm["ratio"]:
        line = share_look(arm["ratio"]).line | {"marker": _MARKERS.get(arm["criterion"], "o")}
        line |= {"linestyle": (0, (3, 1.5))} if arm["criterion"] != "activation" else {}
        line |= {"linestyle": ":"} if arm["scope"] != "uniform" else {}
        line |= {"fillcolor": "white"} if arm["repair"] == "none" else {}
        line |= {"linewidth": 2.5} if arm["granularity"] == "channel" else {}
    return line | ({"marker": "P", "linestyle": "-."} if arm["learner"] == "probe" else {})
