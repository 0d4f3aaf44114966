"""From a RunSpec to records: run one arm over a stream, resumable after every task and budget."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import forward_macs, training_macs
from lib.runs.spec import RunSpec
from lib.runs.stamps import training_hash
from lib.runs.start import Starts
from lib.runs.store import Store, open_run
from lib.streams.task import Stream

MEASURED = ("dev", "test")  # the parts whose error a record reports
CHARGED = {  # a record's column -> the ledger's purpose
    "train_macs": "training",
    "calibration_macs": "calibration",
    "comparison_macs": "comparison",
    "probe_macs": "probe",
    "search_macs": "search",
    "validation_macs": "validation",
}


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
        with store.held(code):
            store.describe(spec)
            computed = _run_jobs(spec, stream, dense, store)
            records = store.records(spec, stream)
            seconds = round(time.monotonic() - began, 1)
            store.end(spec, records, {"training_hash": code, "seconds": seconds} if computed else None)
    return records.to_pandas(use_threads=False)


def _run_jobs(spec: RunSpec, stream: Stream, dense: Backbone, store: Store) -> int:
    """Learn what is not done yet; returns how many jobs that were."""
    torch.manual_seed(spec.seed)
    events = range(len(stream.tasks))
    left = sum(budget for event in events for budget in spec.budgets if not store.has(event, budget))
    jobs, seconds, learnt = 0, 0.0, 0.0
    for job in _jobs(spec, stream, dense, store):
        row = _run_event(job, store)
        if not job.checkpoints.shared:
            job.checkpoints.clear()
        jobs, seconds, learnt = jobs + 1, seconds + row["seconds"], learnt + job.budget
        report(
            f"task {job.event + 1}/{len(stream.tasks)} {job.task.name}, {job.budget:g} dense epochs: error "
            f"{row['error_test']:.3f}; about {(left - learnt) * seconds / learnt / 60:.1f} min left"
        )
    return jobs


def _jobs(spec: RunSpec, stream: Stream, dense: Backbone, store: Store) -> Iterator[Job]:
    """The tasks and budgets that are not done yet, in order, each made when its turn has come."""
    starts = Starts(spec, dense, stream.tasks)
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
        start = starts.for_task(event, data)
        for budget in budgets:
            training = store.trainings(str(event) if shares else f"{event}-{budget!r}")
            yield Job(
                spec=spec,
                event=event,
                task=task,
                data=data,
                start=start.network,
                calibration_macs=start.calibration_macs,
                budget=budget,
                ledger=Ledger(round(budget * dense_epoch)),
                memory=Memory(store.networks(budget), learner.remembers, start.network),
                checkpoints=Checkpoints(training, shared=shares and budget < budgets[-1]),
                engine=spec.engine,
            )


def _run_event(job: Job, store: Store) -> dict:
    """Learn one task within its budget, store its predictions and its record, and return that."""
    began = time.monotonic()
    learnt = _learnt(job)
    job.memory.keep(job.event, learnt.network.body)
    parts = {part: getattr(job.data, part) for part in MEASURED}
    logits = {part: predict(learnt.network, split, job.engine) for part, split in parts.items()}
    labels = {part: split.labels.numpy() for part, split in parts.items()}
    recipe, spent = learnt.recipe, job.ledger.spent
    row = {
        "event": job.event,
        "task": job.task.name,
        "year": job.task.year,
        "domain": job.task.domain,
        "kind": job.task.kind,
        "budget": job.budget,
        "steps": learnt.steps,
        "image_passes": spent.get("training", 0) // training_macs(learnt.network, job.image_size),
        "started_from": str(learnt.started_from),
        "used_learning_rate": recipe.learning_rate if recipe else np.nan,
        "used_label_smoothing": recipe.label_smoothing if recipe else np.nan,
        "used_weight_decay": recipe.weight_decay if recipe else np.nan,
        **{column: spent.get(purpose, 0) for column, purpose in CHARGED.items()},
        "total_macs": job.ledger.total,
        "limit_macs": job.ledger.limit,
        # As Nevis'22 counts: 2 FLOPs per MAC, and no validation.
        "nevis_flops": 2 * (job.ledger.total - spent.get("validation", 0)),
        "forward_macs": forward_macs(job.start, job.image_size),
        "params": sum(p.numel() for p in job.start.body.parameters()),
        **{f"error_{part}": error_of(logits[part], labels[part]) for part in MEASURED},
        "note": learnt.note,
        "seconds": round(time.monotonic() - began, 3),
    }
    predictions = {f"logits_{part}": logits[part] for part in MEASURED}
    predictions |= {f"labels_{part}": labels[part] for part in MEASURED}
    predictions["classes"] = np.array(job.task.classes)
    store.keep(job.event, job.budget, row, predictions)
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
