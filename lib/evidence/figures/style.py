"""One style for all figures, panels of curves in it, and how a figure is shown and saved."""

import functools
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import seaborn.objects as so
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lib.common.files import atomic_path, write_json
from lib.common.paths import FIGURES
from lib.common.provenance import provenance
from lib.evidence.records import stacked

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.9  # inches, of a two-column page
BUDGET = "budget (dense epochs)"
# Pruning ratio 0..1, light to dark, without the yellow that is the front's.
RATIO_COLOURS = ListedColormap(mpl.colormaps["plasma_r"](np.linspace(0.15, 0.95, 256)))
_CRITERIA = ["activation", "l1", "l2", "random", "activation_images", "bn_scale", "fpgm", "lamp"]
_MARKERS = dict(zip(_CRITERIA, "osDX*phd", strict=True))
_STYLE = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", font_scale=8 / 9.6),
    "axes.titlesize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


@contextmanager
def style() -> Iterator[None]:
    """8-point type, thin axes, no box, whatever matplotlibrc and the caller say; then theirs again."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def in_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make `draw` draw in the style. What its docstring says first is the figure's alternative text."""

    @functools.wraps(draw)
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


class Curve(NamedTuple):
    """Rows of a table, how they are drawn (properties of seaborn's Line), and their name in the legend."""

    rows: pd.DataFrame
    look: dict
    label: str | None = None


def panels(
    curves: Iterable[Curve],
    x: tuple[str, str],
    y: tuple[str, str],
    *,
    height: float,
    width: float = PAGE_WIDTH,
    columns: int = 3,
    share: tuple[bool | str, bool | str] = (True, True),
    zero: bool = False,
    **facets: str | int,
) -> Figure:
    """Curves in panels: a column of the rows for `col` and `row`, or `col` and `wrap`.

    `x` and `y` are a column and its label, `zero` is whether there is a line at 0. Intervals are drawn for
    rows that have columns low and high. The legend below has `columns`.
    """
    curves = list(curves)
    table = stacked((curve.rows.assign(curve=place) for place, curve in enumerate(curves)), "some to draw")
    figure = Figure(figsize=(width, height), layout="constrained")
    plot = so.Plot(table, x=x[0], y=y[0]).facet(**facets).share(x=share[0], y=share[1]).theme(_STYLE)
    for place, (_, look, label) in enumerate(curves):
        rows = table[table["curve"] == place]
        plot = plot.add(so.Line(**({"marker": "o", "pointsize": 4} | look)), data=rows, label=label)
        if "low" in rows and rows["low"].notna().any():
            bars = so.Range(color=look["color"], linewidth=0.6, alpha=0.5)
            plot = plot.add(bars, data=rows, ymin="low", ymax="high")
    plot.label(x=x[1], y=y[1]).on(figure).plot()
    for axes in figure.axes:
        axes.set_visible(len(axes.lines) > 0)
        axes.set_title(axes.get_title().replace(" | ", "\n"))
        if zero:
            axes.axhline(0, color="black", linewidth=0.8, zorder=0)
    legend = figure.legends.pop()
    names = [text.get_text() for text in legend.get_texts()]
    entries = {name: handle for name, handle in zip(names, legend.legend_handles, strict=True) if handle}
    where = {"loc": "outside lower center", "ncols": columns, "columnspacing": 1}
    figure.legend(list(entries.values()), list(entries), **where)
    return figure


def coloured(table: pd.DataFrame, by: str, palette: str, name: str = "{}", **look: object) -> list[Curve]:
    """A curve for every value of the column `by`, in the colours of a palette; `name` formats its label."""
    groups = table.groupby(by, sort=False)
    coloured = zip(sns.color_palette(palette, len(groups)), groups, strict=True)
    return [Curve(rows, {"color": colour} | look, name.format(value)) for colour, (value, rows) in coloured]


def in_order(names: pd.Series) -> pd.Series:
    """Names of panels that keep their order."""
    return names.astype(pd.CategoricalDtype(names.unique()))


def budget_axis(axes: Axes, budgets: Iterable[float]) -> None:
    """A tick per budget in doublings; where there are many, every other has a number."""
    ticks = sorted(set(budgets))
    axes.set_xscale("log", base=2)
    every = 1 if len(ticks) <= 5 else 2
    axes.set_xticks(ticks, [f"{b:g}" if place % every == 0 else "" for place, b in enumerate(ticks)])
    axes.xaxis.set_minor_formatter(NullFormatter())


def unit_names(units: pd.Series) -> pd.Series:
    """What units are called on a figure."""
    return units.str.replace("@", " at ") + " px"


def share_look(ratio: float) -> tuple[dict, str]:
    """How a share of filters removed is drawn, and what it is called."""
    colour = RATIO_COLOURS(ratio) if ratio else "black"
    return {"color": colour}, f"{ratio:.0%} removed" if ratio else "dense"


def look_of(arm: pd.Series) -> dict:
    """How an arm of `records.arms` is drawn.

    Dense is black, another network blue, fewer pixels green, others are coloured by ratio; the marker tells
    the criterion, hollow is unrepaired, a dotted line a scope that ranks the filters of many sites together,
    a thick one the granularity channel; a plus on a line of dashes and dots is a probe.
    """
    network, pixels = arm["unit"].split("@")
    look: dict[str, Any] = {"color": "black"}
    if arm["backbone"] != network:
        look = {"color": "tab:blue", "marker": "^"}
    elif arm["image_size"] != int(pixels):
        look = {"color": "tab:green", "marker": "v", "alpha": min(1, arm["image_size"] / int(pixels))}
    elif arm["ratio"]:
        look = {"color": RATIO_COLOURS(arm["ratio"]), "marker": _MARKERS.get(arm["criterion"], "o")}
        look |= {"linestyle": (0, (3, 1.5))} if arm["criterion"] != "activation" else {}
        look |= {"linestyle": ":"} if arm["scope"] != "uniform" else {}
        look |= {"fillcolor": "white"} if arm["repair"] == "none" else {}
        look |= {"linewidth": 2.5} if arm["granularity"] == "channel" else {}
    return look | ({"marker": "P", "linestyle": "-."} if arm["learner"] == "probe" else {})
