"""The front, the best ratio and the asymptote, on tables whose answers are known."""

import numpy as np
import pandas as pd
import pytest

from lib.evidence.records import described
from lib.evidence.scaling import (
    asymptotes,
    best_ratio,
    by_granularity,
    error_by_ratio,
    fitted,
    front,
    main_grid,
    power_law,
)

BUDGETS = 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0


def records_of(curves: dict[float, tuple], budgets: tuple = BUDGETS, noise: float = 0.0) -> pd.DataFrame:
    """Four tasks and two seeds of power laws, one a ratio; each task is harder than the last by a tenth."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "arm": f"ratio {ratio}",
            "reference": "net@64",
            "backbone": "net",
            "image_size": 64,
            "ratio": ratio,
            "criterion": "activation",
            "repair": "mean",
            "scope": "uniform",
            "granularity": "filter",
            "learner": "independent",
            "trials": 1,
            "budget": budget,
            "event": event,
            "seed": seed,
            "task": f"task{event}",
            "limit_macs": round(1000 * budget),
            "error_test": power_law(budget, *curve) + event / 10 - 0.15 + noise * rng.normal(),
        }
        for ratio, curve in curves.items()
        for budget in budgets
        for event in range(4)
        for seed in range(2)
    ]
    return described(pd.DataFrame(rows))


# Pruned: lower at first, and a higher floor. They cross at a budget of 1.
CROSSING = {0.0: (0.2, 0.3, 0.6), 0.5: (0.3, 0.2, 0.4)}


def test_the_front_is_the_lower_of_two_curves():
    best = front(records_of(CROSSING, noise=1e-6)).set_index("budget")
    for budget in BUDGETS:
        curves = {ratio: power_law(budget, *curve) for ratio, curve in CROSSING.items()}
        assert best.loc[budget, "error"] == pytest.approx(min(curves.values()), abs=1e-4)
        if budget != 1:
            assert best.loc[budget, "ratio"] == min(curves, key=curves.get)


def test_the_best_ratio_moves_with_the_budget_and_says_how_sure_it_is():
    sure = best_ratio(records_of(CROSSING, noise=1e-6)).set_index("budget")
    assert sure.loc[0.125, ["ratio", "low", "high", "support"]].tolist() == [0.5, 0.5, 0.5, 1.0]
    assert sure.loc[16.0, ["ratio", "low", "high", "support"]].tolist() == [0.0, 0.0, 0.0, 1.0]
    unsure = best_ratio(records_of(CROSSING, noise=0.1)).set_index("budget").loc[1.0]
    assert (unsure["low"], unsure["high"]) == (0.0, 0.5) and unsure["support"] < 0.99
    table = error_by_ratio(records_of(CROSSING))
    assert table["ratio"].tolist() == [0.0, 0.5] * len(BUDGETS)


@pytest.mark.parametrize("curve", [(0.2, 0.3, 0.6), (0.05, 0.5, 0.3), (0.4, 0.1, 1.2)])
def test_a_power_law_is_found_again(curve):
    budgets = np.array(BUDGETS)
    assert fitted(budgets, power_law(budgets, *curve)) == pytest.approx(curve, rel=1e-2)


def test_an_asymptote_is_found_where_the_budgets_tell_it_and_said_to_be_unknown_where_not():
    told = asymptotes(records_of(CROSSING, noise=1e-4)).set_index("ratio")
    for ratio, (floor, _, exponent) in CROSSING.items():
        assert told.loc[ratio, "floor"] == pytest.approx(floor, abs=0.01)
        assert told.loc[ratio, "exponent"] == pytest.approx(exponent, abs=0.05)
        assert told.loc[ratio, "low"] <= told.loc[ratio, "floor"] <= told.loc[ratio, "high"]
    # The tasks differ by three tenths, the floors by one in each of them: what is asked is told all the same.
    assert told["identified"].all() and told.loc[0.0, "cost"] == 0
    half = told.loc[0.5]
    assert half["cost"] == pytest.approx(0.1, abs=0.01)
    assert 0.08 < half["cost_low"] < half["cost"] < half["cost_high"] < 0.12
    untold = asymptotes(records_of({0.0: (0.2, 0.3, 0.1)}, budgets=(0.5, 1.0, 2.0), noise=0.02))
    assert not untold["identified"].any() and untold["floor"].isna().all()
    # Errors that are still a straight line in the logarithms: the fit ends at a floor of 0.
    straight = asymptotes(records_of({0.0: (0.0, 0.5, 0.2)}, noise=1e-5))
    assert not straight["identified"].any()
    noisy = asymptotes(records_of(CROSSING, noise=0.1))
    assert not noisy["identified"].any()


def test_the_grid_is_what_differs_in_the_ratio_alone():
    records = records_of({0.0: (0.2, 0.3, 0.6), 0.5: (0.2, 0.3, 0.6), 0.25: (0.2, 0.3, 0.6)})
    others = {
        "criterion": "l1",
        "repair": "none",
        "scope": "global",
        "granularity": "channel",
        "learner": "probe",
        "trials": 8,
        "backbone": "small",
    }
    for column, value in others.items():
        changed = described(records.assign(**{column: value}))
        assert main_grid(changed).empty or (column in ("criterion", "repair", "scope", "granularity"))
        assert set(main_grid(changed)["ratio"]) <= {0.0}
    assert set(main_grid(records)["ratio"]) == {0.0, 0.25, 0.5}


def test_each_granularity_has_a_grid_of_its_own_with_the_same_dense_arm():
    records = records_of({0.0: (0.2, 0.3, 0.6), 0.5: (0.2, 0.3, 0.6), 0.25: (0.2, 0.3, 0.6)})
    records.loc[records["ratio"] == 0.25, "granularity"] = "channel"
    table = by_granularity(records, error_by_ratio)
    found = table.groupby("granularity")["ratio"].unique().map(sorted).to_dict()
    assert found == {"filter": [0.0, 0.5], "channel": [0.0, 0.25]}
