"""The committed rules for the learning rate."""

import json
import math

import pytest

from lib.backbones import list_backbones
from lib.errors import UserError
from lib.learning_rate import ALL_TASKS, TABLE, learning_rate
from lib.streams import load_stream

TABLES = json.loads(TABLE.read_text())
RULES = [(backbone, task) for backbone, rules in TABLES.items() for task in rules]
STEPS = [0, 1, 3, 10, 30, 100, 300, 1000, 10**6]
RATIOS = [0, 0.1, 0.25, 0.5, 0.75, 0.95]


def is_monotonic(values: list[float]) -> bool:
    return values in (sorted(values), sorted(values, reverse=True))


def test_the_main_backbone_has_a_rule():
    assert list_backbones()[0] in TABLES


@pytest.mark.parametrize("backbone", TABLES)
def test_no_task_took_part_in_its_own_rule(backbone):
    rules = TABLES[backbone]
    for task in load_stream("pocket").tasks:
        used = rules.get(task.name, rules[ALL_TASKS])
        assert used["fitted_on"] and task.name not in used["fitted_on"]
    assert set(rules) - {ALL_TASKS} == set(rules[ALL_TASKS]["fitted_on"])


@pytest.mark.parametrize(("backbone", "task"), RULES)
def test_rate_stays_within_the_range_that_was_searched(backbone, task):
    low, high = TABLES[backbone][task]["low"], TABLES[backbone][task]["high"]
    rates = [learning_rate(backbone, ratio, steps, task) for ratio in RATIOS for steps in STEPS]
    assert all(0 < low <= rate <= high < 1 for rate in rates)


@pytest.mark.parametrize(("backbone", "task"), RULES)
def test_rate_changes_in_one_direction_with_steps_and_with_ratio(backbone, task):
    def rates(ratios, steps):
        return [learning_rate(backbone, ratio, count, task) for ratio in ratios for count in steps]

    assert all(is_monotonic(rates([ratio], STEPS)) for ratio in RATIOS)
    assert all(is_monotonic(rates(RATIOS, [count])) for count in STEPS)


@pytest.mark.parametrize(("backbone", "task"), RULES)
def test_rate_follows_the_written_rule(backbone, task):
    rule = TABLES[backbone][task]
    for ratio in RATIOS:
        exponent = rule["base"] + rule["slope_steps"] * math.log(90 / 30, 10) + rule["slope_ratio"] * ratio
        expected = sorted([rule["low"], 10.0**exponent, rule["high"]])[1]
        assert learning_rate(backbone, ratio, 90, task) == pytest.approx(expected)


@pytest.mark.parametrize("backbone", TABLES)
def test_unknown_task_gets_the_rule_of_all_tasks(backbone):
    assert learning_rate(backbone, 0.5, 10, "flowers") == learning_rate(backbone, 0.5, 10, ALL_TASKS)


def test_unknown_backbone_is_refused():
    with pytest.raises(UserError, match="'alexnet'") as error:
        learning_rate("alexnet", 0.5, 10)
    assert ", ".join(TABLES) in str(error.value) and "learning_rate=" in str(error.value)
