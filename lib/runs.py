"""From a RunSpec to records: run one arm over a stream, resumable after every task and budget."""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.backbones import Backbone, load_backbone
from lib.compute import Ledger, forward_macs, training_macs
from lib.cpu import set_up_cpu
from lib.errors import UserError
from lib.files import atomic_path, write_json
from lib.learners import LEARNERS
from lib.learning_rate import learning_rate
from lib.progress import report
from lib.provenance import provenance
from lib.pruning import plan_pruning
from lib.pruning.repair import REPAIRS
from lib.pruning.scores import CRITERIA
from lib.spec import RunSpec
from lib.stamps import training_hash
from lib.streams import Split, Stream, Task, TaskData, load_stream
from lib.training import (
    Recipe,
    TaskNetwork,
    affordable_images,
    error_of,
    normalised,
    plan_batches,
    predict,
)

__all__ = ["RunSpec", "export_records", "run_folder", "run_stream"]


def run_stream(spec: RunSpec, out: Path | str) -> pd.DataFrame:
    """Run `spec` over its stream and return its records, a row a task and budget.

    Everything is kept in `<out>/<key>`; whatever is there already is not computed again, so a killed
    run goes on where it stopped. What other training code computed is computed anew.
    """
    set_up_cpu(spec.threads)
    stream = chosen_tasks(load_stream(spec.stream, spec.missing), spec)
    folder = run_folder(spec, out)
    with _alone_in(folder):
        code = training_hash(spec.backbone)
        _start_over_if_code_changed(folder, code)
        complete = folder / "records.parquet"
        if complete.exists():
            return pd.read_parquet(complete)
        write_json(folder / "spec.json", spec.model_dump())
        started = time.monotonic()
        rows = _run_tasks(spec, stream, folder)
        records = pd.DataFrame(rows).assign(left_out=", ".join(stream.left_out))
        write_json(
            folder / "provenance.json",
            {**provenance(), "training_hash": code, "seconds": round(time.monotonic() - started, 1)},
        )
        with atomic_path(complete) as temporary:
            records.to_parquet(temporary, index=False)
        shutil.rmtree(folder / "events")
    return records


def run_folder(spec: RunSpec, out: Path | str) -> Path:
    """Where `run_stream` keeps what it computes for `spec`."""
    return Path(out) / spec.key(chosen_tasks(load_stream(spec.stream, spec.missing), spec).content)


def export_records(spec: RunSpec, out: Path | str, file: Path | str) -> None:
    """Copy the finished records of `spec` to `file` (Parquet), their provenance beside it (JSON)."""
    folder, file = run_folder(spec, out), Path(file)
    for source, target in (("provenance.json", file.with_suffix(".json")), ("records.parquet", file)):
        with atomic_path(target) as temporary:
            shutil.copyfile(folder / source, temporary)


def _run_tasks(spec: RunSpec, stream: Stream, folder: Path) -> list[dict]:
    if spec.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={spec.device} is not here: this torch sees no GPU. Use device='cpu'.")
    torch.manual_seed(spec.seed)
    dense = load_backbone(spec.backbone, spec.pretrained)
    starts = _Starts(spec, dense)
    unit_network, unit_size = dense, spec.image_size
    if spec.reference is not None:
        name, size = spec.reference.split("@")
        unit_network, unit_size = load_backbone(name, pretrained=False), int(size)
    rows = []
    remaining = _Remaining(len(stream.tasks), spec.budgets)
    for event, task in enumerate(stream.tasks):
        data = None
        dense_epoch_macs = training_macs(TaskNetwork(unit_network, task.num_classes), unit_size)
        for budget in spec.budgets:
            done = folder / "events" / f"{event}-{budget!r}.json"
            if not done.exists():
                data = data or capped(task.read(spec.image_size), spec)
                limit = round(budget * len(data.train) * dense_epoch_macs)
                start = starts.for_task(event, data)
                row = _run_event(spec, start, task, event, data, budget, limit, folder)
                write_json(done, row)
                remaining.spent(row["seconds"], budget)
            rows.append(json.loads(done.read_text()))
            report(
                f"task {event + 1}/{len(stream.tasks)} {task.name}, {budget:g} dense epochs: error "
                f"{rows[-1]['error_test']:.3f}; {remaining.after(event, budget)}"
            )
    return rows


@dataclass(frozen=True)
class _Start:
    """The network that a task starts from, and the MACs that pruning it took."""

    network: Backbone
    calibration_macs: int


class _Starts:
    """The pruned network: one for the stream, or one a task where pruning looks at the task's images."""

    def __init__(self, spec: RunSpec, dense: Backbone):
        self.spec, self.dense = spec, dense
        looks = CRITERIA[spec.criterion].needs_images or REPAIRS[spec.repair].needs == "images"
        self.looks_at_task = looks and spec.ratio > 0
        self.event, self.start = None, None

    def for_task(self, event: int, data: TaskData) -> _Start:
        """Where to start task `event` from. Calibrates on the task's first training images, unlabelled."""
        event = event if self.looks_at_task else 0
        if self.event != event:
            images = data.train.images[: self.spec.calibration_images].permute(0, 3, 1, 2)
            plan = plan_pruning(
                self.dense, self.spec.ratio, self.spec.criterion, self.spec.scope, self.spec.granularity,
                self.spec.repair, self.spec.round_to, normalised(images, self.dense), self.spec.seed,
                image_size=self.spec.image_size,
            )  # fmt: skip
            network = plan.apply(self.dense) if self.spec.ratio > 0 else self.dense
            self.event, self.start = event, _Start(network, plan.calibration_macs)
        return self.start


class _Remaining:
    """How long an arm still takes, from what its dense epochs took so far."""

    def __init__(self, tasks: int, budgets: list[float]):
        self.tasks, self.budgets = tasks, budgets
        self.seconds = self.epochs = 0.0

    def spent(self, seconds: float, budget: float) -> None:
        self.seconds += seconds
        self.epochs += budget

    def after(self, event: int, budget: float) -> str:
        """The minutes left once `budget` of task `event` is done, as a phrase."""
        left = (self.tasks - event - 1) * sum(self.budgets) + sum(b for b in self.budgets if b > budget)
        if not self.epochs:
            return "was done before"
        return f"about {left * self.seconds / self.epochs / 60:.1f} min left"


def _run_event(
    spec: RunSpec, start: _Start, task: Task, event: int, data: TaskData, budget: float, limit: int,
    folder: Path,
) -> dict:  # fmt: skip
    """Learn one task within `limit` MACs, save its predictions, and return its record."""
    began = time.monotonic()
    each = training_macs(TaskNetwork(start.network, task.num_classes), spec.image_size)
    left = limit - start.calibration_macs
    planned = len(plan_batches(affordable_images(max(0, left), each), Recipe.batch_size))
    rate = spec.learning_rate or learning_rate(spec.backbone, spec.ratio, planned, task.name)
    # Where nothing can be trained, nothing is spent.
    ledger = Ledger(limit if planned else 0)
    if planned:
        ledger.charge("calibration", start.calibration_macs)
    # The same order of images and the same crops for every arm of a seed: paired comparisons.
    seed = spec.seed * 1000 + event
    note = "" if planned else "the budget is too small for two images"
    if left < 0:
        note = "the budget is too small for the calibration"
    try:
        network, steps = LEARNERS[spec.learner](
            start.network, data, task.num_classes, ledger, Recipe(rate), spec.precision, seed, spec.device
        )
        logits = {
            part: predict(network, getattr(data, part), spec.precision, spec.device)
            for part in ("dev", "test")
        }
    except FloatingPointError as error:
        steps, note = planned, str(error)
        logits = {
            part: np.zeros((len(getattr(data, part)), task.num_classes), np.float32)
            for part in ("dev", "test")
        }
    labels = {part: getattr(data, part).labels.numpy() for part in ("dev", "test")}
    with atomic_path(folder / "predictions" / f"{event}-{budget!r}.npz") as temporary:
        np.savez(
            temporary,
            **{f"logits_{k}": v for k, v in logits.items()},
            **{f"labels_{k}": v for k, v in labels.items()},
        )
    return {
        **spec.model_dump(exclude={"budgets", "tasks"}),
        "event": event, "task": task.name, "year": task.year, "domain": task.domain, "kind": task.kind,
        "budget": budget, "steps": steps, "used_learning_rate": rate,
        "train_macs": ledger.spent.get("training", 0),
        "calibration_macs": ledger.spent.get("calibration", 0), "total_macs": ledger.total,
        "limit_macs": limit,
        "forward_macs": forward_macs(start.network, spec.image_size),
        "params": sum(p.numel() for p in start.network.body.parameters()),
        "error_dev": error_of(logits["dev"], labels["dev"]),
        "error_test": error_of(logits["test"], labels["test"]),
        "note": note, "seconds": round(time.monotonic() - began, 3),
    }  # fmt: skip


def chosen_tasks(stream: Stream, spec: RunSpec) -> Stream:
    """The part of a stream that the spec names. Raises UserError for a task that is not in it."""
    if spec.tasks is None:
        return stream
    unknown = set(spec.tasks) - {task.name for task in stream.tasks}
    if unknown:
        raise UserError(
            f"tasks={sorted(unknown)} are not in the stream {stream.name!r}: expected some of "
            f"{', '.join(task.name for task in stream.tasks)}."
        )
    tasks = tuple(task for task in stream.tasks if task.name in spec.tasks)
    return Stream(stream.name, tasks, stream.left_out)


def capped(data: TaskData, spec: RunSpec) -> TaskData:
    """At most the spec's number of images a part: the first ones, whose order is already random."""

    def cap(split: Split, most: int | None) -> Split:
        return Split(split.images[:most], split.labels[:most])

    most = spec.evaluation_images
    return TaskData(cap(data.train, spec.train_images), cap(data.dev, most), cap(data.test, most))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: of two runs of one spec at once, the second waits for the first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}: {error.strerror}. Expected a writable folder: choose another "
            "with out=, or change its permissions."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start_over_if_code_changed(folder: Path, code: str) -> None:
    """Drop what older training code computed: it is not what this code would compute."""
    stamp = folder / "training_hash"
    if not stamp.exists() or stamp.read_text() != code:
        for name in ("events", "predictions"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "records.parquet").unlink(missing_ok=True)
        with atomic_path(stamp) as temporary:
            temporary.write_text(code)
