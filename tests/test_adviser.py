"""Recommendations on tables whose answers are known."""

import pandas as pd
import pytest

from lib.common.errors import UserError
from lib.evidence.adviser import recommend, regrets
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
    return pd.DataFrame(
        [
            {
                "arm": arm,
                "budget": budget,
                "event": event,
                "task": f"task{event}",
                "error_test": error,
                "seed": 0,
                "unit": "net@64",
                "backbone": "net",
                "image_size": 64,
                "ratio": 0.5 if arm == "half" else 0.0,
                "scope": "uniform",
                "criterion": "l1",
                "granularity": "filter",
                "repair": "none",
                "learner": "independent",
                "trials": 1,
                "reference": None,
                "limit_macs": round(100 * budget),
            }
            for (arm, budget), errors in ERRORS.items()
            for event, error in enumerate(errors)
        ]
    )


def test_the_best_on_the_other_tasks_is_recommended(records):
    assert recommend(0.5, "task2", records).arm == "half"
    # (0.8 + 0.3) / 2 against (0.6 + 0.9) / 2, and at two doublings' distance in dense's favour, too.
    assert recommend(0.5, "task0", records).arm == "dense"
    found = recommend(2, "unknown", records)
    assert found.arm == "dense" and found.error == pytest.approx((0.7 / 3, 0.2, 0.3))
    assert found.spec["ratio"] == 0 and found.spec["learner"] == "independent"


def test_what_is_recommended_can_be_run_in_the_unit_of_the_records():
    """The committed records: at the smallest budget a small network, in dense epochs of the large one."""
    for budget in (0.125, 1.0, 16.0):
        advice = recommend(budget, "a task of my own")
        spec = RunSpec(**advice.spec, budgets=[budget])
        own = f"{spec.backbone}@{spec.image_size}"
        assert (spec.reference or own) == "resnet26_64@64"
        assert (spec.backbone == "resnet26_64") == (spec.reference is None)


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
    longer = records[(records["arm"] == "dense") & (records["budget"] == 2)].assign(
        budget=8.0, limit_macs=800
    )
    more = pd.concat([records, longer], ignore_index=True)
    assert recommend(4, "task2", more).arm == "dense"
    for budget in (0.5, 1, 2):
        assert recommend(budget, "task2", more) == recommend(budget, "task2", records)
    pd.testing.assert_frame_equal(regrets(more), regrets(records))
    with pytest.raises(UserError, match=r"budget=16 was not measured: expected 0\.5 to 8 dense"):
        recommend(16, "task2", more)


def test_regrets_by_hand(records):
    table = regrets(records).set_index(["policy", "task", "budget"])["regret"]
    assert table["always dense", "task0", 0.5] == pytest.approx(0.3)
    assert table["always half", "task2", 0.5] == pytest.approx(0.6)
    assert table["adviser", "task0", 0.5] == pytest.approx(0.3)  # it recommends dense, see above
    assert table["adviser", "task2", 0.5] == pytest.approx(0.6)
    assert (table.xs(2.0, level="budget")["adviser"] == 0).all()
    assert (table >= 0).all()
