"""Leads, intervals, choices and fronts, on tables small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest
from helpers import ERRORS, records_of
from scipy import stats

from lib.common.errors import UserError
from lib.evidence import analysis
from lib.evidence.analysis import (
    accuracies,
    carried_on,
    chosen,
    estimate,
    front,
    holm,
    leads,
    mean_accuracy,
    summarised,
)
from lib.evidence.records import (
    MissingArms,
    arms,
    at_budgets_of_all_families,
    at_shared_budgets,
    described,
    load_records,
)
from lib.runs.profiles import arms_of
from paper.build import pooled


def mean(values: np.ndarray) -> float:
    return values.mean()


def test_the_interval_of_a_mean_is_the_t_interval():
    values = np.random.default_rng(0).normal(3, 2, 12)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert estimate(mean, values) == pytest.approx((values.mean(), *expected))
    assert np.isnan(estimate(mean, values[:1])[1:]).all()


def test_the_interval_of_a_mean_covers_what_it_says():
    """Of means of ten draws, whose truth is 0."""
    draws = np.random.default_rng(0).normal(size=(1000, 10))
    covered = np.mean([low <= 0 <= high for _, low, high in (estimate(mean, row) for row in draws)])
    assert 0.93 < covered < 0.97


def test_an_interval_of_a_relative_gain_is_paired():
    """Tasks differ much, one gains a tenth of the other's accuracy on each: no width."""
    theirs = np.linspace(20, 90, 8)
    assert estimate(analysis.relative, 1.1 * theirs, theirs) == pytest.approx((10, 10, 10))


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.6])) == pytest.approx([1, 1])


def test_a_lead_is_paired_and_says_what_both_reach():
    row = summarised(leads(records_of(ERRORS), ["half"], ["dense"])).set_index("budget").loc[64]
    points = np.array([10, 20, 10])
    assert row["points"] == pytest.approx(points.mean()) and row["tasks"] == 3
    low, high = stats.t.interval(0.95, 2, points.mean(), stats.sem(points))
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["p"] == pytest.approx(stats.ttest_1samp(points, 0).pvalue)
    assert (row["accuracy"], row["over"]) == pytest.approx((50, 110 / 3))
    assert row["relative"] == pytest.approx(100 * (150 / 110 - 1))


@pytest.mark.parametrize(
    ("interval", "said"), [((1, 3), "ahead"), ((-3, -1), "behind"), ((-0.5, 0.9), "equal"), ((-0.5, 1.1), "open")]
)
def test_what_an_interval_says(interval, said):
    assert analysis.verdict(analysis.Estimate(np.mean(interval), *interval)) == said


def test_a_task_has_no_say_in_its_own_choice():
    """`steady` is the best on all but the first task, which `lucky` knows by heart."""
    means = pd.DataFrame({0: [50, 90], 1: [50, 40], 2: [50, 40]}, index=["steady", "lucky"])
    tasks = pd.Series(["a", "b", "c"])
    assert chosen(means, tasks).to_list() == ["steady", "lucky", "lucky"]
    assert chosen(means, tasks, hindsight=True).to_list() == ["lucky"] * 3
    # Of one name, the first two have no say in either's choice.
    assert chosen(means, pd.Series(["a", "a", "c"])).to_list() == ["steady", "steady", "lucky"]
    # And count once: 70 against 65, where by events it would be 63 against 73.
    twice = pd.DataFrame({0: [50, 90], 1: [50, 90], 2: [90, 40]}, index=["steady", "lucky"])
    assert chosen(twice, pd.Series(["a", "a", "c"]), hindsight=True).to_list() == ["steady"] * 3
    errors = {("steady", 64): [0.5, 0.5, 0.5], ("lucky", 64): [0.1, 0.6, 0.6], ("dense", 64): [0.7, 0.7, 0.7]}
    found = leads(records_of(errors), ["steady", "lucky"], ["dense"])
    assert found["arm"].to_list() == ["steady", "lucky", "lucky"]
    assert found["points"].to_list() == pytest.approx([20, 10, 10])
    assert leads(records_of(errors), ["steady", "lucky"], ["dense"], hindsight=True)[
        "points"
    ].to_list() == pytest.approx([60, 10, 10])


def test_a_rival_is_the_best_in_hindsight():
    errors = {("steady", 64): [0.5, 0.5, 0.5], ("lucky", 64): [0.1, 0.6, 0.6], ("half", 64): [0.4, 0.4, 0.4]}
    found = leads(records_of(errors), ["half"], ["steady", "lucky"])
    assert found["other"].to_list() == ["lucky"] * 3
    assert found["points"].to_list() == pytest.approx([-30, 20, 20])


def test_events_of_one_name_are_one_task():
    found = leads(records_of(ERRORS), ["half"], ["dense"]).query("budget == 64")
    twice = pd.concat([found, found.iloc[:1].assign(event=9, points=30.0)])
    row = summarised(twice).iloc[0]
    assert row["tasks"] == 3 and row["points"] == pytest.approx((20 + 20 + 10) / 3)


def test_arms_are_compared_over_the_seeds_that_both_have():
    more = {key: [error + 0.1 for error in errors] for key, errors in ERRORS.items() if key[0] == "dense"}
    records = pd.concat([records_of(ERRORS), records_of(more, seed=1)])
    assert leads(records, ["half"], ["dense"]).query("budget == 64")["points"].to_list() == pytest.approx([10, 20, 10])
    means = mean_accuracy(records).set_index(["arm", "budget"])["accuracy"]
    assert means["dense", 64] == pytest.approx(110 / 3 - 5)  # of its own two seeds
    apart = pd.concat([records_of({key: ERRORS[key]}, seed=seed) for seed, key in enumerate(ERRORS)])
    with pytest.raises(UserError, match="have no seed in common"):
        leads(apart, ["half"], ["dense"])


def without(arm: str, budget: int, event: int) -> pd.DataFrame:
    records = records_of(ERRORS)
    return records[~((records["arm"] == arm) & (records["budget"] == budget) & (records["event"] == event))]


RAGGED = {
    "a task lacking": without("half", 256, 1),
    "other compute": records_of(ERRORS).assign(limit_macs=range(12)),
    "other tasks": records_of(ERRORS).assign(task=[f"task{row}" for row in range(12)]),
    "two units": pd.concat([records_of(ERRORS)[:6], records_of(ERRORS, reference="resnet50@64")[6:]]),
}


@pytest.mark.parametrize("case", RAGGED)
def test_records_that_do_not_compare_are_refused(case):
    with pytest.raises(UserError, match="expected"):
        accuracies(RAGGED[case])


def test_what_was_not_run_is_missing():
    with pytest.raises(MissingArms, match="no arms to compare"):
        leads(records_of(ERRORS), ["half"], ["other"])


PROBES = {("dense probe", 64): [0.4, 0.4, 0.4], ("half probe", 64): [0.3, 0.3, 0.3]}


def test_the_front_is_the_best_of_each_family():
    small = {("small", 64): [0.6, 0.6, 0.6], ("smaller", 64): [0.5, 0.5, 0.5]}
    records = pd.concat(
        [records_of(ERRORS), records_of(PROBES, learner="probe"), records_of(small, backbone="resnet18half_64")]
    )
    found = front(records).set_index(["family", "budget"])["accuracy"]
    assert found["other network", 64] == pytest.approx(50)
    assert found["dense, fine-tuned", 256] == pytest.approx(160 / 3)
    assert found["dense, probe", 64] == pytest.approx(60) and found["pruned, probe", 64] == pytest.approx(70)


def test_what_stops_early_is_the_same_at_larger_budgets():
    """A probe that spent half of what it might have; another that spent all does not go on."""
    stops = records_of({("done", 64): [0.4, 0.4, 0.4]}, learner="probe", total_macs=32_000)
    hungry = records_of({("hungry", 64): [0.5, 0.5, 0.5]}, learner="probe")
    records = carried_on(pd.concat([records_of(ERRORS), stops, hungry]))
    later = records[records["budget"] == 256].groupby("arm")["error_test"].mean()
    assert later["done"] == pytest.approx(0.4) and "hungry" not in later
    assert records.groupby(["event", "budget"])["limit_macs"].nunique().max() == 1


def test_budgets_that_all_arms_share():
    records = records_of({key: errors for key, errors in ERRORS.items() if key != ("half", 256)})
    assert set(at_shared_budgets(records)["budget"]) == {64}


FAMILIES = {
    "dense, fine-tuned": {"arm": "dense"},
    "pruned, fine-tuned": {"arm": "half"},
    "dense, probe": {"arm": "dense", "learner": "probe"},
    "pruned, probe": {"arm": "half", "learner": "probe", "image_size": 64},
    "fewer pixels": {"arm": "dense", "image_size": 64},
    "other network": {"arm": "dense", "backbone": "resnet26_64", "image_size": 64},
    "raw pixels": {"arm": "dense", "learner": "pixels"},
    "majority class": {"arm": "dense", "learner": "majority"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    fields = dict(FAMILIES[family])
    arm = fields.pop("arm")
    errors = {key: value for key, value in ERRORS.items() if key[0] == arm}
    assert set(records_of(errors, **fields)["family"]) == {family}


def test_arms_are_called_what_they_are_and_nameless_ones_by_that():
    first = records_of(ERRORS, granularity="channel")
    named = described(pd.concat([first, first.assign(learner="probe", image_size=64)]).drop(columns="arm"))
    labels = set(arms(named)["label"])
    assert labels == set(named["arm"])
    assert labels == {"dense, fine-tuned", "50% removed, fine-tuned", "64 px, probe", "64 px, 50% removed, probe"}


def test_records_are_those_of_the_profile_in_its_order(tmp_path, monkeypatch):
    arms = [*arms_of("smoke", "arms"), *arms_of("smoke", "learners")]
    monkeypatch.setattr("lib.evidence.records.records_file", lambda _, arm: tmp_path / f"{arm}.parquet")
    one = records_of({("dense", 64): [0.5]}).drop(columns=["arm", "family"])
    for number, arm in enumerate(arms):
        one.assign(error_test=number / 100).to_parquet(tmp_path / f"{arm}.parquet")
    records = load_records("smoke", "arms", "a group of another profile", "learners")
    assert records["arm"].tolist() == arms
    assert records["error_test"].tolist() == [number / 100 for number in range(len(arms))]
    assert load_records("smoke")["arm"].tolist() == list(arms_of("smoke", "arms"))


def test_arms_without_records_are_named(tmp_path, monkeypatch):
    first, *others = arms_of("smoke", "arms")
    monkeypatch.setattr("lib.evidence.records.records_file", lambda _, arm: tmp_path / f"{arm}.parquet")
    pd.DataFrame({"error_test": [0.1]}).to_parquet(tmp_path / f"{first}.parquet")
    with pytest.raises(UserError, match=", ".join(others)) as error:
        load_records("smoke")
    assert "make figures PROFILE=smoke" in str(error.value) and first not in str(error.value).split(":")[0]


def test_unknown_profile_is_named_with_the_others():
    with pytest.raises(UserError, match=r"nope.*smoke"):
        load_records("nope")


@pytest.mark.parametrize("errors", [[np.nan, 0.5], []])
def test_records_that_say_nothing_are_refused(errors):
    with pytest.raises(UserError, match="expected"):
        records_of({("dense", 64): errors})


def test_budgets_at_which_a_family_is_missing_are_left_out():
    records = records_of({("dense", 16): [0.5], ("dense", 64): [0.5], ("half", 64): [0.5]})
    assert set(at_budgets_of_all_families(records)["budget"]) == {64}


def test_streams_are_pooled_by_what_all_have_and_a_task_counts_once():
    one = records_of({("dense", 16): [0.1, 0.2, 0.3], ("dense", 64): [0.1] * 3, ("half", 16): [0.4] * 3})
    one["task"] = one["task"].replace({"task2": "task0"})  # a second time
    other = records_of({("dense", 16): [0.5, 0.6]}).replace({"task": {"task0": "own", "task1": "other"}})
    both = pooled(one, other)
    assert both[["arm", "budget", "event", "task", "error_test"]].to_numpy().tolist() == [
        ["dense", 16, 0, "task0", 0.1],
        ["dense", 16, 1, "task1", 0.2],
        ["dense", 16, 3, "own", 0.5],
        ["dense", 16, 4, "other", 0.6],
    ]
