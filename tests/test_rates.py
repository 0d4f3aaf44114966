"""The committed rates of body and head."""

import json

import pandas as pd
import pytest

from lib.common.errors import UserError
from lib.learning.learners import LEARNERS
from lib.learning.rates import ALL, TABLE, TUNED_AS, data_set, rates
from lib.networks.backbone import list_backbones
from lib.streams import list_tasks
from tools.tune_rates import LARGER, PLACE, TUNING, fit, larger, losses_by_rule

STORED = json.loads(TABLE.read_text())
FITTED = [(learner, backbone) for backbone, found in STORED.items() for learner in found]


def test_the_main_backbone_has_rates_for_all_that_fine_tunes():
    for name, learner in LEARNERS.items():
        if learner.fine_tunes:
            assert rates(name, list_backbones()[0])
    assert set(TUNED_AS.values()) <= STORED[list_backbones()[0]].keys()


@pytest.mark.parametrize(("learner", "backbone"), FITTED)
def test_rates_are_the_best_of_the_records_and_no_end_of_what_was_tried(learner, backbone):
    """Of the data sets but a task's own; worked out by a loop."""
    records = pd.read_parquet(TUNING / f"{backbone}-{learner}.parquet")
    axes = [sorted(set(records[f"{part}_rate"])) for part in ("body", "head")]
    for task in ("", *records["task"].unique()):
        others = records[records["task"] != task]
        errors = {
            pair: others[(others["body_rate"] == pair[0]) & (others["head_rate"] == pair[1])]["error_dev"].mean()
            for pair in set(zip(records["body_rate"], records["head_rate"], strict=True))
        }
        found = rates(learner, backbone, task)
        assert errors[found] == min(errors.values())
        assert task or all(tried[0] < rate < tried[-1] for rate, tried in zip(found, axes, strict=True))


@pytest.mark.parametrize(("learner", "backbone"), FITTED)
def test_a_task_that_was_tuned_on_has_rates_without_its_data_set(learner, backbone):
    tuned_on = {data_set(task) for task in pd.read_parquet(TUNING / f"{backbone}-{learner}.parquet")["task"]}
    assert set(STORED[backbone][learner]) - {ALL} == tuned_on


def test_a_larger_budget_was_measured_at_all_rates_that_are_listed_and_is_in_no_fit():
    places = list(pd.read_parquet(LARGER)[PLACE].itertuples(index=False, name=None))
    assert sorted(places) == sorted(larger())
    for learner, backbone in FITTED:
        fitted = pd.read_parquet(TUNING / f"{backbone}-{learner}.parquet")["budget"]
        assert not set(fitted) & {budget for _, _, budget, _, _ in places}


def test_a_data_set_is_known_by_its_name_in_every_stream():
    pocket, nevis = (set(map(data_set, list_tasks(stream)["name"])) for stream in ("pocket", "nevis/short"))
    assert pocket & nevis == {"mnist", "fashionmnist"}


def test_what_was_never_tuned_is_refused():
    with pytest.raises(UserError, match="backbone='alexnet'") as error:
        rates("norms", "alexnet")
    assert "body_rate= and head_rate=" in str(error.value)
    assert "python -m tools.tune_rates alexnet norms" in str(error.value)


def test_what_a_rule_loses_is_of_the_task_left_out():
    """By hand: two tasks, two budgets; at each, the pair that is best for one task costs the other a known amount."""
    errors = {("a", 16): [0.1, 0.3], ("a", 64): [0.5, 0.2], ("b", 16): [0.4, 0.2], ("b", 64): [0.3, 0.2]}
    table = pd.DataFrame(
        [
            (0.0, budget, task, rate, 0.1, error)
            for (task, budget), both in errors.items()
            for rate, error in zip((0.01, 0.1), both, strict=True)
        ],
        columns=["ratio", "budget", "task", "body_rate", "head_rate", "error_dev"],
    )
    lost = losses_by_rule(table)
    # Of b alone 0.1 is best (.20 against .35 on average), of a alone 0.1 too (.25 against .30).
    assert lost["all"] == lost["each share"] == pytest.approx(100 * (0.2 + 0 + 0 + 0) / 4)
    # At 16, a goes by b's 0.1 and b by a's 0.01; at 64, both by 0.1.
    assert lost["each budget"] == lost["each share and budget"] == pytest.approx(100 * (0.2 + 0 + 0.2 + 0) / 4)


def test_equal_rates_are_chosen_between_alike_on_every_processor():
    """Two pairs whose means differ by the last digit of a sum alone, in either order."""
    a, b = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    assert sum(a) != sum(b)
    for first, second in [(a, b), (b, a)]:
        rows = [(0.01, 0.1, error) for error in first] + [(0.01, 0.3, error) for error in second]
        rows += [(0.03, 0.3, error) for error in first]
        assert fit(pd.DataFrame(rows, columns=["body_rate", "head_rate", "error_dev"])) == {"body": 0.01, "head": 0.3}
