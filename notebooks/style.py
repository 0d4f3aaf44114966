"""One style for all figures, and how a figure is shown and saved."""

import io
from collections.abc import Callable, Iterable
from functools import partial, wraps

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.common.files import atomic_path, write_json
from lib.common.paths import FIGURES
from lib.common.provenance import provenance

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.9  # inches, of a two-column page
TYPE = 8  # points, everywhere
_STYLE = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "figure.titlesize", "legend.fontsize"), TYPE),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), TYPE),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"figure.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 4},
    **{"lines.linewidth": 1.4, "lines.markersize": 3.5, "savefig.dpi": 200, "pdf.fonttype": 42},
}
# 8-point type, thin axes, no box, whatever matplotlibrc and the caller say; then theirs again.
style = partial(mpl.style.context, _STYLE, after_reset=True)

# A colour says where a network comes from, a broken line that it is probed.
_COLOURS = {"pruned": "#c8440e", "dense": "#222222", "fewer pixels": "#00795c", "other network": "#0069a8"}


def colour_of(family: str) -> str:
    """The colour of one of records.FAMILIES or CONTROLS."""
    return _COLOURS.get(family.partition(",")[0], "#777777")


def dashes_of(family: str) -> str:
    """The line style of one of records.FAMILIES."""
    return "--" if family.endswith("probe") else "-"


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


def panels(count: int, height: float, message: str, width: float = PAGE_WIDTH, **shared: bool) -> tuple[Figure, list]:
    """A figure whose title is its message, and `count` axes side by side; `shared` as for `subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if message:
        figure.suptitle(message, x=0.01, ha="left")
    return figure, list(figure.subplots(1, count, squeeze=False, **shared)[0])


def budget_axis(axes: Axes, budgets: Iterable[float], macs: pd.Series | None = None) -> None:
    """A logarithmic axis with a tick per budget; with the MACs of each (by budget), these are named below it."""
    ticks = sorted(set(budgets))
    names = [budget_said(budget) + (f"\n{short(macs[budget])}" if macs is not None else "") for budget in ticks]
    axes.set_xscale("log")
    axes.set_xticks(ticks, names)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("budget of a task (dense images / MACs)" if macs is not None else "budget (dense images)")


def budget_said(budget: float) -> str:
    """A budget in few characters: 16, 4k."""
    return f"{budget / 1024:.0f}k" if budget >= 1024 and budget % 1024 == 0 else f"{budget:g}"


def images_said(count: float) -> str:
    """A number of training images, or infinite for all of a task's: 1,600."""
    return "all" if np.isinf(count) else f"{count:,.0f}"


def short(macs: float) -> str:
    """MACs with an SI prefix and two or three digits: 6.0 G."""
    power = max(int(np.log10(macs) // 3), 0)
    value = macs / 1000**power
    return f"{value:.{0 if value >= 9.95 else 1}f} {' kMGTP'[power]}".strip()


def label_ends(axes: Axes, ends: dict[str, tuple[float, float, str]], gap: float = TYPE + 1.5, side: int = 1) -> None:
    """Name lines at their ends (x, y, colour), in data coordinates, moved apart vertically to `gap` points.

    Names stand to the right, or with a `side` of -1 to the left.

    The last artists to be drawn: where the names lie depends on the axes' limits.
    """
    axes.figure.draw_without_rendering()
    scale = 72 / axes.figure.dpi
    heights = {name: axes.transData.transform((x, y))[1] * scale for name, (x, y, _) in ends.items()}
    for name, height in spread(heights, gap).items():
        x, y, colour = ends[name]
        look = {"color": colour, "va": "center", "ha": "left" if side > 0 else "right", "annotation_clip": False}
        axes.annotate(name, (x, y), (5 * side, height - heights[name]), textcoords="offset points", **look)


def spread(heights: dict[str, float], gap: float) -> dict[str, float]:
    """Heights at least `gap` apart, in the same order, moved as little as a stack of boxes lets them."""
    order = sorted(heights, key=heights.__getitem__)
    stacks: list[list[str]] = []
    for name in order:  # boxes that touch become one stack around the mean of where they want to be
        stacks.append([name])
        while len(stacks) > 1 and _bottom(stacks[-1], heights, gap) < _bottom(stacks[-2], heights, gap) + gap * len(
            stacks[-2]
        ):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    return {name: _bottom(stack, heights, gap) + gap * place for stack in stacks for place, name in enumerate(stack)}


def _bottom(stack: list[str], heights: dict[str, float], gap: float) -> float:
    return sum(heights[name] for name in stack) / len(stack) - gap * (len(stack) - 1) / 2
