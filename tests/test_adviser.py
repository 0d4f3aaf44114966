"""Recommendations on tables whose answers are known."""

import numpy as np
import pandas as pd
import pytest
from helpers import records_of
from scipy import stats

from lib.common.errors import UserError
from lib.evidence.adviser import recommend, regrets
from lib.runs.run import run_stream
from lib.runs.spec import RunSpec

# Errors of three tasks at budgets 0.5 and 2. The third task is unlike the others.
ERRORS = {
    ("dense", 0.5): [0.8, 0.8, 0.3],
    ("dense", 2.0): [0.3, 0.2, 0.2],
    ("half", 0.5): [0.5, 0.6, 0.9],
    ("half", 2.0): [0.4, 0.4, 0.4],
}


@pytest.fixture
def records() -> pd.DataFrame:
    return records_of(ERRORS)


def test_the_best_on_the_other_tasks_is_recommended(records):
    assert recommend(0.5, "task2", records).arm == "half"
    # (0.8 + 0.3) / 2 against (0.6 + 0.9) / 2, and at two doublings' distance in dense's favour, too.
    assert recommend(0.5, "task0", records).arm == "dense"
    found = recommend(2, "unknown", records)
    t = stats.t.interval(0.95, 2, 0.7 / 3, stats.sem([0.3, 0.2, 0.2]))
    assert found.arm == "dense" and found.error == pytest.approx((0.7 / 3, *t))
    assert found.spec["ratio"] == 0 and found.spec["learner"] == "independent"


def test_what_is_recommended_can_be_run_in_the_unit_of_the_records():
    """Of the committed records."""
    for budget in (16, 64, 256):
        advice = recommend(budget, "a task of my own")
        assert RunSpec(**advice.spec, budgets=[budget]).reference == "efficientnet_lite0@128"


def test_a_task_has_no_say_in_its_own_recommendation(records):
    changed = records.assign(error_test=records["error_test"].where(records["task"] != "task1", 0.01))
    for budget in (0.5, 1, 2):
        assert recommend(budget, "task1", changed) == recommend(budget, "task1", records)


def test_neighbouring_budgets_have_a_say(records):
    """At 1, a doubling from both, the errors at 0.5 and 2 weigh the same."""
    tilted = records.copy()
    at_two = (records["budget"] == 2) & (records["arm"] == "half")
    for error, best in ((0.49, "half"), (0.51, "dense")):
        # Without the third task dense has 0.8 and 0.25, half has 0.55 and this: they meet at 0.5.
        tilted.loc[at_two, "error_test"] = error
        assert recommend(1, "task2", tilted).arm == best


def test_between_budgets_errors_are_linear_in_the_logarithm(records):
    assert recommend(1, "task2", records).error.value == pytest.approx((0.55 + 0.4) / 2)


@pytest.mark.parametrize("budget", [0.4, 3])
def test_a_budget_that_was_not_measured_is_refused(records, budget):
    with pytest.raises(UserError, match=rf"budget={budget} was not measured: expected 0\.5 to 2 dense"):
        recommend(budget, "task0", records)


def test_arms_that_were_not_run_up_to_the_budget_are_left_out(records):
    longer = records[(records["arm"] == "dense") & (records["budget"] == 2)].assign(budget=8.0, limit_macs=8000)
    more = pd.concat([records, longer], ignore_index=True)
    assert recommend(4, "task2", more).arm == "dense"
    for budget in (0.5, 1, 2):
        assert recommend(budget, "task2", more) == recommend(budget, "task2", records)
    pd.testing.assert_frame_equal(regrets(more), regrets(records))
    with pytest.raises(UserError, match=r"budget=16 was not measured: expected 0\.5 to 8 dense"):
        recommend(16, "task2", more)


def test_records_of_one_run_are_advice(tmp_path):
    """What `run_stream` gives, without a name or a unit: arms are told apart and called by their fields."""
    common = {"tasks": ["mnist", "materials", "stamps"], "train_images": 24, "evaluation_images": 16}
    specs = [
        RunSpec(backbone="resnet18half_64", ratio=ratio, learner="probe", budgets=[8], **common) for ratio in (0, 0.5)
    ]
    runs = [run_stream(spec, tmp_path) for spec in specs]
    alone = recommend(8, "mine", runs[0])
    assert alone.spec["backbone"] == "resnet18half_64"
    assert alone.error.value == pytest.approx(runs[0]["error_test"].mean())
    both = recommend(8, "mnist", pd.concat(runs))
    errors = [run.loc[run["task"] != "mnist", "error_test"].mean() for run in runs]
    assert both.error.value == pytest.approx(min(errors))
    assert both.spec["ratio"] == (0, 0.5)[int(np.argmin(errors))]
    assert RunSpec(**both.spec, budgets=[8]).learner == "probe"


def test_budgets_that_are_not_nested_are_read_between(records):
    """Dense at 0.5 and 2, half at 0.5 and 8: half's error at 2 lies on the line between its own."""
    later = records["budget"].eq(2) & records["arm"].eq("half")
    apart = records.assign(
        budget=records["budget"].mask(later, 8.0), limit_macs=records["limit_macs"].mask(later, 8000)
    )
    # Without the third task: dense 0.8 and 0.25; half 0.55, 0.475 (half way to 8) and 0.4.
    found = recommend(2, "task2", apart)
    assert found.arm == "dense" and found.error.value == pytest.approx(0.25)
    high = recommend(4, "task2", apart)
    assert high.arm == "half" and high.error.value == pytest.approx(0.55 - 0.15 * 3 / 4)
    apart["budget"] = apart["budget"].mask(apart["arm"] == "dense", apart["budget"] * 2)
    apart["limit_macs"] = (1000 * apart["budget"]).astype(int)
    assert recommend(0.5, "task2", apart).arm == "half"  # dense starts at 1
    assert recommend(1, "task2", apart).arm == "half" and recommend(4, "task2", apart).arm == "dense"


def broken(records: pd.DataFrame, **columns) -> pd.DataFrame:
    first = records.index == records.index[0]
    return records.assign(**{name: records[name].mask(first, value) for name, value in columns.items()})


REFUSED = {
    "none at all": (lambda r: r[:0], "There are no records: expected"),
    "one task, which is asked for": (lambda r: r[r["task"] == "task1"], "of task1 alone: expected another"),
    "an error that is no number": (lambda r: broken(r, error_test=np.nan), "no number in 1 records, of task0"),
    "two units": (
        lambda r: broken(r, reference="resnet50@64"),
        "in images of resnet50@64 and efficientnet_lite0@128: expected one",
    ),
    "other compute": (lambda r: broken(r, limit_macs=7), "do not compare: expected the same"),
    "a task lacking": (lambda r: r[1:], "do not compare: expected the same tasks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_records_that_give_no_advice_are_refused_in_one_sentence(records, case):
    change, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence):
        recommend(0.5, "task1" if "asked" in case else "mine", change(records))


@pytest.mark.parametrize("size", [1, 2])
def test_little_is_enough(records, size):
    few = records[(records["event"] < size) & (records["budget"] == 0.5)]
    assert recommend(0.5, "mine", few).error.value == pytest.approx({1: 0.5, 2: 0.55}[size])


def test_tasks_of_one_name_are_two(records):
    """Each has its own regret; in advice for that name neither has a say."""
    twins = records.replace({"task": {"task1": "task0"}})
    table = regrets(twins)
    assert len(table) == len(regrets(records))
    advised = table[table["policy"] == "adviser"].set_index(["event", "budget"])["arm"]
    assert advised[0, 0.5] == advised[1, 0.5] == "dense"  # by the third task alone; by the second, too, it were half
    assert recommend(0.5, "task0", twins).error.value == pytest.approx(0.3)


def test_regrets_by_hand(records):
    table = regrets(records).set_index(["policy", "task", "budget"])["regret"]
    assert table["always dense", "task0", 0.5] == pytest.approx(30)
    assert table["always half", "task2", 0.5] == pytest.approx(60)
    assert table["adviser", "task0", 0.5] == pytest.approx(30)  # it recommends dense, see above
    assert table["adviser", "task2", 0.5] == pytest.approx(60)
    assert (table.xs(2.0, level="budget")["adviser"] == 0).all()
    assert (table >= 0).all()


def test_asked_about_the_future_it_knows_the_past_alone(records):
    table = regrets(records, since=2012).set_index(["policy", "task", "budget"])["regret"]
    assert set(table.index.unique("task")) == {"task2"}
    # By the first two tasks half is the best at 0.5, and dense at 2.
    assert table["adviser", "task2", 0.5] == pytest.approx(60) and table["adviser", "task2", 2.0] == 0
    changed = records.assign(error_test=records["error_test"].where(records["year"] < 2012, 0.5))
    assert set(regrets(changed, since=2012).query("policy == 'adviser' and budget == 0.5")["arm"]) == {"half"}
    for nothing in (2010, 2013):
        with pytest.raises(UserError, match=f"since={nothing} .* expected a year of 2011 to 2012"):
            regrets(records, since=nothing)
