"""The best size of a network, on parabolas whose optima are known."""

import numpy as np
import pandas as pd
import pytest
from helpers import records_of
from tables import explained

from lib.evidence.records import MissingArms
from lib.evidence.scaling import best_sizes, optimum, parabola, sizes

ROUTE = "removing channels"
MACS = np.array([20e6, 40e6, 60e6, 90e6, 120e6])


def test_the_optimum_of_an_exact_parabola_is_found():
    errors = 0.3 + 0.2 * (np.log10(MACS) - np.log10(50e6)) ** 2
    assert optimum(MACS, errors) == pytest.approx(50e6, rel=1e-6)
    assert parabola(MACS, errors)[0] == pytest.approx(0.2)


@pytest.mark.parametrize(("slope", "end"), [(1, 0), (-1, -1)])
def test_without_an_optimum_inside_it_is_the_better_end(slope, end):
    assert optimum(MACS, 0.3 + 0.1 * slope * np.log10(MACS)) == pytest.approx(MACS[end])


def shifting(noise: float = 0.0) -> pd.DataFrame:
    """Shares whose best size grows as the root of the budget: 25, 50 and 100 million MACs at 16, 64 and 256."""
    rng, found = np.random.default_rng(0), []
    for number, macs in enumerate(MACS):
        errors = {
            (f"arm {number}", budget): [
                0.3 + task / 10 + 0.5 * np.log10(macs / (25e6 * np.sqrt(budget / 16))) ** 2 + noise * rng.normal()
                for task in range(4)
            ]
            for budget in (16, 64, 256)
        }
        ratio = 0.8 - 0.2 * number
        found.append(records_of(errors, forward_macs=macs, ratio=ratio, granularity="channel", learner="probe"))
    return pd.concat(found)


def test_the_best_size_moves_with_the_budget_by_its_slope():
    best = best_sizes(shifting(), ROUTE).set_index("budget")
    assert best["macs"].to_dict() == pytest.approx({16: 25e6, 64: 50e6, 256: 100e6}, rel=1e-6)
    assert best["slope"].iloc[0] == pytest.approx(0.5) and best["within"].all()
    unsure = best_sizes(shifting(noise=0.01), ROUTE).iloc[0]
    assert unsure["slope_low"] < 0.5 < unsure["slope_high"]


def test_only_its_own_route_moves_the_optimum():
    records = shifting()
    elsewhere = {
        "fewer pixels": {"ratio": 0.0, "image_size": 64},
        "both": {"ratio": 0.5, "image_size": 64},
        "another": {"ratio": 0.0, "backbone": "resnet26_64"},
    }
    for name, fields in elsewhere.items():
        errors = {(name, budget): [0.0] * 4 for budget in (16, 64, 256)}
        records = pd.concat([records, records_of(errors, learner="probe", forward_macs=30e6, **fields)])
    pd.testing.assert_frame_equal(best_sizes(records, ROUTE), best_sizes(shifting(), ROUTE))


def test_too_few_sizes_are_no_curve():
    records = shifting()
    with pytest.raises(MissingArms, match="four sizes"):
        best_sizes(records[records["arm"].isin(["arm 0", "arm 1", "arm 2"])], ROUTE)


def test_sizes_say_where_they_come_from():
    errors = {("one", 64): [0.5, 0.4]}
    kinds = {
        "channels removed": {"ratio": 0.5, "granularity": "channel"},
        "inner filters removed": {"ratio": 0.5, "granularity": "filter"},
        "fewer pixels": {"ratio": 0.0, "image_size": 64},
        "both": {"ratio": 0.5, "image_size": 64},
        "other network": {"ratio": 0.0, "backbone": "resnet26_64", "image_size": 64},
        "dense": {"ratio": 0.0},
    }
    for origin, fields in kinds.items():
        row = sizes(records_of(errors, **fields)).iloc[0]
        assert row["origin"] == origin and row["error"] == pytest.approx(45)


def test_a_quadratic_is_explained_whole_and_noise_is_not():
    table = pd.DataFrame({"passes": [10.0, 30, 100, 300, 1000]})
    table["error"] = 50 - 10 * np.log10(table["passes"]) + np.log10(table["passes"]) ** 2
    assert explained(table, "passes") == pytest.approx(1)
    table["error"] = [1.0, -1, 1, -1, 1]
    assert explained(table, "passes") < 0.5
