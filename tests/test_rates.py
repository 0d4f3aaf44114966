"""The committed rules for the rates of body and head."""

import json
import math

import pandas as pd
import pytest

from lib.common.errors import UserError
from lib.learning.learners import LEARNERS
from lib.learning.rates import ALL, TABLE, TUNED_AS, data_set, rates
from lib.networks.backbone import list_backbones
from lib.streams import list_tasks
from tools.tune_rates import TUNING

STORED = json.loads(TABLE.read_text())
RULES = [(learner, net, kind) for net, rules in STORED.items() for learner in rules for kind in rules[learner]]
PLACES = [(ratio, budget) for ratio in (0, 0.25, 0.5, 0.75) for budget in (2, 16, 64, 256, 1024, 16384)]


def test_the_main_backbone_has_rules_for_all_that_fine_tunes():
    for name, learner in LEARNERS.items():
        if learner.fine_tunes:
            assert rates(name, list_backbones()[0], "filter", 0.5, 64)
    assert set(TUNED_AS.values()) <= STORED[list_backbones()[0]].keys()


@pytest.mark.parametrize("key", RULES)
def test_rates_follow_the_written_rule_within_what_was_tried(key):
    learner, backbone, granularity = key
    for task, rule in STORED[backbone][learner][granularity].items():
        for ratio, budget in PLACES:
            for found, part in zip(rates(*key, ratio, budget, task), ("body", "head"), strict=True):
                line = rule[part]
                steps = math.log2(budget / 64) / 2
                exponent = line["base"] + line["by_ratio"] * ratio + line["by_budget"] * steps
                assert found == pytest.approx(sorted([line["low"], 10.0**exponent, line["high"]])[1])
                assert 0 < found < 1


@pytest.mark.parametrize("key", RULES)
def test_a_task_that_was_tuned_on_has_a_rule_without_its_data_set(key):
    learner, backbone, granularity = key
    file = TUNING / f"{backbone}-{learner}-{granularity}.parquet"
    tuned_on = {data_set(task) for task in pd.read_parquet(file)["task"]} if file.exists() else set()
    assert set(STORED[backbone][learner][granularity]) - {ALL} == tuned_on


def test_a_data_set_is_known_by_its_name_in_every_stream():
    pocket, nevis = (set(map(data_set, list_tasks(stream)["name"])) for stream in ("pocket", "nevis/short"))
    assert pocket & nevis == {"mnist", "fashionmnist"}


def test_what_was_never_tuned_is_refused():
    with pytest.raises(UserError, match="backbone='alexnet'") as error:
        rates("norms", "alexnet", "filter", 0.5, 64)
    assert "body_rate= and head_rate=" in str(error.value)
    assert "python -m tools.tune_rates alexnet norms filter" in str(error.value)
