"""Figures: the same whatever the caller has set, whole with little data, and described in words."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from test_analysis import ERRORS, LEARNT, elsewhere, records_of
from test_scaling import CROSSING
from test_scaling import records_of as power_laws

import pictures
from lib.common.paths import ROOT
from lib.evidence import adviser, figures, scaling, style
from lib.evidence.analysis import along_the_stream, improvement_over_dense, learners_compared, mean_errors
from lib.evidence.records import MissingArms, at_shared_budgets, described, learner_names


def error_figure() -> Figure:
    records = records_of(ERRORS)
    return figures.errors(records, mean_errors(records), scaling.front(records))


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
        return style.picture(error_figure()).data


@pytest.mark.parametrize("name", SETTINGS)
def test_a_figure_is_the_same_whatever_is_set_and_leaves_it_so(name, expected):
    with mpl.rc_context():
        mpl.rcdefaults()
        SETTINGS[name]()
        before = dict(mpl.rcParams)
        assert style.picture(error_figure()).data == expected
        assert dict(mpl.rcParams) == before
    assert not plt.get_fignums()


def test_a_figure_that_fails_leaves_the_settings_as_they_were():
    before = dict(mpl.rcParams)
    with pytest.raises(ValueError, match="Could not interpret value `budget`"):
        figures.errors(records_of(ERRORS), pd.DataFrame({"arm": ["dense"]}))
    assert dict(mpl.rcParams) == before


def test_a_saved_figure_has_its_data_and_provenance_and_is_shown_with_words(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "FIGURES", tmp_path)
    figure, data = error_figure(), pd.DataFrame({"error": [0.125]})
    shown = style.save_figure(figure, "02", data, "mine")
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == ["02.csv", "02.json", "02.pdf", "02.png"]
    assert (tmp_path / "mine" / "02.csv").read_text() == "error\n0.125\n"
    assert shown.alt == figure.get_label() and shown.alt.startswith("Mean test error against the budget")
    first = (tmp_path / "mine" / "02.pdf").read_bytes()
    style.save_figure(error_figure(), "02", data, "mine")
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
    """Every figure of records, by its name."""
    means, gains = mean_errors(records), improvement_over_dense(records)
    found = {
        "errors": figures.errors(records, means, scaling.front(records)),
        "by task": figures.error_by_task(records),
        "gains": figures.improvement(records, gains),
        "points": figures.improvement(records, gains, figures.POINTS),
        "learners": figures.learners(learners_compared(records)),
        "stream": figures.along_the_stream(
            along_the_stream(records[records["seed"] == 0]).assign(learner=learner_names(records))
        ),
        "ratio": figures.best_ratio(scaling.by_granularity(records, scaling.error_by_ratio)),
        "floors": figures.asymptotes(means, scaling.by_granularity(records, scaling.asymptotes)),
    }
    regrets = (
        adviser.regrets(at_shared_budgets(records)).assign(choice="all") if records["event"].nunique() > 1 else None
    )
    if regrets is not None:
        found["regret"] = figures.regret(regrets, records, ["ratio 0.5"])
    return found


def small(records: pd.DataFrame) -> pd.DataFrame:
    return records.assign(total_macs=1000)


SIZES = {
    "as it is": lambda r: r,
    "one task": lambda r: r[r["event"] == 0],
    "one seed": lambda r: r[r["seed"] == 0],
    "one budget": lambda r: r[r["budget"] == 1.0],
    "one of all": lambda r: r[(r["event"] == 0) & (r["seed"] == 0) & (r["budget"] == 1.0)],
    "two tasks of one name": lambda r: r.assign(task="flowers"),
    "seeds that differ": lambda r: r[(r["seed"] == 0) | (r["ratio"] == 0)],
}


@pytest.mark.parametrize("name", SIZES)
def test_every_figure_is_drawn_of_few_records(name):
    for figure in all_figures(SIZES[name](small(power_laws(CROSSING)))).values():
        assert figure.get_label() and style.picture(figure).data.startswith(b"\x89PNG")
        assert all(axes.lines for axes in figure.axes if axes.get_visible())


TOLD_APART = ["flowers, event 0", "task1", "flowers, event 2", "task3"]


def test_tasks_of_one_name_have_panels_of_their_own():
    records = power_laws(CROSSING)
    records["task"] = records["task"].replace({"task0": "flowers", "task2": "flowers"})
    legend = figures.one_run(records[(records["ratio"] == 0) & (records["seed"] == 0)]).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == TOLD_APART
    titles = [axes.get_title() for axes in figures.error_by_task(records).axes]
    assert titles == TOLD_APART


def test_what_is_drawn_is_what_the_table_says():
    records = records_of(ERRORS)
    figure = figures.errors(records, mean_errors(records))
    drawn = {tuple(line.get_ydata()) for line in figure.axes[0].lines}
    assert drawn == {(0.7, 0.5), (0.55, 0.55)}
    (bars, *_) = figure.axes[0].collections
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([0.6, 0.8])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "50 %, l1"]


def test_arms_of_two_units_have_columns_in_their_order_and_each_name_once():
    first = records_of(ERRORS)
    records = pd.concat([first, elsewhere(first, arm="other " + first["arm"])])
    figure = figures.errors(records, mean_errors(records))
    assert [axes.get_title() for axes in figure.axes] == ["net at 64 px\nfilter", "other at 64 px\nfilter"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "50 %, l1"]


def test_what_a_profile_has_no_arms_for_is_said():
    dense = records_of({key: errors for key, errors in ERRORS.items() if key[0] == "dense"})
    with pytest.raises(MissingArms, match="expected some to draw"):
        figures.improvement(dense, improvement_over_dense(dense))
    with pytest.raises(MissingArms, match="expected ratios of one network"):
        scaling.by_granularity(records_of(ERRORS), scaling.best_ratio)


def test_networks_are_drawn_with_few_rows():
    sites = {"before": [8, 16], "after": [4, 8], "macs_before": [10, 20], "macs_after": [3, 6]}
    table = pd.DataFrame(sites).assign(ratio=0.5)
    fidelity = pd.DataFrame(
        {"backbone": "net", "varied": ["criterion", "repair"], "name": ["l1", "none"], "ratio": 0.5, "fidelity": -0.01}
    )
    time = pd.DataFrame(
        {"backbone": "net", "work": "forward", "granularity": ["filter", "channel"], "share_of_macs": 0.5}
    ).assign(share_of_time=0.6)
    distance = pd.DataFrame({"unit": "net@64", "ratio": [0.5, 0.25], "budget": 1.0, "distance": 0.5, "points": 3})
    tasks = np.zeros((2, 4, 4, 3), np.uint8)
    for figure in (
        pictures.filters_and_macs(table),
        pictures.fidelity_against_ratio(fidelity),
        pictures.time_against_macs(time),
        pictures.granularity_by_distance(distance),
        pictures.contact_sheet(["a", "a"], [tasks, tasks]),
    ):
        assert figure.get_label() and style.picture(figure).data.startswith(b"\x89PNG")
    assert [text.get_text() for text in pictures.fidelity_against_ratio(fidelity).axes[0].texts] == ["0.0"]


def test_learners_that_were_searched_are_told_apart():
    figure = figures.learners(learners_compared(described(LEARNT)))
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert names == {"independent", "previous", "independent, searched"}
