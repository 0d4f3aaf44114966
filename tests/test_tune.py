"""What `make tune` and `python -m tools.tune_rates` write into the committed tables."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from lib.common.errors import UserError
from lib.runs.spec import RunSpec
from tools import tune_precision
from tools.tune_precision import PRECISIONS, fastest, main
from tools.tune_rates import RATES, fit


def errors_with_best_rates(best: dict[float, float]) -> pd.DataFrame:
    """Records whose error is lowest at a known rate for each ratio, whatever the task and budget."""
    rows = [
        {
            "task": task,
            "event": event,
            "ratio": ratio,
            "budget": budget,
            "learning_rate": rate,
            "error_dev": 0.3 + 0.1 * abs(np.log10(rate / best[ratio])) + 0.01 * event,
        }
        for (event, task), ratio, budget, rate in itertools.product(
            enumerate(["a", "b"]), best, [0.5, 2.0], RATES["independent"]
        )
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("best", [{0.0: 1e-3, 0.5: 1e-3}, {0.0: 1e-3, 0.5: 10**-2.8}, {0.0: 3e-3, 0.5: 3e-3}])
def test_the_rule_is_that_of_the_lowest_errors(best):
    rule = fit(errors_with_best_rates(best))
    tried = np.array(RATES["independent"])
    for ratio, rate in best.items():
        # Errors are known where they were measured: the best of the rates that were tried, near the true one.
        nearest = tried[np.abs(np.log10(tried / rate)).argmin()]
        assert abs(np.log10(rule(ratio) / nearest)) <= 0.11
    assert rule.fitted_on == ("a", "b") and (rule.low, rule.high) == (tried[0], tried[-1])


def test_a_compiled_network_must_be_worth_its_compilation():
    assert fastest({"fp32": 100, "bf16": 90, "fp32 compiled": 109, "bf16 compiled": 20}) == "fp32"
    assert fastest({"fp32": 100, "bf16": 90, "fp32 compiled": 20, "bf16 compiled": 111}) == "bf16 compiled"
    for precision in PRECISIONS:
        assert RunSpec(backbone="resnet26_64", ratio=0, budgets=[1], precision=precision)


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
