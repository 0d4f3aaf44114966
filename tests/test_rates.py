"""The committed rates of body and head."""

import json

import pandas as pd
import pytest

from lib.common.errors import UserError
from lib.learning.learners import LEARNERS
from lib.learning.rates import ALL, TABLE, TUNED_AS, data_set, rates
from lib.networks.backbone import list_backbones
from lib.streams import list_tasks
from tools.tune_rates import TUNING

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


def test_a_data_set_is_known_by_its_name_in_every_stream():
    pocket, nevis = (set(map(data_set, list_tasks(stream)["name"])) for stream in ("pocket", "nevis/short"))
    assert pocket & nevis == {"mnist", "fashionmnist"}


def test_what_was_never_tuned_is_refused():
    with pytest.raises(UserError, match="backbone='alexnet'") as error:
        rates("norms", "alexnet")
    assert "body_rate= and head_rate=" in str(error.value)
    assert "python -m tools.tune_rates alexnet norms" in str(error.value)
