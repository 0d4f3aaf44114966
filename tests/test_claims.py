"""Claims: what they measure, and that a number changed by hand is caught."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ERRORS, records_of
from scipy import stats

from lib.common.errors import UserError
from lib.common.paths import PAPER_RECORDS
from lib.evidence.analysis import Estimate
from lib.evidence.records import FAMILIES
from lib.runs.profiles import arms_of
from paper import build as paper
from paper import claims, verify
from paper.claims import ESTIMATORS, OF_RECORDS, Claim, Lead, NotMeasured, evaluate, load_claims

POCKET = {"pocket": records_of(ERRORS)}


def claim(estimator: str, holds: str = "low > 0", **arguments) -> Claim:
    return Claim("one", "{value:+.0f} [{low:+.0f}, {high:+.0f}]", estimator, arguments, holds)


def test_a_lead_is_the_mean_of_the_paired_differences_with_its_t_interval():
    one = claim("lead", ours=["half"], theirs=["dense"], budget=64)
    found = evaluate(one, POCKET)
    points = [10, 20, 10]
    t = stats.t.interval(0.95, 2, np.mean(points), stats.sem(points))
    assert found[:3] == pytest.approx((np.mean(points), *t))
    assert (found.reached, found.over, found.tasks) == pytest.approx((50, 100 * 1.1 / 3, 3))
    assert found.relative == pytest.approx(100 * (1.5 / 1.1 - 1))
    assert found.p == pytest.approx(stats.ttest_1samp(points, 0).pvalue)
    assert not one.is_true_of(found) and claim("lead", holds="value > 13").is_true_of(found)
    assert one.sentence(Estimate(5, 2.5, 7.5)) == "+5 [+2, +8]"


def test_families_are_named_like_arms(monkeypatch):
    monkeypatch.setattr(claims, "_compared", lambda: {"dense", "half"})
    one = claim("lead", ours=["pruned, fine-tuned"], theirs=["dense, fine-tuned"], budget=256)
    assert evaluate(one, POCKET).value == pytest.approx(-20 / 3)


def test_the_share_of_macs():
    assert evaluate(claim("share_of_macs", arm="half", over="dense"), POCKET).value == pytest.approx(0.6)


def test_what_pruned_networks_gain_on_the_front_is_of_what_is_compared(monkeypatch):
    monkeypatch.setattr(claims, "_compared", lambda: {"dense", "half", "third"})
    worse, better = records_of({("third", 64): [1.0] * 3}), records_of({("half, not compared", 64): [0.0] * 3})
    alike = records_of(ERRORS, preparation_macs=0)
    records = {"pocket": pd.concat([alike, *(one.assign(preparation_macs=0) for one in (worse, better))])}
    # Half errs less by 13.3 points at 64 dense images and more by 6.7 at 256, so less in the first two thirds between.
    assert evaluate(claim("pruned_front_gain"), records).value == pytest.approx(40 / 3 * 2 / 3 / 2, abs=0.1)
    with pytest.raises(NotMeasured):
        evaluate(claim("pruned_front_gain"), {"pocket": alike})


@pytest.mark.parametrize("arguments", [{"ours": ["other"], "budget": 64}, {"ours": ["half"], "budget": 9}])
def test_what_the_records_do_not_have_is_not_measured(arguments):
    one = claim("lead", theirs=["dense"], **arguments)
    for records in (POCKET, {}, {"Nevis'22": POCKET["pocket"]}):
        with pytest.raises(NotMeasured):
            evaluate(one, records)


def test_what_is_claimed_of_the_code_is_measured_without_records():
    exact = evaluate(claim("masked_difference", backbone="resnet18half_64", ratio=0.5, image_size=64), {})
    assert exact.value < 1e-12
    assert evaluate(claim("ledger_difference", backbone="resnet18half_64", images=37), {}).value == 0


def test_a_masked_network_is_not_the_dense_one(monkeypatch):
    """Were nothing masked, the difference would show."""
    monkeypatch.setattr(claims, "mask_channels", lambda *_: None)
    found = evaluate(claim("masked_difference", backbone="resnet18half_64", ratio=0.5, image_size=64), {})
    assert found.value > 1e-3


def test_claims_are_told_apart_and_name_estimators_and_arms_that_exist():
    found = load_claims()
    assert len({one.id for one in found}) == len(found) > 10
    for one in found:
        profile = {**paper.STREAMS, paper.ALL_SETS: "further"}[one.stream]
        known = {*arms_of(profile), *FAMILIES}
        for key in ("arm", "over", "ours", "theirs"):
            named = one.arguments.get(key, [])
            assert known.issuperset([named] if isinstance(named, str) else named)
        lead = Lead(0.1, 0.0, 0.2, 50, 40, 25, 20, 30, 3, 0.05)
        assert one.estimator in ESTIMATORS
        assert one.sentence(lead if one.estimator == "lead" else Estimate(0.1, 0.0, 0.2))


def test_an_unknown_estimator_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "claims.yaml"
    file.write_text("- {id: a, says: x, estimator: guess, arguments: {}, holds: value > 0}")
    monkeypatch.setattr(claims, "CLAIMS", file)
    with pytest.raises(UserError, match=r"estimator of claim a in claims\.yaml 'guess': expected one of lead, "):
        load_claims()


# --- committed numbers ----------------------------------------------------------------------------


@pytest.fixture
def committed(tmp_path, monkeypatch) -> Path:
    """A copy of the committed records and of what was generated from them."""
    shutil.copytree(PAPER_RECORDS, tmp_path / "records")
    shutil.copytree(paper.GENERATED, tmp_path / "generated")
    monkeypatch.setattr("lib.runs.profiles.PAPER_RECORDS", tmp_path / "records")
    monkeypatch.setattr(paper, "PAPER_RECORDS", tmp_path / "records")
    for module in (paper, verify):
        monkeypatch.setattr(module, "GENERATED", tmp_path / "generated")
    return tmp_path


@pytest.fixture(scope="module")
def derived() -> dict[str, str]:
    """What follows from the committed records, for tests that do not change them."""
    return paper.generated_files(paper.published_claims())


@pytest.fixture
def derived_once(derived, monkeypatch):
    monkeypatch.setattr(verify, "published_claims", list)
    monkeypatch.setattr(verify, "generated_files", lambda _: derived)


def test_the_committed_numbers_follow_from_the_committed_records(committed):
    assert verify.altered() == []


def test_the_paper_uses_what_is_generated_and_every_claim_once_at_least():
    text = (paper.ROOT / "paper" / "main.tex").read_text()
    for kind, file in (("claim", "claims.tex"), ("val", "numbers.tex")):
        used = set(re.findall(rf"\\{kind}\{{([^}}]+)\}}", text))
        defined = set(re.findall(rf"csname {kind}@([^\\]+)\\endcsname\{{", (paper.GENERATED / file).read_text()))
        assert used <= defined
        elsewhere = {one.id for one in load_claims() if one.id.startswith("answer") or one.row}
        assert used | elsewhere == defined or kind == "val"
    assert {one.row[0] for one in load_claims() if one.row} == set(paper.TABLES)
    assert all(rf"\input{{generated/{table}}}" in text for table in paper.TABLES)
    drawn = set(re.findall(r"\\(?:narrow|wide)\{(\w+)\}", text))
    assert drawn and all((paper.FIGURES / "paper" / f"{name}.pdf").exists() for name in drawn)


@pytest.mark.parametrize(
    "name",
    [
        "nevis/probe_50",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("probe_50", "tuning/efficientnet_lite0-independent")),
    ],
)
def test_a_number_changed_in_a_record_is_caught(committed, name):
    file = committed / "records" / f"{name}.parquet"
    records = pd.read_parquet(file)
    column = "error_dev" if "tuning" in name else "error_test"
    records.loc[3, column] = np.nextafter(records.loc[3, column], 1)
    records.to_parquet(file, index=False)
    assert verify.altered() == ["sources.sha256"]


def test_a_number_changed_in_a_figure_s_source_data_is_caught(committed, monkeypatch):
    """Also one that no sentence shows: its last line, of a network that the paper's times are not of."""
    changed = committed / paper.TIMES.name
    text = paper.TIMES.read_text()
    changed.write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    monkeypatch.setattr(paper, "TIMES", changed)
    assert verify.altered() == ["sources.sha256"]


def test_a_number_changed_in_the_readme_is_caught(committed, derived_once, monkeypatch):
    changed = committed / "README.md"
    changed.write_text(re.sub(r"(?<=reaches )\d", "9", paper.README.read_text(), count=1))
    monkeypatch.setattr(verify, "README", changed)
    assert verify.altered() == ["README.md"]


def test_a_number_changed_in_what_is_generated_is_caught(committed, derived_once):
    file = committed / "generated" / "claims.json"
    published = json.loads(file.read_text())
    published["repair"]["value"] += 1e-5
    file.write_text(json.dumps(published, indent=1) + "\n")
    assert verify.altered() == ["claims.json"]
    table = committed / "generated" / "leads.tex"
    table.write_text(table.read_text().replace("1", "2", 1))
    with pytest.raises(UserError, match=r"claims\.json, leads\.tex in generated/ are not what"):
        verify.main("smoke")


def test_smoke_verifies_the_code_and_leaves_the_rest(committed, derived_once, capsys):
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
    wrong = claim("share_of_macs", holds="value > 1", arm="probe_50", over="probe")
    monkeypatch.setattr(paper, "load_claims", lambda: [wrong])
    before = (paper.GENERATED / "claims.json").read_text()
    with pytest.raises(UserError, match="The records do not bear out one: expected"):
        paper.main()
    assert (paper.GENERATED / "claims.json").read_text() == before


@pytest.mark.slow
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


def listed_as(monkeypatch, arm: str, **changed) -> None:
    """Let the paper's profile list one arm, with fields other than it has."""
    fields = arms_of("paper")[arm] | changed
    monkeypatch.setattr(verify, "arms_of", lambda profile: {arm: fields} if profile == "paper" else {})


def test_records_of_other_budgets_than_listed_are_caught(committed, monkeypatch):
    listed_as(monkeypatch, "probe", budgets=[2])
    assert verify.unlike_their_arms() == ["probe"]
    with pytest.raises(UserError, match=r"The records of probe were not measured with what profiles\.toml"):
        verify.main("smoke")


@pytest.mark.parametrize("field", [{"calibration_images": 32}, {"scope": "uniform"}, {"reference": "resnet50@64"}])
def test_records_of_other_fields_than_a_run_would_have_are_caught(monkeypatch, field):
    """Also one that the profile does not list and RunSpec fills in."""
    listed_as(monkeypatch, "probe", **field)
    assert verify.unlike_their_arms() == ["probe"]
