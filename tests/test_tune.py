"""What `make tune` and `python -m tools.tune_rates` write into the committed tables."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from lib.common.errors import UserError
from lib.learning import rates
from lib.runs.spec import RunSpec
from tools import tune_precision, tune_rates
from tools.tune_precision import PRECISIONS, fastest, main
from tools.tune_rates import BODY, BUDGETS, HEAD, KEYS, RATIOS, TASKS, fit


def errors_with_best_rates(
    body: float, head: float, by_ratio: float, by_budget: float, tasks: list[str] = TASKS
) -> pd.DataFrame:
    """Records whose error is lowest at known rates, whatever the task; the body's follow a line."""
    rows = []
    for task, ratio, budget, b, h in itertools.product(tasks, RATIOS, BUDGETS, BODY, HEAD[""]):
        best = body + by_ratio * ratio + by_budget * np.log2(budget / 64) / 2
        error = 0.3 + 0.1 * abs(np.log10(b) - best) + 0.1 * abs(np.log10(h) - head) + 0.01 * (task == TASKS[0])
        rows.append(
            dict(zip([*KEYS, "body_rate", "head_rate"], (task, ratio, budget, b, h), strict=True), error_dev=error)
        )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("line", [(-4, -2, 0, 0), (-3.5, -1.5, 0.5, 0), (-4, -2, 0.5, -0.25)])
def test_the_rule_is_that_of_the_lowest_errors(line):
    rule = fit(errors_with_best_rates(*line))
    found = [rule["body"][name] for name in ("base", "by_ratio", "by_budget")]
    for ratio, budget in itertools.product(RATIOS, BUDGETS):
        wanted = line[0] + line[2] * ratio + line[3] * np.log2(budget / 64) / 2
        # Errors are known where they were measured, and lines are tried a quarter of a power apart.
        assert abs(found[0] + found[1] * ratio + found[2] * np.log2(budget / 64) / 2 - wanted) <= 0.26
    assert abs(rule["head"]["base"] - line[1]) <= 0.26
    assert (rule["body"]["low"], rule["body"]["high"]) == pytest.approx((BODY[0], BODY[-1]))


def test_the_table_is_drawn_from_whole_records_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_rates, "TABLE", tmp_path / "rates.json")
    monkeypatch.setattr(tune_rates, "TUNING", tmp_path)
    monkeypatch.setattr(tune_rates, "measure", None)
    (tmp_path / "rates.json").write_text('{"mine": {}}')
    file = tmp_path / "resnet26_64-norms-filter.parquet"
    errors_with_best_rates(-4, -2, 0.5, 0).to_parquet(file)
    tune_rates.main()
    table = json.loads((tmp_path / "rates.json").read_text())
    assert table["mine"] == {}
    assert set(table["resnet26_64"]["norms"]["filter"]) == {rates.ALL, *TASKS}
    errors_with_best_rates(-4, -2, 0.5, 0, TASKS[:2]).to_parquet(file)
    with pytest.raises(UserError, match=r"python -m tools\.tune_rates resnet26_64 norms filter"):
        tune_rates.main()


def test_a_compiled_network_must_be_worth_its_compilation():
    assert fastest({"fp32": 100, "bf16": 90, "fp32 compiled": 109, "bf16 compiled": 20}) == "fp32"
    assert fastest({"fp32": 100, "bf16": 90, "fp32 compiled": 20, "bf16 compiled": 111}) == "bf16 compiled"
    for precision in PRECISIONS:
        assert RunSpec(backbone="resnet26_64", ratio=0, budgets=[2], precision=precision)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of its own, to be measured without compiling, which takes minutes."""
    file = tmp_path / "precision.json"
    file.write_text(json.dumps({"cpu": {"resnet26_64": "bf16"}}))
    monkeypatch.setattr(tune_precision, "TABLE", file)
    monkeypatch.setattr(tune_precision, "ROUNDS", 1)
    monkeypatch.setattr(tune_precision.shutil, "which", lambda _: None)
    return file


def test_tuning_writes_the_fastest_and_leaves_other_rows(table, capsys):
    main("cpu", "efficientnet_lite0")
    names, row = capsys.readouterr().out.splitlines()
    rates = dict(zip(names.split()[:2], row.split()[1:3], strict=True))
    assert set(rates) == {"fp32", "bf16"}
    chosen = max(rates, key=lambda precision: float(rates[precision]))
    assert json.loads(table.read_text()) == {"cpu": {"resnet26_64": "bf16", "efficientnet_lite0": chosen}}


@pytest.mark.parametrize(("arguments", "wrong"), [(["tpu"], "tpu"), (["cpu", "alexnet"], "alexnet")])
def test_what_cannot_be_tuned_is_named(table, arguments, wrong):
    with pytest.raises(UserError, match=f"Cannot tune {wrong}: expected cpu or cuda, and some of resnet26_64"):
        main(*arguments)
