"""From a RunSpec to records: run one arm over a stream, resumable after every task and budget."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.common.errors import UserError
from lib.common.progress import report
from lib.learning.job import Job
from lib.learning.learners import LEARNERS, Learnt
from lib.learning.ledger import Ledger
from lib.learning.state import Checkpoints, Memory
from lib.learning.training import TaskNetwork, error_of, predict
from lib.networks.backbone import Backbone, load_backbone, normalised
from lib.networks.macs import forward_macs, training_macs
from lib.pruning import plan_pruning
from lib.pruning.criteria import CRITERIA
from lib.pruning.repairs import REPAIRS
from lib.runs.spec import RunSpec
from lib.runs.stamps import training_hash
from lib.runs.store import Store, open_run
from lib.streams.task import Stream

RECIPE = ("learning_rate", "label_smoothing", "weight_decay")  # as a record reports it
MEASURED = ("dev", "test")  # the parts whose error a record reports
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
    left = sum(
        budget for event, _ in enumerate(stream.tasks) for budget in spec.budgets if not store.has(event, budget)
    )
    began, learnt = time.monotonic(), 0.0
    for job in _jobs(spec, stream, dense, store):
        row = _run_event(job, store)
        if not job.checkpoints.shared:
            job.checkpoints.clear()
        learnt += job.budget
        minutes = (left - learnt) / learnt * (time.monotonic() - began) / 60
        report(
            f"task {job.event + 1}/{len(stream.tasks)} {job.task.name}, {job.budget:g} dense epochs: error "
            f"{row['error_test']:.3f}; about {minutes:.1f} min left"
        )
    return learnt > 0


def _jobs(spec: RunSpec, stream: Stream, dense: Backbone, store: Store) -> Iterator[Job]:
    """The tasks and budgets that are not done yet, in order, each made when its turn has come."""
    start_of = _starts(spec, dense, stream)
    unit_network, unit_size = dense, spec.image_size
    if spec.reference is not None:
        name, size = spec.reference.split("@")
        unit_network, unit_size = load_backbone(name, pretrained=False), int(size)
    learner = LEARNERS[spec.learner]
    shares = learner.shares(spec.trials)
    for event, task in enumerate(stream.tasks):
        budgets = [budget for budget in spec.budgets if not store.has(event, budget)]
        if not budgets:
            continue
        data = spec.data_of(task)
        dense_epoch = len(data.train) * training_macs(TaskNetwork(unit_network, task.num_classes), unit_size)
        start, calibration_macs = start_of(event)
        for budget in budgets:
            training = store.trainings(str(event) if shares else f"{event}-{budget!r}")
            yield Job(
                spec=spec,
                event=event,
                task=task,
                data=data,
                start=start,
                calibration_macs=calibration_macs,
                budget=budget,
                ledger=Ledger(round(budget * dense_epoch)),
                memory=Memory(store.networks(budget), learner.remembers, start),
                checkpoints=Checkpoints(training, shared=shares and budget < budgets[-1]),
                engine=spec.engine,
            )


def _starts(spec: RunSpec, dense: Backbone, stream: Stream) -> Callable[[int], tuple[Backbone, int]]:
    """What gives the network that a task starts from, pruned, and the MACs that pruning it took.

    One for the stream, or one per task where pruning looks at the task's images: at the first training images,
    unlabelled. A learner that goes on from earlier tasks' networks keeps the first task's, whose structure they
    have, and is charged for it once; every other learner pays at each task, as if the task were alone.
    """
    goes_on = LEARNERS[spec.learner].remembers > 0
    looks = CRITERIA[spec.criterion].needs_images or REPAIRS[spec.repair].needs == "images"
    asked = spec.model_dump(include=_PRUNING)

    @lru_cache(maxsize=1)
    def pruned_for(event: int) -> tuple[Backbone, int]:
        seen = spec.data_of(stream.tasks[event]).train.first(spec.calibration_images)
        images = normalised(seen.images.permute(0, 3, 1, 2), dense)
        plan = plan_pruning(dense, **asked, images=images)
        return plan.apply(dense) if spec.ratio > 0 else dense, plan.calibration_macs

    def start_of(event: int) -> tuple[Backbone, int]:
        network, macs = pruned_for(event if looks and spec.ratio > 0 and not goes_on else 0)
        return network, macs if event == 0 or not goes_on else 0

    return start_of


def _run_event(job: Job, store: Store) -> dict:
    """Learn one task within its budget, store its predictions and its record, and return that."""
    began = time.monotonic()
    learnt = _learnt(job)
    job.memory.keep(job.event, learnt.network.body)
    parts = {part: getattr(job.data, part) for part in MEASURED}
    logits = {part: predict(learnt.network, split, job.engine) for part, split in parts.items()}
    labels = {part: split.labels.numpy() for part, split in parts.items()}
    predictions = {f"logits_{part}": logits[part] for part in parts} | {
        f"labels_{part}": labels[part] for part in parts
    }
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
        # As Nevis'22 counts: 2 FLOPs per MAC, and no validation.
        "nevis_flops": 2 * (job.ledger.total - spent.get("validation", 0)),
        "forward_macs": forward_macs(job.start, job.image_size),
        "params": sum(parameter.numel() for parameter in job.start.body.parameters()),
        **{f"error_{part}": error_of(logits[part], labels[part]) for part in MEASURED},
        "note": learnt.note,
        "seconds": round(time.monotonic() - began, 3),
    }
    store.keep(job.event, job.budget, row, {**predictions, "classes": np.array(job.task.classes)})
    return row


def _learnt(job: Job) -> Learnt:
    """What the spec's learner makes of a task, with a note where it could make nothing."""
    if job.calibration_macs > job.ledger.limit:
        untrained = TaskNetwork(job.start, job.task.num_classes)
        return Learnt(untrained, note="the budget is too small for the calibration")
    job.ledger.charge("calibration", job.calibration_macs)
    learnt = LEARNERS[job.spec.learner].learn(job)
    if job.ledger.total > job.calibration_macs:
        return learnt
    job.ledger.spent.clear()  # where nothing can be learnt, nothing is spent
    return replace(learnt, note="the budget is too small for two images")


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
