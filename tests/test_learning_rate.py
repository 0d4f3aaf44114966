"""The committed rules for the learning rate."""

import json
import math

import pytest

from lib.backbones import list_backbones
from lib.errors import UserError
from lib.learning_rate import ALL_TASKS, HEADS, TABLE, learning_rate
from lib.streams import load_stream

STORED = json.loads(TABLE.read_text())
TABLES = {(backbone, probed): rules for probed in HEADS for backbone, rules in STORED[HEADS[probed]].items()}
RULES = [(backbone, probed, task) for (backbone, probed), rules in TABLES.items() for task in rules]
STEPS = [0, 1, 3, 10, 30, 100, 300, 1000, 10**6]
RATIOS = [0, 0.1, 0.25, 0.5, 0.75, 0.95]


def is_monotonic(values: list[float]) -> bool:
    return values in (sorted(values), sorted(values, reverse=True))


def test_the_main_backbone_has_a_rule():
    assert {(list_backbones()[0], False), (list_backbones()[0], True)} <= TABLES.keys()


@pytest.mark.parametrize("key", TABLES)
def test_no_task_took_part_in_its_own_rule(key):
    rules = TABLES[key]
    for task in load_stream("pocket").tasks:
        used = rules.get(task.name, rules[ALL_TASKS])
        assert used["fitted_on"] and task.name not in used["fitted_on"]
    assert set(rules) - {ALL_TASKS} == set(rules[ALL_TASKS]["fitted_on"])


@pytest.mark.parametrize(("backbone", "probed", "task"), RULES)
def test_rate_stays_within_the_range_that_was_searched(backbone, probed, task):
    low, high = TABLES[backbone, probed][task]["low"], TABLES[backbone, probed][task]["high"]
    rates = [learning_rate(backbone, ratio, steps, task, probed) for ratio in RATIOS for steps in STEPS]
    assert all(0 < low <= rate <= high < 1 for rate in rates)


@pytest.mark.parametrize(("backbone", "probed", "task"), RULES)
def test_rate_changes_in_one_direction_with_steps_and_with_ratio(backbone, probed, task):
    def rates(ratios, steps):
        return [learning_rate(backbone, ratio, count, task, probed) for ratio in ratios for count in steps]

    assert all(is_monotonic(rates([ratio], STEPS)) for ratio in RATIOS)
    assert all(is_monotonic(rates(RATIOS, [count])) for count in STEPS)


@pytest.mark.parametrize(("backbone", "probed", "task"), RULES)
def test_rate_follows_the_written_rule(backbone, probed, task):
    rule = TABLES[backbone, probed][task]
    for ratio in RATIOS:
        exponent = rule["base"] + rule["slope_steps"] * math.log(90 / 30, 10) + rule["slope_ratio"] * ratio
        expected = sorted([rule["low"], 10.0**exponent, rule["high"]])[1]
        assert learning_rate(backbone, ratio, 90, task, probed) == pytest.approx(expected)


@pytest.mark.parametrize(("backbone", "probed"), TABLES)
def test_unknown_task_gets_the_rule_of_all_tasks(backbone, probed):
    found = learning_rate(backbone, 0.5, 10, "flowers", probed)
    assert found == learning_rate(backbone, 0.5, 10, ALL_TASKS, probed)


def test_unknown_backbone_is_refused():
    with pytest.raises(UserError, match="'alexnet'") as error:
        learning_rate("alexnet", 0.5, 10)
    assert ", ".join(STORED["new head"]) in str(error.value) and "learning_rate=" in str(error.value)
    with pytest.raises(UserError, match="'alexnet' with a probed head") as error:
        learning_rate("alexnet", 0.5, 10, probed=True)
    assert "python -m lib.tune alexnet probe_finetune" in str(error.value)
