"""What `make tune` says, and what `python -m tools.tune_rates` writes into the committed table."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.common.errors import UserError
from lib.learning import rates
from lib.runs.spec import RunSpec
from tools import tune_precision, tune_rates
from tools.tune_precision import PRECISIONS, fastest, main
from tools.tune_rates import PLACE, TASKS, grid


def errors_with_best_rates(body: float, head: float, tasks: list[str] = TASKS) -> pd.DataFrame:
    """Records of a small network's grid whose error is lowest at known rates; for the first task, at others."""
    rows = []
    for place in grid("resnet18half_64", "last_stage"):
        row = dict(zip(PLACE, place, strict=True))
        apart = np.log10([row["body_rate"] / body, row["head_rate"] / head])
        if row["task"] == TASKS[0]:
            apart = np.log10([row["body_rate"] / 1e-3, row["head_rate"] / 1e-2]) * 5
        if row["task"] in tasks:
            rows.append({**row, "error_dev": 0.3 + 0.1 * abs(apart).sum()})
    return pd.DataFrame(rows)


def test_the_table_is_made_of_whole_records_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_rates, "TABLE", tmp_path / "rates.json")
    monkeypatch.setattr(tune_rates, "TUNING", tmp_path)
    monkeypatch.setattr(tune_rates, "measure", None)
    file = tmp_path / "resnet18half_64-last_stage.parquet"
    errors_with_best_rates(3e-3, 3e-2).to_parquet(file)
    tune_rates.main()
    found = json.loads((tmp_path / "rates.json").read_text())["resnet18half_64"]["last_stage"]
    assert set(found) == {rates.ALL, *TASKS}
    assert found[TASKS[0]] == {"body": 3e-3, "head": 3e-2}  # without the task that wants others
    assert found[rates.ALL] == found[TASKS[1]] == {"body": 1e-3, "head": 1e-2}
    errors_with_best_rates(3e-3, 3e-2, TASKS[:2]).to_parquet(file)
    with pytest.raises(UserError, match=r"lacks 54 records .*`python -m tools\.tune_rates resnet18half_64 last_stage"):
        tune_rates.main()


def test_a_compiled_network_must_be_worth_its_compilation():
    assert fastest({"fp32": 100, "bf16": 90, "fp32 compiled": 109, "bf16 compiled": 20}) == "fp32"
    assert fastest({"fp32": 100, "bf16": 90, "fp32 compiled": 20, "bf16 compiled": 111}) == "bf16 compiled"
    for precision in PRECISIONS:
        assert RunSpec(backbone="resnet26_64", ratio=0, budgets=[2], precision=precision)


@pytest.fixture
def quick(monkeypatch):
    """One round, and nothing compiled, which takes minutes."""
    monkeypatch.setattr(tune_precision, "ROUNDS", 1)
    monkeypatch.setattr(tune_precision.shutil, "which", lambda _: None)


@pytest.mark.slow
def test_the_fastest_precision_is_named_beside_the_speeds(quick, capsys):
    main("cpu", "efficientnet_lite0")
    names, row = capsys.readouterr().out.splitlines()
    *precisions, last = names.split()
    name, *speeds, fastest_here = row.split()
    assert name == "efficientnet_lite0"
    assert last == "fastest"
    assert set(precisions) == {"fp32", "bf16"}
    assert fastest_here == max(zip(precisions, speeds, strict=True), key=lambda pair: float(pair[1]))[0]


@pytest.mark.parametrize(("arguments", "wrong"), [(["tpu"], "tpu"), (["cpu", "alexnet"], "alexnet")])
def test_what_cannot_be_measured_is_named(quick, arguments, wrong):
    with pytest.raises(
        UserError, match=f"Cannot measure {wrong}: expected cpu or cuda, and some of efficientnet_lite0"
    ):
        main(*arguments)
