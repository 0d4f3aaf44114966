"""Improvement over dense on a table small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest

from lib.common.errors import UserError
from lib.evidence import analysis
from lib.evidence.analysis import errors_by_seed, estimate, improvement_over_dense, mean_errors, seeds_in_common
from lib.evidence.records import MissingArms, arms, at_shared_budgets, described, learners_grid, load_records
from lib.runs.profiles import arms_of

# Errors of two tasks. Dense: accuracies 0.2 and 0.4. Pruned: 0.3 and 0.6.
ERRORS = {("dense", 0.5): [0.8, 0.6], ("dense", 1.0): [0.5, 0.5], ("half", 0.5): [0.7, 0.4], ("half", 1.0): [0.6, 0.5]}


def records_of(errors: dict[tuple[str, float], list[float]]) -> pd.DataFrame:
    records = pd.DataFrame(
        [
            {
                "arm": arm,
                "reference": "net@64",
                "backbone": "net",
                "image_size": 64,
                "ratio": 0.0 if arm == "dense" else 0.5,
                "budget": budget,
                "event": event,
                "criterion": "l1",
                "scope": "uniform",
                "granularity": "filter",
                "repair": "none",
                "learner": "independent",
                "trials": 1,
                "task": f"task{event}",
                "error_test": error,
                "seed": 0,
                "limit_macs": round(1000 * budget),
                "total_macs": 10 * event + budget,
            }
            for (arm, budget), of_tasks in errors.items()
            for event, error in enumerate(of_tasks)
        ]
    )
    return described(records)


def elsewhere(records: pd.DataFrame, **fields) -> pd.DataFrame:
    """The same of another network, which is a unit of its own, with half the errors."""
    halved = {"error_test": records["error_test"] / 2, **fields}
    return described(records.assign(reference="other@64", backbone="other", **halved))


def test_improvement_by_hand():
    gains = improvement_over_dense(records_of(ERRORS)).set_index(["arm", "budget"])
    assert list(gains.index) == [("half", 0.5), ("half", 1.0)]
    low = gains.loc[("half", 0.5)]
    assert low["accuracy_gain"] == pytest.approx(0.45 / 0.3 - 1)  # 50 % more accuracy
    assert low["error_cut"] == pytest.approx(1 - 0.55 / 0.7)
    assert low["points_gained"] == pytest.approx(15)
    high = gains.loc[("half", 1.0)]
    assert high["accuracy_gain"] == pytest.approx(0.45 / 0.5 - 1)
    assert high["error_cut"] == pytest.approx(-0.1)
    assert high["points_gained"] == pytest.approx(-5)


def test_interval_of_two_tasks_spans_the_gains_of_the_tasks():
    """A draw of two tasks takes only the first in a quarter of cases, and only the second in another."""
    row = improvement_over_dense(records_of(ERRORS)).iloc[0]
    assert row["accuracy_gain_low"] == pytest.approx(0.5) and row["accuracy_gain_high"] == pytest.approx(0.5)
    assert row["points_gained_low"] == pytest.approx(10) and row["points_gained_high"] == pytest.approx(20)
    assert row["error_cut_low"] == pytest.approx(1 - 0.7 / 0.8)
    assert row["error_cut_high"] == pytest.approx(1 - 0.4 / 0.6)


def test_interval_is_a_point_when_all_tasks_are_equal():
    equal = {("dense", 1.0): [0.5] * 6, ("half", 1.0): [0.4] * 6}
    row = improvement_over_dense(records_of(equal)).iloc[0]
    for measure in ("accuracy_gain", "error_cut", "points_gained"):
        assert row[f"{measure}_low"] == pytest.approx(row[measure])
        assert row[f"{measure}_high"] == pytest.approx(row[measure])


def test_bootstrap_is_paired():
    """Tasks differ much, arms by the same ten points everywhere: a paired interval has no width."""
    dense = np.linspace(0.2, 0.9, 8)
    found = estimate(analysis.points_gained, dense[:, None] - 0.1, dense[:, None])
    assert found == pytest.approx((10, 10, 10))


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
    errors = np.random.default_rng(1).uniform(0, 1, 200)
    value, low, high = estimate(lambda drawn: drawn.mean(-1), errors[:, None])
    assert value == pytest.approx(errors.mean())
    half = 1.96 * errors.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.1 * half)


def test_intervals_are_the_same_every_time():
    pd.testing.assert_frame_equal(mean_errors(records_of(ERRORS)), mean_errors(records_of(ERRORS)))


def test_mean_errors_by_hand():
    means = mean_errors(records_of(ERRORS)).set_index(["arm", "budget"])["error"]
    assert means.to_dict() == pytest.approx({key: np.mean(errors) for key, errors in ERRORS.items()})


def with_seeds(seeds: dict[str, int]) -> pd.DataFrame:
    """Each arm with so many seeds, each of them a tenth above the one before."""
    copies = [
        records_of({key: [error + seed / 10 for error in errors] for key, errors in ERRORS.items()}).assign(seed=seed)
        for seed in range(max(seeds.values()))
    ]
    records = pd.concat(copies)
    return records[records["seed"] < records["arm"].map(seeds)]


def test_an_arm_s_mean_is_over_its_own_seeds():
    means = mean_errors(with_seeds({"dense": 3, "half": 1})).set_index(["arm", "budget"])["error"]
    assert means[("dense", 0.5)] == pytest.approx(0.8) and means[("half", 0.5)] == pytest.approx(0.55)


def test_arms_are_compared_over_the_seeds_that_both_have():
    records = with_seeds({"dense": 3, "half": 2})
    dense, half = seeds_in_common(errors_by_seed(records), ("dense", 1.0), ("half", 1.0))
    np.testing.assert_allclose(dense, [[0.5, 0.6], [0.5, 0.6]])
    np.testing.assert_allclose(half, [[0.6, 0.7], [0.5, 0.6]])
    row = improvement_over_dense(with_seeds({"dense": 3, "half": 1})).iloc[0]
    assert row["points_gained"] == pytest.approx(15)
    apart = pd.concat([records_of(ERRORS)[:4], records_of(ERRORS)[4:].assign(seed=1)])
    with pytest.raises(UserError, match="half and dense have no seed in common"):
        improvement_over_dense(apart)


def test_the_interval_is_over_tasks_and_over_seeds_within_them():
    """As wide as the two parts of the variance of a mean together, for many tasks and seeds."""
    rng = np.random.default_rng(0)
    tasks, seeds = rng.normal(0, 1, (300, 1)), rng.normal(0, 2, (300, 4))
    errors = tasks + seeds
    _, low, high = estimate(lambda drawn: drawn.mean(-1), errors)
    # What draws of tasks alone vary by, and the seeds' own variance a second time, of four draws each.
    expected = np.sqrt((errors.mean(1).var() + errors.var(1).mean() / 4) / 300)
    assert high - low == pytest.approx(2 * 1.96 * expected, rel=0.08)


def test_granularities_are_compared_where_they_alone_differ():
    records = records_of(ERRORS | {("thin", 0.5): [0.9, 0.3], ("thin", 1.0): [0.7, 0.5]})
    thin = records["arm"] == "thin"
    records["granularity"] = np.where(thin, "channel", "filter")
    table = analysis.granularities_compared(records)
    assert table[["event", "task", "ratio", "budget"]].values.tolist() == [
        [0, "task0", 0.5, 0.5],
        [1, "task1", 0.5, 0.5],
        [0, "task0", 0.5, 1.0],
        [1, "task1", 0.5, 1.0],
    ]
    twins = analysis.granularities_compared(records.assign(task="flowers"))
    assert twins["points"].tolist() == table["points"].tolist()
    assert table["points"].tolist() == pytest.approx([20, -10, 10, 0])
    both = analysis.granularities_compared(pd.concat([records, elsewhere(records)])).set_index("unit")
    assert both.loc["other@64", "points"].tolist() == pytest.approx([10, -5, 5, 0])


def test_an_arm_that_was_run_with_fewer_budgets_is_compared_at_those():
    records = without("half", 1.0)
    assert improvement_over_dense(records)["budget"].tolist() == [0.5]
    assert set(at_shared_budgets(records)["budget"]) == {0.5}
    both = at_shared_budgets(pd.concat([records, elsewhere(records_of(ERRORS))]))
    assert both.groupby("unit")["budget"].nunique().to_dict() == {"net@64": 1, "other@64": 2}


def without(arm: str, budget: float, event: int | None = None) -> pd.DataFrame:
    records = records_of(ERRORS)
    gone = (records["arm"] == arm) & (records["budget"] == budget)
    return records[~(gone if event is None else gone & (records["event"] == event))]


RAGGED = {
    "a task lacking": without("half", 1.0, event=1),
    "a budget lacking in dense": without("dense", 1.0),
    "no budget in common": records_of({("dense", 1.0): [0.5, 0.5], ("half", 0.5): [0.7, 0.4]}),
    "no dense arm": records_of({key: errors for key, errors in ERRORS.items() if key[0] != "dense"}),
    "other compute": records_of(ERRORS).assign(limit_macs=range(8)),
    "a task of one seed lacking": with_seeds({"dense": 2, "half": 2})[:-1],
    "other tasks": records_of(ERRORS).assign(task=[f"task{row}" for row in range(8)]),
}


@pytest.mark.parametrize("case", RAGGED)
def test_arms_that_cannot_be_compared_are_refused(case):
    with pytest.raises(UserError, match="expected"):
        improvement_over_dense(RAGGED[case])


def test_records_are_those_of_the_profile_in_its_order(tmp_path, monkeypatch):
    arms = [*arms_of("smoke", "arms"), *arms_of("smoke", "learners")]
    monkeypatch.setattr("lib.evidence.records.records_file", lambda _, arm: tmp_path / f"{arm}.parquet")
    for number, arm in enumerate(arms):
        frame = pd.DataFrame({"error_test": [number / 10], "backbone": ["net"], "image_size": [64]})
        frame.assign(reference=None, seed=0).to_parquet(tmp_path / f"{arm}.parquet")
    records = load_records("smoke", "arms", "a group of another profile", "learners")
    assert records["arm"].tolist() == arms
    assert records["error_test"].tolist() == [number / 10 for number in range(len(arms))]
    assert load_records("smoke")["arm"].tolist() == list(arms_of("smoke", "arms"))


def test_arms_without_records_are_named(tmp_path, monkeypatch):
    first, *others = arms_of("smoke", "arms")
    monkeypatch.setattr("lib.evidence.records.records_file", lambda _, arm: tmp_path / f"{arm}.parquet")
    pd.DataFrame({"error_test": [0.1]}).to_parquet(tmp_path / f"{first}.parquet")
    with pytest.raises(UserError, match=", ".join(others)) as error:
        load_records("smoke")
    assert "make figures PROFILE=smoke" in str(error.value) and first not in str(error.value).split(":")[0]


def test_unknown_profile_is_named_with_the_others():
    with pytest.raises(UserError, match=r"nope.*smoke"):
        load_records("nope")


def test_units_are_compared_apart():
    """Two networks, each with its dense arm: the second's errors are halved, so its gains differ."""
    first = records_of(ERRORS)
    second = elsewhere(first, arm="other_" + first["arm"])
    gains = improvement_over_dense(pd.concat([first, second], ignore_index=True)).set_index(["arm", "budget"])
    alone = improvement_over_dense(first).set_index(["arm", "budget"])
    pd.testing.assert_frame_equal(gains[gains["unit"] == "net@64"], alone)
    assert gains.loc[("other_half", 0.5), "accuracy_gain"] == pytest.approx((1 - 0.275) / (1 - 0.35) - 1)
    assert set(gains.index.get_level_values("arm")) == {"half", "other_half"}


def test_a_smaller_network_counts_in_the_unit_of_its_reference(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.evidence.records.records_file", lambda _, arm: tmp_path / f"{arm}.parquet")
    for arm in arms_of("smoke", "arms"):
        backbone, reference = ("small", "large@64") if arm == "small" else ("large", None)
        frame = pd.DataFrame({"backbone": [backbone], "image_size": [64], "reference": [reference]})
        frame.assign(seed=0, error_test=0.1).to_parquet(tmp_path / f"{arm}.parquet")
    records = load_records("smoke")
    assert set(records["unit"]) == {"large@64"}
    assert records.groupby("backbone")["own"].all().to_dict() == {"large": True, "small": False}


def test_unlimited_table_by_hand():
    records = records_of(ERRORS).assign(pretrained=True, forward_macs=2_500_000)
    table = analysis.unlimited_table(records[records["budget"] == 1.0])
    assert table["error"].to_dict() == {"dense": 0.5, "half": 0.55}
    assert (table["forward (million MACs)"] == 2.5).all()


LEARNT = pd.concat(
    [
        records_of(ERRORS),
        records_of({("goes on", 0.5): [0.5, 0.1], ("goes on", 1.0): [0.5, 0.6]}).assign(learner="previous"),
        records_of({("tries", 0.5): [0.9, 0.9], ("tries", 1.0): [0.9, 0.9]}).assign(trials=8, ratio=0.0),
    ]
)


def test_learners_are_compared_with_independent_on_the_same_network():
    table = analysis.learners_compared(LEARNT).drop(columns="unit").set_index(["ratio", "learner", "budget"])
    assert len(table) == 8
    low = table.loc[(0.5, "previous", 0.5)]
    assert low["error"] == pytest.approx(0.3) and low["tera_macs"] == pytest.approx(11e-12)
    assert low["forward_transfer"] == pytest.approx(25)  # points: 0.2 and 0.3
    assert 20 - 1e-9 <= low["forward_transfer_low"] <= 25 <= low["forward_transfer_high"] <= 30 + 1e-9
    assert table.loc[(0.5, "previous", 1.0), "forward_transfer"] == pytest.approx(0)
    assert table.loc[(0.0, "independent, searched", 1.0), "forward_transfer"] == pytest.approx(-40)
    assert (table.xs("independent", level="learner")["forward_transfer"] == 0).all()


def test_learners_are_compared_where_a_pruned_network_was_probed():
    """That network and the dense one: not another share, other pixels, or a unit without such a probe."""
    first = records_of(ERRORS)
    half = first["arm"] == "half"
    records = pd.concat(
        [
            first,
            first[half].assign(arm="half probed", learner="probe"),
            first[half].assign(arm="quarter", ratio=0.25),
            described(first[~half].assign(arm="fewer pixels", image_size=32)),
            elsewhere(first, arm="other " + first["arm"]),
        ]
    )
    assert list(learners_grid(records)["arm"].unique()) == ["dense", "half", "half probed"]
    apart = analysis.learners_compared(pd.concat([first, elsewhere(first)]))
    errors = apart.set_index(["unit", "ratio", "budget"])["error"]
    assert errors["other@64", 0.5, 1.0] == pytest.approx(errors["net@64", 0.5, 1.0] / 2)


def test_compute_and_error_add_up_along_the_stream():
    table = analysis.along_the_stream(LEARNT.sample(frac=1, random_state=0))
    last = table[(table["arm"] == "goes on") & (table["event"] == 1)].set_index("budget")
    assert last["cumulative_macs"].to_dict() == {0.5: 11, 1.0: 12}
    assert last["mean_error_so_far"].to_dict() == pytest.approx({0.5: 0.3, 1.0: 0.55})


def test_dense_is_the_arm_that_learns_alike():
    probed = LEARNT[LEARNT["trials"] == 1].replace({"arm": {"dense": "probed", "half": "half probed"}})
    probed = probed[probed["learner"] == "independent"].assign(learner="probe")
    records = pd.concat([probed, records_of(ERRORS)])
    assert analysis.dense_arm(records) == "dense" and analysis.dense_arm(records, "probe") == "probed"
    with pytest.raises(UserError, match="with ratio 0 and learner previous"):
        analysis.dense_arm(records, "previous")


def test_a_dense_arm_alone_has_no_improvement_and_all_columns():
    records = records_of({key: errors for key, errors in ERRORS.items() if key[0] == "dense"})
    alone = improvement_over_dense(records)
    assert alone.empty and list(alone.columns) == list(improvement_over_dense(records_of(ERRORS)).columns)


def test_arms_are_told_apart_and_called_what_they_are():
    """Dense first, then by ratio; what is not the unit's own network at its resolution, and probes, last."""
    first = records_of(ERRORS)
    dense, half = (first[first["arm"] == arm] for arm in ("dense", "half"))
    records = pd.concat(
        [
            dense.assign(arm="probed", learner="probe"),
            described(dense.assign(arm="small", backbone="tiny")),
            half.assign(arm="thin", granularity="channel", criterion="activation", repair="mean"),
            half.assign(arm="tried", trials=8),
            described(half.assign(arm="fewer", image_size=32, scope="global")),
            first,
        ]
    )
    assert arms(records)["label"].to_dict() == {
        "dense": "dense",
        "thin": "50 %, activation, channel + mean",
        "tried": "50 %, l1, independent, searched",
        "half": "50 %, l1",
        "small": "tiny, dense",
        "fewer": "50 %, l1, global, 32 px",
        "probed": "dense, probe",
    }


@pytest.mark.parametrize("read", [mean_errors, improvement_over_dense, analysis.learners_compared])
def test_tasks_of_one_name_are_told_apart_by_their_events(read):
    records = records_of(ERRORS)
    pd.testing.assert_frame_equal(read(records.assign(task="flowers")), read(records))


def test_arms_without_a_name_are_called_by_what_they_are():
    first = records_of(ERRORS)
    named = described(first.drop(columns=["arm", "unit", "own"]))
    assert set(named["arm"]) == {"dense", "50 %, l1"}
    both = pd.concat([first, elsewhere(first)]).drop(columns=["arm", "unit", "own"])
    assert set(described(both)["arm"]) == {
        "dense in net@64",
        "dense in other@64",
        "50 %, l1 in net@64",
        "50 %, l1 in other@64",
    }


def test_records_of_two_units_are_not_mixed():
    records = pd.concat([records_of(ERRORS)[:4], elsewhere(records_of(ERRORS))[4:]])
    with pytest.raises(UserError, match="in units of net@64 and other@64: expected one"):
        errors_by_seed(records)


@pytest.mark.parametrize("read", [learners_grid, analysis.granularities_compared])
def test_a_table_without_its_arms_says_which_it_is_about(read):
    with pytest.raises(MissingArms, match="no arms to compare: expected"):
        read(records_of(ERRORS))
