"""Fit lib/learning/rates.json: `python -m tools.tune_rates [BACKBONE [LEARNER]]`.

Trains the tuning tasks of the pocket stream at a grid of rates of body and head, dense and, where all layers of the
main network are trained, with half of the channels removed, at a few budgets, and looks at dev images alone. The
records lie in paper/records/tuning, one file for each network and learner; a run that is killed goes on, and without
a name (`make rates`) nothing is measured and the table is made anew from all files. The rates are those of the lowest
mean error, once over all data sets and once without each of them. Whether they hold at a larger budget is looked at
beside it, in LARGER, and changes no rate. The compute of this is charged to no task: that is
why no task takes part in its own rates.
"""

import itertools
import sys
from pathlib import Path

import pandas as pd

from lib.common.errors import UserError, choose, exit_with_one_sentence
from lib.common.files import atomic_path, write_json
from lib.common.paths import PAPER_RECORDS
from lib.common.progress import report
from lib.learning.job import Job
from lib.learning.learners import LEARNERS
from lib.learning.ledger import Ledger
from lib.learning.rates import ALL, TABLE, data_set
from lib.learning.state import Memory
from lib.learning.training import Recipe, error_of, predict
from lib.networks import list_backbones, load_backbone
from lib.runs.run import starts
from lib.runs.spec import RunSpec
from lib.streams import load_stream

TUNING = PAPER_RECORDS / "tuning"
LARGER = TUNING / "larger" / "efficientnet_lite0-independent.parquet"
TASKS = ["clipart", "emoji", "materials", "letters"]
# The main network's fine-tuning on a wide grid; the others about what is best there, and wider where that is an end.
WIDE = [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
AFTER_A_PROBE = [1e-6, 1e-5, 1e-4, 1e-3], [1e-4, 1e-3, 1e-2]
RESIDUAL = [3e-4, 1e-3, 3e-3], [1e-2, 3e-2, 1e-1]
NORMS = [3e-3, 1e-2, 3e-2, 1e-1], [3e-3, 1e-2, 3e-2]
NARROW = [1e-3, 3e-3, 1e-2], [3e-3, 1e-2, 3e-2]
DEV_IMAGES = 100  # of a task, that the error is measured on
BUDGETS, SEED = [16, 64, 256], 1000  # a seed that no published arm uses
PLACE = ["ratio", "task", "budget", "body_rate", "head_rate"]


def grid(backbone: str, learner: str) -> list[tuple[float, str, int, float, float]]:
    """What is measured: share removed, task, budget, rates of body and head."""
    of_learner = {"probe_finetune": AFTER_A_PROBE, "norms": NORMS}
    rates = of_learner.get(learner, RESIDUAL if backbone.startswith("resnet") else NARROW)
    shares = [0.0]
    if (backbone, learner) == (list_backbones()[0], "independent"):
        rates, shares = WIDE, [0.0, 0.5]  # dense and pruned want the same
    return list(itertools.product(shares, TASKS, BUDGETS, *rates))


def larger() -> list[tuple[float, str, int, float, float]]:
    """What is measured of the main network's fine-tuning at a larger budget, as `grid`: smaller rates of the body."""
    return list(itertools.product([0.0, 0.5], TASKS, [1024], [3e-4, 1e-3, 3e-3], [1e-2]))


def measure(backbone: str, learner: str, places: list[tuple[float, str, int, float, float]], file: Path) -> None:
    """Write the dev errors (column `error_dev`) of all places; those that `file` holds are not measured again."""
    rows = pd.read_parquet(file).to_dict("records") if file.exists() else []
    done = {tuple(row[name] for name in PLACE) for row in rows}
    left = [place for place in places if place not in done]
    for (ratio, name), alike in itertools.groupby(left, key=lambda place: place[:2]):
        spec = RunSpec(
            backbone=backbone,
            ratio=ratio,
            granularity="channel",
            learner=learner,
            criterion="activation_images",
            repair="least_squares",
            calibration="shipped",
            calibration_images=512,
            budgets=BUDGETS,
            evaluation_images=DEV_IMAGES,
            tasks=[name],
            seed=SEED,
            body_rate=0.0,  # each place has its own
            head_rate=0.0,
        )
        stream = load_stream(spec.stream).only(spec.tasks)
        start = starts(spec, load_backbone(backbone), stream)(0).network
        task = stream.tasks[0]
        unit, data = spec.unit_macs(task.num_classes), spec.data_of(task)
        for place in alike:
            _, _, budget, body, head = place
            job = Job(
                event=TASKS.index(name),
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
            error = error_of(predict(learnt.network, data.dev, spec.engine), data.dev.labels.numpy())
            rows.append({**dict(zip(PLACE, place, strict=True)), "steps": learnt.steps, "error_dev": error})
        report(f"{backbone} {learner}, {ratio:g} removed, {name}")
        with atomic_path(file) as temporary:
            pd.DataFrame(rows).to_parquet(temporary)


def fit(records: pd.DataFrame) -> dict[str, float]:
    """The rates of the lowest mean dev error over tasks, shares and budgets.

    Of equal ones the lowest for the body, that keeps most of what is pretrained, and with it the highest for the head.
    Means are compared to nine decimals: how a processor adds must not choose between equal ones.
    """
    means = records.groupby(["body_rate", "head_rate"])["error_dev"].mean().round(9)
    body, head = min(means[means == means.min()].index, key=lambda pair: (pair[0], -pair[1]))
    return {"body": body, "head": head}


def table_of(file: Path) -> dict[str, dict[str, float]]:
    """The rates that follow from the records in `file`: of all data sets, and without each of them.

    Raises UserError for records of a part of the grid, such as a killed run leaves.
    """
    backbone, learner = file.stem.split("-")
    records = pd.read_parquet(file)
    missing = set(grid(backbone, learner)) - set(records[PLACE].itertuples(index=False, name=None))
    if missing:
        raise UserError(
            f"{file.name} lacks {len(missing)} records of the grid: finish it with "
            f"`python -m tools.tune_rates {backbone} {learner}`, or remove it."
        )
    return {ALL: fit(records)} | {data_set(task): fit(records[records["task"] != task]) for task in TASKS}


def gain_by_rates(errors: pd.DataFrame, body: float, head: float) -> pd.DataFrame:
    """Points of accuracy that the most pruned network leads the dense one by: a row per choice of rates.

    `errors`: columns ratio, budget, body_rate, head_rate, error_dev (0 to 1; of several tasks, or their mean). Rows:
    one rate for body and head together, each that was tried; the pair `body`, `head`; the best pair of each network and
    budget. A column per budget.
    """
    table = errors.pivot_table("error_dev", ["body_rate", "head_rate", "budget"], "ratio")
    points = 100 * (table.iloc[:, 0] - table.iloc[:, -1])
    equal = sorted({one for one, other, _ in points.index if one == other})
    best = table.groupby("budget").min()
    rows = {f"one rate, {rate:g}": points.loc[rate, rate] for rate in equal} | {
        "the committed pair": points.loc[body, head],
        "the best pair of each": 100 * (best.iloc[:, 0] - best.iloc[:, -1]),
    }
    return pd.DataFrame(rows).T


def losses_by_rule(errors: pd.DataFrame) -> pd.Series:
    """Points of accuracy lost to the best pair of rates in hindsight, by what has a pair of its own.

    The pair is the best of the other tasks, on all panels or on those of the same share, budget or both; mean over the
    tasks left out. `errors`: columns ratio, budget, task, body_rate, head_rate, error_dev (0 to 1).
    """
    rules = {
        "all": [],
        "each share": ["ratio"],
        "each budget": ["budget"],
        "each share and budget": ["ratio", "budget"],
    }
    lost: dict[str, list[float]] = {rule: [] for rule in rules}
    for _, panel in errors.groupby(["ratio", "budget", "task"]):
        at = panel.set_index(["body_rate", "head_rate"])["error_dev"]
        for rule, same in rules.items():
            alike = (errors[same] == panel[same].iloc[0]).all(axis=1)
            pair = fit(errors[alike & (errors["task"] != panel["task"].iloc[0])])
            lost[rule].append(100 * (at[pair["body"], pair["head"]] - at.min()))
    # Rounded, so that a value halfway between two tenths is said alike on every processor.
    return pd.DataFrame(lost).mean().round(6).rename("points lost")


def main(backbone: str = "", learner: str = "independent") -> None:
    """Measure one network's grid; then, or without a name at once, make the table of all records."""
    if backbone:
        choose("backbone", backbone, list_backbones())
        choose("learner", learner, [name for name, one in LEARNERS.items() if one.fine_tunes and not one.remembers])
        measure(backbone, learner, grid(backbone, learner), TUNING / f"{backbone}-{learner}.parquet")
        if LARGER.stem == f"{backbone}-{learner}":
            measure(backbone, learner, larger(), LARGER)
    table: dict[str, dict] = {}
    for file in sorted(TUNING.glob("*.parquet")):
        network, learnt = file.stem.split("-")
        table.setdefault(network, {})[learnt] = table_of(file)
        print(file.stem, pd.DataFrame(table[network][learnt]).to_string(), sep="\n")
    write_json(TABLE, table)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(*sys.argv[1:])
