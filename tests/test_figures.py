"""Figures: the same whatever the caller has set, whole with little data, and described in words."""

from itertools import pairwise

import drawing
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import style
from bs4 import BeautifulSoup
from helpers import ERRORS, records_of
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from sentences import size_title
from tables import alternatives, by_task_size, learners_compared, networks
from test_scaling import ROUTE, shifting

from lib.common.paths import ROOT
from lib.evidence import scaling
from lib.evidence.analysis import leads
from lib.evidence.reports import over_the_stream

PROBED = {("dense probe", 64): [0.4, 0.4, 0.4], ("half probe", 64): [0.3, 0.3, 0.3]}
CONTROL = {("pixels", 64): [0.6, 0.6, 0.6]}


def some_records() -> pd.DataFrame:
    """Dense and pruned networks, fine-tuned, probed, and half trained; another criterion; a control."""
    tables = records_of(ERRORS), records_of(PROBED, learner="probe"), records_of(CONTROL, learner="pixels")
    others = {"norms": {"learner": "norms"}, "l1": {"criterion": "l1"}}
    changed = [records_of({(f"half {name}", 64): [0.5, 0.5, 0.4]}, **fields) for name, fields in others.items()]
    return pd.concat([*tables, *changed], ignore_index=True)


def front_figure() -> Figure:
    return drawing.fronts({"the pocket stream": some_records()}, "A message")


SETTINGS = {
    "usetex": lambda: mpl.rcParams.update({"text.usetex": True}),
    "a theme": lambda: sns.set_theme(style="darkgrid", context="poster", palette="husl"),
    "sizes": lambda: mpl.rcParams.update({"font.size": 30, "figure.dpi": 300, "savefig.dpi": 20}),
    "a tight box": lambda: mpl.rcParams.update({"savefig.bbox": "tight", "figure.autolayout": True}),
    "a style": lambda: plt.style.use("dark_background"),
    "a font": lambda: mpl.rcParams.update({"font.family": "monospace", "axes.unicode_minus": False}),
    "axes": lambda: mpl.rcParams.update({"axes.grid": True, "axes.formatter.use_locale": True}),
    "interaction": plt.ion,
}


@pytest.fixture(scope="module")
def expected() -> bytes:
    with mpl.rc_context():
        mpl.rcdefaults()
        return style.picture(front_figure()).data


@pytest.mark.parametrize("name", SETTINGS)
def test_a_figure_is_the_same_whatever_is_set_and_leaves_it_so(name, expected):
    with mpl.rc_context():
        mpl.rcdefaults()
        SETTINGS[name]()
        before = dict(mpl.rcParams)
        assert style.picture(front_figure()).data == expected
        assert dict(mpl.rcParams) == before
    assert not plt.get_fignums()


def test_a_figure_that_fails_leaves_the_settings_as_they_were():
    before = dict(mpl.rcParams)
    with pytest.raises(KeyError):
        drawing.fronts({"empty": pd.DataFrame({"arm": ["dense"]})}, "A message")
    assert dict(mpl.rcParams) == before


def test_a_saved_figure_has_its_data_and_provenance_and_is_shown_with_words(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "FIGURES", tmp_path)
    figure, data = front_figure(), pd.DataFrame({"error": [0.125]})
    shown = style.save_figure(figure, "02", data, "mine")
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == ["02.csv", "02.json", "02.pdf", "02.png"]
    assert (tmp_path / "mine" / "02.csv").read_text() == "error\n0.125\n"
    assert shown.alt == figure.get_label() and shown.alt.startswith("Accuracy against compute")
    first = (tmp_path / "mine" / "02.pdf").read_bytes()
    style.save_figure(front_figure(), "02", data, "mine")
    assert (tmp_path / "mine" / "02.pdf").read_bytes() == first
    style.save_figure(figure, "03", data, "")
    assert not (tmp_path / "mine" / "03.csv").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda file: file.stem)
def test_every_picture_of_a_notebook_has_words(file):
    page, _ = HTMLExporter(template_name="classic").from_filename(str(file))
    alts = [tag.get("alt", "") for tag in BeautifulSoup(page, "html.parser").find_all("img")]
    assert all(alt and not alt.startswith("No description") for alt in alts)
    text = file.read_text()
    assert len(alts) == text.count('"image/png": "') + text.count("<img src=")
    assert "--to html --template classic" in (ROOT / "Makefile").read_text()


def all_figures(records: pd.DataFrame) -> dict[str, Figure]:
    """Every figure of such records, by its name."""
    table = scaling.sizes(records).assign(
        family=lambda rows: rows["arm"].map(dict(zip(records["arm"], records["family"], strict=True)))
    )
    lead = leads(records, ["half"], ["dense"])
    tuned = pd.DataFrame(
        {"ratio": 0.5, "budget": 64, "body_rate": [1e-3, 1e-2] * 2, "head_rate": [1e-2] * 2 + [1e-1] * 2}
    )
    return {
        "fronts": drawing.fronts({"one": records, "two": records}, "A message"),
        "map": drawing.task_map({"over dense": lead, "over all": lead}, "A message"),
        "passes": drawing.image_passes(table, "A message"),
        "learners": drawing.learners(learners_compared(records), "A message"),
        "dots": drawing.dots(alternatives(records), "A message", "points"),
        "distance": drawing.by_distance(
            lead.assign(panel="one", stream="pocket", distance=[0.1, 0.2, 0.3] * (len(lead) // 3)), "A message"
        ),
        "rates": drawing.rates(
            tuned.assign(error_dev=[0.1, 0.2, 0.3, 0.4]),
            pd.DataFrame({"ratio": [0.5], "budget": [64], "body": [1e-3], "head": [1e-2]}),
            "A message",
        ),
        "stream": drawing.over_the_stream({"all events": over_the_stream(records)}, "A message"),
        "networks": drawing.networks({"one": networks(records)}, "A message"),
        "sizes": drawing.task_sizes(by_task_size(records.assign(train_images=100), records), "A message"),
        "run": drawing.one_run(records[records["arm"] == "dense"]),
    }


def test_every_figure_has_its_message_words_and_8_point_type():
    sized = {
        "iso": drawing.iso_flop(scaling.sizes(shifting()), {ROUTE: scaling.best_sizes(shifting(), ROUTE)}, "A message")
    }
    for name, figure in {**all_figures(some_records()), **sized}.items():
        assert style.picture(figure).data.startswith(b"\x89PNG") and figure.get_label()
        assert name == "run" or figure.get_suptitle() == "A message"
        texts = [text for text in figure.findobj(mpl.text.Text) if text.get_visible() and text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= style.TYPE
        named = {text.get_text() for axes in figure.axes for text in axes.texts}
        assert not any("_" in word for word in named)  # no names of the code


def test_what_is_drawn_is_what_the_table_says():
    axes, *_ = front_figure().axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["dense, fine-tuned"] == pytest.approx([110 / 3, 160 / 3])
    assert drawn["pruned, probe"] == pytest.approx([70]) and drawn["raw pixels"] == pytest.approx([40])
    (cells, *_) = (
        drawing.task_map({"one": leads(records_of(ERRORS), ["half"], ["dense"])}, "A message").axes[0].collections
    )
    np.testing.assert_allclose(cells.get_array().reshape(3, 2), [[10, -10], [20, 0], [10, -10]], atol=1e-9)


def test_names_at_the_ends_of_lines_do_not_touch():
    heights = {"a": 10.0, "b": 11.0, "c": 12.0, "d": 100.0}
    placed = style.spread(heights, 9.5)
    ordered = [placed[name] for name in "abcd"]
    assert all(high - low >= 9.5 - 1e-9 for low, high in pairwise(ordered))
    assert placed["d"] == 100 and np.mean(ordered[:3]) == pytest.approx(11)


@pytest.mark.parametrize("within, said", [(True, ": as the budget to the 0.50"), (False, "")])
def test_a_slope_is_a_title_only_where_every_optimum_is_inside(within, said):
    best = pd.DataFrame({"budget": [16, 64], "within": [True, within], "slope": 0.5, "slope_low": 0.2})
    assert size_title({ROUTE: best}) == f"The more compute, the larger the best network by {ROUTE}{said}"
