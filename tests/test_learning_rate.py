"""The committed rules for the learning rate."""

import json

import pytest

from lib.common.errors import UserError
from lib.learning.rates import ALL_TASKS, HEADS, TABLE, learning_rate
from lib.networks.backbone import list_backbones
from lib.streams import load_stream

STORED = json.loads(TABLE.read_text())
TABLES = {(backbone, probed): rules for probed in HEADS for backbone, rules in STORED[HEADS[probed]].items()}
RULES = [(backbone, probed, task) for (backbone, probed), rules in TABLES.items() for task in rules]
RATIOS = [0, 0.1, 0.25, 0.5, 0.75, 0.95]


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
    rates = [learning_rate(backbone, ratio, task, probed) for ratio in RATIOS]
    assert all(0 < low <= rate <= high < 1 for rate in rates)


@pytest.mark.parametrize(("backbone", "probed", "task"), RULES)
def test_rate_changes_in_one_direction_with_the_ratio(backbone, probed, task):
    rates = [learning_rate(backbone, ratio, task, probed) for ratio in RATIOS]
    assert rates in (sorted(rates), sorted(rates, reverse=True))


@pytest.mark.parametrize(("backbone", "probed", "task"), RULES)
def test_rate_follows_the_written_rule(backbone, probed, task):
    rule = TABLES[backbone, probed][task]
    for ratio in RATIOS:
        exponent = rule["base"] + rule["slope_ratio"] * ratio
        expected = sorted([rule["low"], 10.0**exponent, rule["high"]])[1]
        assert learning_rate(backbone, ratio, task, probed) == pytest.approx(expected)


@pytest.mark.parametrize(("backbone", "probed"), TABLES)
def test_unknown_task_gets_the_rule_of_all_tasks(backbone, probed):
    found = learning_rate(backbone, 0.5, "flowers", probed)
    assert found == learning_rate(backbone, 0.5, ALL_TASKS, probed)


def test_unknown_backbone_is_refused():
    with pytest.raises(UserError, match="'alexnet'") as error:
        learning_rate("alexnet", 0.5)
    assert ", ".join(STORED["new head"]) in str(error.value) and "learning_rate=" in str(error.value)
    with pytest.raises(UserError, match="'alexnet' with a probed head") as error:
        learning_rate("alexnet", 0.5, probed=True)
    assert "python -m tools.tune_rates alexnet probe_finetune" in str(error.value)
