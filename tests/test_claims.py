"""Claims: what they measure, and that a number changed by hand is caught."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_analysis import ERRORS, records_of, with_seeds

from lib.common.errors import UserError
from lib.common.paths import PAPER_RECORDS
from lib.evidence import analysis
from lib.evidence.analysis import Estimate
from lib.runs.profiles import arms_of
from paper import build as paper
from paper import claims, verify
from paper.claims import ESTIMATORS, OF_RECORDS, Claim, NotMeasured, evaluate, load_claims


def claim(estimator: str, holds: str = "low > 0", **arguments) -> Claim:
    return Claim("one", "{value:+.0%} [{low:+.0%}, {high:+.0%}]", estimator, arguments, holds)


def test_improvement_is_that_of_the_analysis():
    records = with_seeds({"dense": 3, "half": 2})
    row = analysis.improvement_over_dense(records).iloc[0]
    one = claim("improvement", arm="half", over="dense", budget=0.5, of="accuracy_gain")
    found = evaluate(one, records)
    assert found.value == pytest.approx(row["accuracy_gain"])
    assert (found.low, found.high) == pytest.approx((row["accuracy_gain_low"], row["accuracy_gain_high"]))
    assert one.is_true_of(found) and not claim("improvement", holds="high < 0").is_true_of(found)
    assert one.sentence(Estimate(0.5, 0.25, 0.75)) == "+50% [+25%, +75%]"


def test_how_long_an_arm_is_ahead():
    """Surely at 0.5, by chance at 1, surely behind at 2; being ahead again at 4 does not count."""
    errors = {("dense", budget): [0.5, 0.5, 0.5, 0.5] for budget in (0.5, 1.0, 2.0, 4.0, 8.0)} | {
        ("half", 0.5): [0.4, 0.3, 0.4, 0.3],
        ("half", 1.0): [0.1, 0.5, 0.6, 0.5],
        ("half", 2.0): [0.6, 0.6, 0.7, 0.6],
        ("half", 4.0): [0.1, 0.1, 0.1, 0.1],
    }
    found = evaluate(claim("ahead_until", arm="half", over="dense"), records_of(errors))
    assert found == Estimate(value=1.0, low=0.5, high=1.0)
    never = evaluate(claim("ahead_until", arm="dense", over="half"), records_of(errors))
    assert never == Estimate(0.0, 0.0, 0.0)
    always = {key: of_tasks for key, of_tasks in errors.items() if key[1] == 0.5}
    found = evaluate(claim("ahead_until", arm="half", over="dense"), records_of(always))
    assert found == Estimate(0.5, 0.5, 0.5)
    with pytest.raises(NotMeasured):
        evaluate(claim("ahead_until", arm="other", over="dense"), records_of(errors))


def test_an_arm_can_be_compared_with_another_at_another_budget():
    one = claim("improvement", arm="half", over="dense", budget=0.5, over_budget=1.0, of="points_gained")
    found = evaluate(one, records_of(ERRORS))
    assert found.value == pytest.approx(-5) and (found.low, found.high) == pytest.approx((-20, 10))


@pytest.mark.parametrize("arguments", [{"arm": "other", "budget": 0.5}, {"arm": "half", "budget": 9}])
def test_what_the_records_do_not_have_is_not_measured(arguments):
    one = claim("improvement", over="dense", of="points_gained", **arguments)
    with pytest.raises(NotMeasured):
        evaluate(one, records_of(ERRORS))
    with pytest.raises(NotMeasured):
        evaluate(one, None)


def test_what_is_claimed_of_the_code_is_measured_without_records():
    half = {"backbone": "resnet18half_64", "ratio": 0.5, "image_size": 64}
    share = evaluate(claim("share_of_macs", granularity="filter", **half), None)
    thin = evaluate(claim("share_of_macs", granularity="channel", **half), None)
    assert thin.value < share.value
    assert 0.3 < share.value < 0.7 and share.low == share.high == share.value
    exact = evaluate(claim("masked_difference", backbone="resnet18half_64", ratio=0.5, image_size=64), None)
    assert exact.value < 1e-12
    assert evaluate(claim("ledger_difference", backbone="resnet18half_64", images=37), None).value == 0


def test_a_masked_network_is_not_the_dense_one(monkeypatch):
    """Were nothing masked, the difference would show."""
    monkeypatch.setattr(claims, "mask_channels", lambda *_: None)
    found = evaluate(claim("masked_difference", backbone="resnet18half_64", ratio=0.5, image_size=64), None)
    assert found.value > 1e-3


def test_claims_are_told_apart_and_name_estimators_and_arms_that_exist():
    found = load_claims()
    assert len({one.id for one in found}) == len(found) > 10
    for one in found:
        for key in ("arm", "over"):
            assert one.arguments.get(key, "dense") in arms_of("paper")
        assert one.estimator in ESTIMATORS and one.sentence(Estimate(0.1, 0.0, 0.2))


def test_an_unknown_estimator_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "claims.yaml"
    file.write_text("- {id: a, says: x, estimator: guess, arguments: {}, holds: value > 0}")
    monkeypatch.setattr(claims, "CLAIMS", file)
    with pytest.raises(UserError, match=r"estimator of claim a in claims\.yaml 'guess': expected one of improvement, "):
        load_claims()


# --- committed numbers ----------------------------------------------------------------------------


@pytest.fixture
def committed(tmp_path, monkeypatch) -> Path:
    """A copy of the committed records and of what was generated from them."""
    shutil.copytree(PAPER_RECORDS, tmp_path / "records")
    shutil.copytree(paper.GENERATED, tmp_path / "generated")
    monkeypatch.setattr("lib.evidence.records.records_file", lambda _, arm: tmp_path / "records" / f"{arm}.parquet")
    monkeypatch.setattr(paper, "PAPER_RECORDS", tmp_path / "records")
    for module in (paper, verify):
        monkeypatch.setattr(module, "GENERATED", tmp_path / "generated")
    return tmp_path


def test_the_committed_numbers_follow_from_the_committed_records(committed):
    assert verify.altered() == []


def test_the_paper_uses_what_is_generated_and_every_claim_once_at_least():
    text = (paper.ROOT / "paper" / "main.tex").read_text()
    for kind, file in (("claim", "claims.tex"), ("val", "numbers.tex")):
        used = set(re.findall(rf"\\{kind}\{{([^}}]+)\}}", text))
        defined = set(re.findall(rf"csname {kind}@([^\\]+)\\endcsname\{{", (paper.GENERATED / file).read_text()))
        assert used <= defined
        assert used == defined or kind == "val"
    drawn = set(re.findall(r"\\(?:drawnby|wide)\{(\w+)\}", text))
    assert drawn and all((paper.FIGURES / "paper" / f"{name}.pdf").exists() for name in drawn)


def test_a_number_changed_in_a_record_is_caught(committed):
    file = committed / "records" / "previous.parquet"
    records = pd.read_parquet(file)
    records.loc[3, "error_test"] = np.nextafter(records.loc[3, "error_test"], 1)
    records.to_parquet(file, index=False)
    assert verify.altered() == ["sources.sha256"]


@pytest.mark.parametrize("table", ["TIMES", "DISTANCES"])
def test_a_number_changed_in_a_figure_s_source_data_is_caught(committed, monkeypatch, table):
    """Also one that no sentence shows: its last line, of a network that the paper's times are not of."""
    changed = committed / getattr(paper, table).name
    text = getattr(paper, table).read_text()
    changed.write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    monkeypatch.setattr(paper, table, changed)
    assert verify.altered() == ["sources.sha256"]


def test_a_number_changed_in_what_is_generated_is_caught(committed):
    file = committed / "generated" / "claims.json"
    published = json.loads(file.read_text())
    published["macs-filter"]["value"] += 1e-5
    file.write_text(json.dumps(published, indent=1) + "\n")
    assert verify.altered() == ["claims.json"]
    table = committed / "generated" / "improvement.tex"
    table.write_text(table.read_text().replace("1", "2", 1))
    with pytest.raises(UserError, match=r"claims\.json, improvement\.tex in generated/ are not what"):
        verify.main("smoke")


def test_smoke_verifies_the_code_and_leaves_the_rest(committed, capsys):
    verify.main("smoke")
    printed = capsys.readouterr().out
    assert f"what {paper.PINNED} pins" in printed
    for arm in verify.from_changed_trees():
        assert f"{arm}, " in printed or f"{arm} were measured by code with changes" in printed
    code = sum(one.estimator not in OF_RECORDS for one in load_claims())
    assert f"smoke: {len(load_claims()) - code} not measured here, {code} reproduced." in printed


def test_a_claim_that_does_not_hold_ends_verify_with_1(committed, monkeypatch, capsys):
    monkeypatch.setattr(claims, "mask_channels", lambda *_: None)
    monkeypatch.setattr(verify, "altered", list)
    with pytest.raises(SystemExit) as ended:
        verify.main("smoke")
    assert ended.value.code == 1 and "not reproduced" in capsys.readouterr().out


def test_a_claim_that_the_records_do_not_bear_out_is_not_published(committed, monkeypatch):
    arguments = {"backbone": "resnet26_64", "ratio": 0.5, "granularity": "filter", "image_size": 64}
    wrong = claim("share_of_macs", holds="value > 1", **arguments)
    monkeypatch.setattr(paper, "load_claims", lambda: [wrong])
    before = (paper.GENERATED / "claims.json").read_text()
    with pytest.raises(UserError, match="The records do not bear out one: expected"):
        paper.main()
    assert (paper.GENERATED / "claims.json").read_text() == before


def test_records_measured_anew_are_what_the_claims_are_tested_on(committed, capsys):
    """With the paper's own profile: the seconds of a rerun differ, if nothing else."""
    file = committed / "records" / "dense.parquet"
    pd.read_parquet(file).assign(seconds=1.0).to_parquet(file, index=False)
    verify.main("paper")
    printed = capsys.readouterr().out
    assert "The records are not the published ones" in printed
    assert f"paper: {len(load_claims())} reproduced." in printed
    with pytest.raises(UserError, match=r"sources\.sha256"):
        verify.main("smoke")


def test_records_of_other_budgets_than_listed_are_caught(committed, monkeypatch):
    monkeypatch.setattr(
        verify, "arms_of", lambda profile: arms_of(profile) | {"dense": arms_of(profile)["dense"] | {"budgets": [1.0]}}
    )
    assert verify.unlike_their_arms() == ["dense"]
    with pytest.raises(UserError, match=r"The records of dense were not measured with what profiles\.toml"):
        verify.main("smoke")


@pytest.mark.parametrize("field", [{"calibration_images": 32}, {"scope": "global"}, {"reference": "resnet50@64"}])
def test_records_of_other_fields_than_a_run_would_have_are_caught(monkeypatch, field):
    """Also one that the profile does not list and RunSpec fills in."""
    listed = arms_of("paper")
    monkeypatch.setattr(verify, "arms_of", lambda _: {"dense": listed["dense"] | field, "small": listed["small"]})
    assert verify.unlike_their_arms() == ["dense"]
