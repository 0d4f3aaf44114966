"""A stream as a whole, tasks by their size, and the rates, on tables small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest
from helpers import records_of
from tables import by_task_size, networks

from lib.evidence.reports import front_gain, over_the_stream
from tools.tune_rates import gain_by_rates


def stream_records() -> pd.DataFrame:
    errors = {("dense", 16): [0.6, 0.8], ("dense", 64): [0.5, 0.5], ("half", 16): [0.4, 0.5], ("half", 64): [0.2, 0.5]}
    records = records_of(errors, preparation_macs=0)
    records.loc[records["arm"] == "half", "preparation_macs"] = 1000  # once, for the two events
    return pd.concat([records, records_of({("constant", 16): [0.1, 0.1]}, learner="majority", nevis_flops=0)])


def test_over_the_stream_compute_adds_up_and_errors_are_averaged():
    table = over_the_stream(stream_records()).set_index(["arm", "budget"])
    assert table["flops"].to_dict() == {
        ("dense", 16): 64_000,
        ("dense", 64): 256_000,
        ("half", 16): 66_000,
        ("half", 64): 258_000,
    }
    assert table["error"].to_dict() == pytest.approx(
        {("dense", 16): 70, ("dense", 64): 50, ("half", 16): 45, ("half", 64): 35}
    )
    assert list(table.index[table["on_front"]]) == [("dense", 16), ("half", 16), ("half", 64)]


def test_the_front_of_networks_has_none_that_a_smaller_one_beats():
    """Probes alone, at the largest budget that all have."""
    probes = {("dense", 64): [0.3, 0.5], ("half", 64): [0.2, 0.4], ("tiny", 64): [0.6, 0.6], ("dense", 16): [0.9, 0.9]}
    records = records_of(probes, learner="probe")
    records["forward_macs"] = records["arm"].map({"dense": 100, "half": 50, "tiny": 20})
    fine_tuned = records_of({("half best", 64): [0.1, 0.1]})
    found = networks(pd.concat([records, fine_tuned], ignore_index=True)).set_index("arm")
    assert found["error"].to_dict() == pytest.approx({"dense": 40, "half": 30, "tiny": 60})
    assert set(found.index[found["on_front"]]) == {"half", "tiny"}
    assert found["ratio"].to_dict() == {"dense": 0, "half": 0.5, "tiny": 0}


def test_what_a_family_lowers_the_front_by_is_the_mean_between_the_fronts():
    """Nothing up to 66,000 FLOPs; then dense, from 70 at 64,000 to 50 at 256,000, against 45 to 35 at 258,000."""
    found = front_gain(stream_records(), "pruned, fine-tuned")
    at = {flops: 70 - 20 * np.log(min(flops, 256) / 64) / np.log(4) for flops in (66, 256, 258)}
    apart = {flops: error - 45 + 10 * np.log(flops / 66) / np.log(258 / 66) for flops, error in at.items()}
    pieces = [np.log(b / a) * (apart[a] + apart[b]) / 2 for a, b in ((66, 256), (256, 258))]
    expected = sum(pieces) / np.log(258 / 64)
    assert found.value == pytest.approx(expected, abs=0.1) and found.low < found.value < found.high
    assert front_gain(stream_records(), "other network").value == 0


def test_accuracy_by_the_size_of_a_task_is_of_the_tasks_that_were_cut():
    cut = records_of({("dense_of_100", 64): [0.5, 0.7]}, train_images=100)
    whole = records_of({("dense", 64): [0.1, 0.3, 0.9], ("half", 64): [0.0] * 3, ("dense", 256): [0.0] * 3})
    table = by_task_size(cut, whole).set_index("images")
    assert table["accuracy"].to_dict() == pytest.approx({100: 40, np.inf: 80})
    assert set(table["label"]) == {"dense, fine-tuned"} and set(table["budget"]) == {64}


def test_what_pruning_gains_by_the_rates():
    """Errors 0.5 and 0.4 at equal rates of 0.1, 0.3 and 0.35 at the pair, which is the best."""
    rows = [(0.0, 0.1, 0.1, 0.5), (0.5, 0.1, 0.1, 0.4), (0.0, 0.1, 1.0, 0.3), (0.5, 0.1, 1.0, 0.35)]
    errors = pd.DataFrame(rows, columns=["ratio", "body_rate", "head_rate", "error_dev"]).assign(budget=64)
    table = gain_by_rates(errors, 0.1, 1.0)[64]
    assert table.to_dict() == pytest.approx(
        {"one rate, 0.1": 10, "the committed pair": -5, "the best pair of each": -5}
    )
