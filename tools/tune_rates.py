"""Fit the rules of lib/learning/rates.py: `python -m tools.tune_rates BACKBONE [LEARNER]`.

LEARNER is independent, for heads that start at zero, or probe_finetune, for those that were solved before.

Runs the pocket stream at a few fixed learning rates, dense and pruned, and chooses the rule whose rates have
the lowest error on dev images, once for each task with that task left out. The compute of this is not
charged to anyone's budget: that is why no task takes part in its own rule.
"""

import itertools
import json
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.files import write_json
from lib.common.paths import BUILD
from lib.learning.rates import ALL_TASKS, HEADS, TABLE, Rule, as_json
from lib.networks.backbone import list_backbones
from lib.runs.run import run_stream
from lib.runs.spec import RunSpec

RATES = {"independent": [3e-4, 1e-3, 3e-3, 1e-2], "probe_finetune": [3e-6, 1e-5, 3e-5, 1e-4, 3e-4]}
BUDGETS = [0.125, 0.5, 2.0]
RATIOS = [0.0, 0.5]
GRID = {"base": np.arange(-5.6, -2.09, 0.1), "slope_ratio": [-0.4, -0.2, 0.0, 0.2, 0.4]}


def measure(backbone: str, learner: str, ratio: float, rate: float) -> pd.DataFrame:
    """Records of one arm at a fixed learning rate, with a seed that no published arm uses."""
    spec = RunSpec(
        backbone=backbone,
        ratio=ratio,
        criterion="activation",
        scope="uniform",
        repair="mean",
        image_size=64,
        learner=learner,
        budgets=BUDGETS,
        learning_rate=rate,
        train_images=400,
        evaluation_images=200,
        seed=1000,
    )
    return run_stream(spec, BUILD / "runs")


def fit(records: pd.DataFrame) -> Rule:
    """The rule with the lowest mean dev error, errors taken linearly between the rates tried."""
    curves = records.pivot_table("error_dev", ["event", "ratio", "budget"], "learning_rate")
    ratios = curves.index.get_level_values("ratio").to_numpy()
    tried = np.log10(curves.columns.to_numpy(float))
    errors = curves.to_numpy()
    best, best_error = None, np.inf
    for base, slope_ratio in itertools.product(*GRID.values()):
        wanted = np.clip(base + slope_ratio * ratios, tried[0], tried[-1])
        error = np.mean([np.interp(w, tried, row) for w, row in zip(wanted, errors, strict=True)])
        if error < best_error:
            low, high = float(curves.columns[0]), float(curves.columns[-1])
            tasks = tuple(records["task"].unique())
            best = Rule(round(float(base), 2), slope_ratio, low, high, tasks)
            best_error = error
    return best


def main(backbone: str, learner: str = "independent") -> None:
    if backbone not in list_backbones() or learner not in RATES:
        raise UserError(
            f"Cannot fit a rule for {backbone!r} and {learner!r}: expected one of "
            f"{', '.join(list_backbones())}, and one of {', '.join(RATES)}."
        )
    arms = list(itertools.product([backbone], [learner], RATIOS, RATES[learner]))
    with ProcessPoolExecutor() as pool:
        records = pd.concat(pool.map(measure, *zip(*arms, strict=True)), ignore_index=True)
    rules = {ALL_TASKS: fit(records)}
    for task in records["task"].unique():
        rules[task] = fit(records[records["task"] != task])
    table = json.loads(TABLE.read_text())
    table.setdefault(HEADS[learner == "probe_finetune"], {})[backbone] = as_json(rules)
    write_json(TABLE, table)
    print(pd.DataFrame(as_json(rules)).T.drop(columns="fitted_on"))
    ends = RATES[learner][0], RATES[learner][-1]
    if any(rules[ALL_TASKS](ratio) in ends for ratio in RATIOS):
        print("The rule is at an end of the rates that were tried: extend RATES and fit again.")


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(*sys.argv[1:])
