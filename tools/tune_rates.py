"""Fit the rules of lib/learning/rates.py: `python -m tools.tune_rates [BACKBONE [LEARNER [GRANULARITY]]]`.

Trains the tuning tasks of the pocket stream at a grid of rates of body and head, dense and pruned, at a few budgets,
and looks at dev images alone. The records lie in paper/records/tuning, one file for each network, learner and
granularity; a run that is killed goes on, and without a name (`make rates`) nothing is measured and all files are
fitted anew. The rule is the one with the lowest mean error, once over all data sets and once without each of them.
The compute of this is charged to no task: that is why no task takes part in its own rule.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.interpolate import RegularGridInterpolator

from lib.common.errors import UserError, choose, exit_with_one_sentence
from lib.common.files import atomic_path, write_json
from lib.common.paths import PAPER_RECORDS
from lib.common.progress import report
from lib.learning.job import Job
from lib.learning.learners import LEARNERS
from lib.learning.ledger import Ledger
from lib.learning.rates import ALL, TABLE, data_set
from lib.learning.state import Memory
from lib.learning.training import Recipe, TaskNetwork, error_of, predict
from lib.networks import list_backbones, load_backbone
from lib.networks.macs import training_macs
from lib.pruning.sites import GRANULARITIES
from lib.runs.run import starts
from lib.runs.spec import RunSpec
from lib.streams import load_stream

TUNING = PAPER_RECORDS / "tuning"
TASKS = ["clipart", "emoji", "materials", "letters"]
# Wide enough that no rule ends at the end of what was tried; "" is for the learners that are not named.
BODY = {
    "independent": [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    "probe_finetune": [1e-6, 1e-5, 1e-4, 1e-3],
    "": [3e-4, 1e-3, 3e-3, 1e-2],
}
HEAD = {
    "independent": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    "probe_finetune": [1e-5, 1e-4, 1e-3, 1e-2],
    "": [1e-3, 3e-3, 1e-2, 3e-2],
}
DEV_IMAGES = 100  # of a task, that the error is measured on
BUDGETS, SEED = [16, 64, 256], 1000  # a seed that no published arm uses
# What is small from the start is not pruned.
RATIOS = {"resnet18half_64": [0.0], "resnet18quarter_64": [0.0], "resnet18eighth_64": [0.0], "": [0.0, 0.5]}
TRIED = {"base": np.arange(-5, -0.9, 0.25), "by_ratio": [-0.5, 0.0, 0.5, 1.0], "by_budget": [-0.25, 0.0, 0.25]}
KEYS = ["task", "ratio", "budget"]


def measure(backbone: str, learner: str, granularity: str, file: Path) -> pd.DataFrame:
    """Dev errors (column `error_dev`) of the whole grid; those that `file` holds are not measured again."""
    rows = pd.read_parquet(file).to_dict("records") if file.exists() else []
    done = {(row["ratio"], row["task"], row["budget"], row["body_rate"], row["head_rate"]) for row in rows}
    for ratio in RATIOS.get(backbone, RATIOS[""]):
        spec = RunSpec(
            backbone=backbone,
            ratio=ratio,
            granularity=granularity,
            learner=learner,
            criterion="activation_images",
            repair="least_squares",
            calibration="shipped",
            calibration_images=512,
            budgets=BUDGETS,
            evaluation_images=DEV_IMAGES,
            tasks=TASKS,
            seed=SEED,
        )
        stream, dense = load_stream(spec.stream).only(spec.tasks), load_backbone(backbone)
        start = starts(spec, dense, stream)(0).network
        name, side = spec.reference.split("@")
        for event, task in enumerate(stream.tasks):
            unit = training_macs(TaskNetwork(load_backbone(name, pretrained=False), task.num_classes), int(side))
            data = spec.data_of(task)
            for budget, body, head in itertools.product(BUDGETS, *(rates.get(learner, rates[""]) for rates in (BODY, HEAD))):
                place = (ratio, task.name, budget, body, head)
                if place in done:
                    continue
                job = Job(
                    event=event,
                    task=task,
                    data=data,
                    start=start,
                    recipe=Recipe(body, head),
                    trials=1,
                    budget=budget,
                    ledger=Ledger(budget * unit),
                    memory=Memory(Path(), 0, start),
                    checkpoints=None,
                    engine=spec.engine,
                    seed=SEED,
                )
                learnt = LEARNERS[learner].learn(job)
                logits = predict(learnt.network, data.dev, spec.engine)
                error = error_of(logits, data.dev.labels.numpy())
                named = zip(("ratio", "task", "budget", "body_rate", "head_rate"), place, strict=True)
                rows.append({**dict(named), "steps": learnt.steps, "error_dev": error})
            report(f"{backbone} {learner} {granularity}, {ratio:g} removed, {task.name}")
            with atomic_path(file) as temporary:
                pd.DataFrame(rows).to_parquet(temporary)
    return pd.DataFrame(rows)


def fit(records: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The lines of body and head with the lowest mean dev error, taken linearly between the rates tried."""
    surfaces = {}
    for place, rows in records.groupby(KEYS):
        table = rows.pivot_table("error_dev", "body_rate", "head_rate")
        axes = np.log10(table.index), np.log10(table.columns)
        surfaces[place] = RegularGridInterpolator(axes, table.to_numpy())
    places = pd.DataFrame(surfaces, index=[0]).columns.to_frame(index=False, name=KEYS)
    steps = np.log(places["budget"] / 64) / np.log(4)
    held = {rate: np.log10(records[f"{rate}_rate"].agg(["min", "max"]).to_numpy()) for rate in ("body", "head")}

    def lines(rate: str) -> dict[tuple, np.ndarray]:
        """log10 of the rate at every place, by the line."""
        return {
            (base, by_ratio, by_budget): np.clip(base + by_ratio * places["ratio"] + by_budget * steps, *held[rate])
            for base, by_ratio, by_budget in itertools.product(*TRIED.values())
        }

    def mean_error(body: np.ndarray, head: np.ndarray) -> float:
        return np.mean([surface([b, h])[0] for surface, b, h in zip(surfaces.values(), body, head, strict=True)])

    # One after the other, from the middle: the two hardly interact.
    chosen = {rate: (held[rate].mean(), 0.0, 0.0) for rate in ("body", "head")}
    now = {rate: np.full(len(places), held[rate].mean()) for rate in chosen}
    for rate in ("head", "body", "head", "body"):
        other = {key: value for key, value in now.items() if key != rate}
        found = lines(rate)
        chosen[rate] = min(found, key=lambda line: mean_error(**{rate: found[line]}, **other))
        now[rate] = found[chosen[rate]]
    ends = {rate: 10 ** held[rate] for rate in held}
    return {
        rate: {**dict(zip(TRIED, map(float, chosen[rate]), strict=True)), "low": ends[rate][0], "high": ends[rate][1]}
        for rate in ("body", "head")
    }


def draw(file: Path) -> None:
    """Put the rules that follow from the records in `file` into the table.

    Raises UserError for records of a part of the grid, such as a killed run leaves.
    """
    backbone, learner, granularity = file.stem.split("-")
    records = pd.read_parquet(file)
    ratios = RATIOS.get(backbone, RATIOS[""])
    axes = [records[name].nunique() for name in (*KEYS, "body_rate", "head_rate")]
    if len(records) < math.prod(axes) or axes[:3] != [len(TASKS), len(ratios), len(BUDGETS)]:
        raise UserError(
            f"{file.name} holds {len(records)} records, which are a part of the grid: finish it with "
            f"`python -m tools.tune_rates {backbone} {learner} {granularity}`, or remove it."
        )
    rules = {ALL: fit(records)} | {data_set(task): fit(records[records["task"] != task]) for task in TASKS}
    table = json.loads(TABLE.read_text())
    table.setdefault(backbone, {}).setdefault(learner, {})[granularity] = rules
    write_json(TABLE, table)
    print(file.stem, pd.json_normalize(list(rules.values())).set_axis(list(rules)).to_string(), sep="\n")


def main(backbone: str = "", learner: str = "independent", granularity: str = "channel") -> None:
    """Measure and draw one network's rules; without a name, draw those of all records and measure nothing."""
    if not backbone:
        for file in sorted(TUNING.glob("*.parquet")):
            draw(file)
        return
    choose("backbone", backbone, list_backbones())
    choose("learner", learner, [name for name, one in LEARNERS.items() if one.fine_tunes and not one.remembers])
    choose("granularity", granularity, GRANULARITIES)
    file = TUNING / f"{backbone}-{learner}-{granularity}.parquet"
    measure(backbone, learner, granularity, file)
    draw(file)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(*sys.argv[1:])
