"""From a RunSpec to records: run one arm over a stream, resumable after every task and budget."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.common.errors import UserError
from lib.common.progress import report
from lib.learning.engine import Engine
from lib.learning.job import Job
from lib.learning.learners import LEARNERS, TOO_SMALL, Learn, Learnt
from lib.learning.ledger import Ledger
from lib.learning.state import Checkpoints, Memory
from lib.learning.training import TaskNetwork, error_of, predict, representation
from lib.networks.backbone import Backbone, normalised
from lib.networks.macs import forward_macs, training_macs
from lib.pruning import plan_pruning
from lib.pruning.criteria import CRITERIA
from lib.pruning.repairs import REPAIRS
from lib.runs.spec import RunSpec
from lib.runs.stamps import training_hash
from lib.runs.store import Store, open_run
from lib.streams import calibration_images
from lib.streams.task import Split, Stream

RECIPE = ("body_rate", "head_rate", "label_smoothing", "weight_decay")  # as a record reports it
_PURPOSES = "calibration", "comparison", "probe", "search", "validation"
# a record's column -> the ledger's purpose
CHARGED = {"train_macs": "training", **{f"{purpose}_macs": purpose for purpose in _PURPOSES}}
_PRUNING = {"ratio", "criterion", "scope", "granularity", "repair", "round_to", "seed", "image_size"}  # fields


def run_stream(spec: RunSpec, out: Path | str) -> pd.DataFrame:
    """Run `spec` over its stream and return its records, one row per task and budget.

    Everything is kept in `<out>/<key>`; whatever is there already is not computed again, so a killed
    run goes on where it stopped, and a run of other budgets takes those that it shares. What other training
    code computed is computed anew.
    """
    began = time.monotonic()
    with spec.engine.running(), _enough_memory():
        stream, dense, store = open_run(spec, out)
        code = training_hash(spec.model_dump())
        with store.held(spec, code):
            computed = _run_jobs(spec, stream, dense, store)
            records = store.records(spec, stream)
            seconds = round(time.monotonic() - began, 1)
            store.end(spec, records, {"training_hash": code, "seconds": seconds} if computed else None)
    return records.to_pandas(use_threads=False)


def _run_jobs(spec: RunSpec, stream: Stream, dense: Backbone, store: Store) -> bool:
    """Learn what is not done yet; returns whether that was anything."""
    torch.manual_seed(spec.seed)
    events = range(len(stream.tasks))
    left = sum(budget for event in events for budget in spec.budgets if not store.has(event, budget))
    began, learnt = time.monotonic(), 0
    for start, job in _jobs(spec, stream, dense, store):
        row = _run_event(start, job, spec.learner, store)
        if job.checkpoints:
            job.checkpoints.clear()
        learnt += job.budget
        minutes = (left - learnt) / learnt * (time.monotonic() - began) / 60
        report(
            f"task {job.event + 1}/{len(stream.tasks)} {job.task.name}, {job.budget} dense images: error "
            f"{row['error_test']:.3f}; about {minutes:.1f} min left"
        )
    return learnt > 0


def _jobs(spec: RunSpec, stream: Stream, dense: Backbone, store: Store) -> Iterator[tuple["Start", Job]]:
    """The tasks and budgets that are not done yet, in order, each made when its turn has come."""
    start_of = starts(spec, dense, stream)
    learner = LEARNERS[spec.learner]
    for event, task in enumerate(stream.tasks):
        budgets = [budget for budget in spec.budgets if not store.has(event, budget)]
        if not budgets:
            continue
        data = spec.data_of(task)
        unit = spec.unit_macs(task.num_classes)
        start = start_of(event)
        for budget in budgets:
            yield (
                start,
                Job(
                    event=event,
                    task=task,
                    data=data,
                    start=start.network,
                    recipe=spec.recipe(task.name),
                    trials=spec.trials,
                    budget=budget,
                    ledger=Ledger(budget * unit),
                    memory=Memory(store.networks(budget), learner.remembers, start.network),
                    checkpoints=Checkpoints(store.trainings(f"{event}-{budget}")),
                    engine=spec.engine,
                    seed=spec.seed * 1000 + event,
                ),
            )


@dataclass(frozen=True)
class Start:
    """The network that a task starts from, pruned; MACs of pruning it on the task's images, and on none of them."""

    network: Backbone
    calibration_macs: int
    preparation_macs: int


def starts(spec: RunSpec, dense: Backbone, stream: Stream) -> Callable[[int], Start]:
    """What gives the network that a task starts from.

    One for the stream, or one per task where pruning looks at the task's images: at the first training images,
    unlabelled. A learner that goes on from earlier tasks' networks keeps the first task's, whose structure they
    have, and is charged for it once; every other learner pays at each task, as if the task were alone.
    """
    goes_on = LEARNERS[spec.learner].remembers > 0
    looks = CRITERIA[spec.criterion].needs_images or REPAIRS[spec.repair].needs == "images"
    own = looks and spec.ratio > 0 and spec.calibration == "task"
    asked = spec.model_dump(include=_PRUNING)

    @lru_cache(maxsize=1)
    def planned(event: int) -> tuple[Backbone, int]:
        images = None
        if own:
            images = spec.data_of(stream.tasks[event]).train.first(spec.calibration_images).images
        elif looks:
            images = calibration_images(spec.calibration_images, spec.image_size)
        seen = None if images is None else normalised(images.permute(0, 3, 1, 2), dense)
        plan = plan_pruning(dense, **asked, images=seen)
        return plan.apply(dense) if spec.ratio > 0 else dense, plan.calibration_macs

    def start_of(event: int) -> Start:
        network, macs = planned(event if own and not goes_on else 0)
        return Start(network, macs if own and (event == 0 or not goes_on) else 0, 0 if own else macs)

    return start_of


def _run_event(start: Start, job: Job, learner: str, store: Store) -> dict:
    """Learn one task within its budget, store its predictions and its record, and return that."""
    began = time.monotonic()
    learnt = _learnt(start, job, LEARNERS[learner].learn)
    job.memory.keep(job.event, learnt.network.body)
    # Dev images that nothing selects by are not looked at.
    parts = {"test": job.data.test} | ({"dev": job.data.dev} if job.trials > 1 else {})
    seen = {part: _seen(learnt.frozen, split, job.engine) if learnt.frozen else None for part, split in parts.items()}
    logits = {part: predict(learnt.network, split, job.engine, seen[part]) for part, split in parts.items()}
    labels = {part: split.labels.numpy() for part, split in parts.items()}
    errors = {part: error_of(logits[part], labels[part]) for part in parts}
    spent = job.ledger.spent
    row = {
        "event": job.event,
        "task": job.task.name,
        **{name: getattr(job.task, name) for name in ("year", "domain", "kind")},
        "budget": job.budget,
        "steps": learnt.steps,
        "image_passes": spent.get("training", 0) // training_macs(learnt.network, job.image_size),
        "started_from": str(learnt.started_from),
        **{f"used_{name}": getattr(learnt.recipe, name, np.nan) for name in RECIPE},
        **{column: spent.get(purpose, 0) for column, purpose in CHARGED.items()},
        "total_macs": job.ledger.total,
        "limit_macs": job.ledger.limit,
        "preparation_macs": start.preparation_macs,
        # As Nevis'22 counts: 2 FLOPs per MAC, and no validation.
        "nevis_flops": 2 * (job.ledger.total - spent.get("validation", 0)),
        "forward_macs": forward_macs(learnt.network.body, job.image_size),
        "params": sum(p.numel() for p in learnt.network.body.parameters()),
        "error_dev": errors.get("dev", np.nan),
        "error_test": errors["test"],
        "note": learnt.note,
        "seconds": round(time.monotonic() - began, 3),
    }
    predictions = {f"logits_{part}": logits[part] for part in parts}
    predictions |= {f"labels_{part}": labels[part] for part in parts}
    store.keep(job.event, job.budget, row, {**predictions, "classes": np.array(job.task.classes)})
    return row


@lru_cache(maxsize=2)  # dev and test: what was not trained makes the same of them at each budget of a task
def _seen(network: Backbone, split: Split, engine: Engine) -> Tensor:
    return representation(network, split, engine)


def _learnt(start: Start, job: Job, learn: Learn) -> Learnt:
    """What a learner makes of a task, with a note where it could make nothing."""
    if start.calibration_macs > job.ledger.limit:
        untrained = TaskNetwork(job.start, job.task.num_classes)
        return Learnt(untrained, note="the budget is too small for the calibration")
    if start.calibration_macs:
        job.ledger.charge("calibration", start.calibration_macs)
    learnt = learn(job)
    if learnt.note == TOO_SMALL:
        job.ledger.spent.clear()  # where nothing can be learnt, nothing is spent
    return learnt


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Raise UserError, one sentence, when the machine's or the GPU's memory is not enough for the block."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        # torch's allocator, the kernel's mmap, and oneDNN each have words of their own for it.
        words = "allocate memory", "out of memory", "could not create a primitive"
        if not isinstance(error, MemoryError) and not any(phrase in str(error) for phrase in words):
            raise
        raise UserError(
            "Out of memory: expected room for the network, its gradients and the task's images. Every "
            "finished task and budget is kept. Close other programs, or lower image_size or the jobs side by "
            "side, and run again."
        ) from error
