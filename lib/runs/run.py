"""From a RunSpec to records: run one arm over a stream, resumable after every task and budget."""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.common.errors import UserError
from lib.common.files import atomic_path, write_json
from lib.common.progress import report
from lib.common.provenance import provenance
from lib.learning.engine import set_up_cpu
from lib.learning.learners import LEARNERS, Assignment, Learnt
from lib.learning.ledger import Ledger
from lib.learning.rates import learning_rate
from lib.learning.state import Checkpoints, Memory
from lib.learning.training import STABLE, Recipe, TaskNetwork, error_of, predict
from lib.networks.backbone import load_backbone
from lib.networks.macs import forward_macs, training_macs
from lib.runs.spec import RunSpec
from lib.runs.stamps import training_hash
from lib.runs.start import Start, Starts
from lib.streams import Stream, Task, TaskData, load_stream

MEASURED = ("dev", "test")  # the parts whose error a record reports
CHARGED = {  # a record's column -> the ledger's purpose
    "train_macs": "training",
    "calibration_macs": "calibration",
    "comparison_macs": "comparison",
    "probe_macs": "probe",
    "search_macs": "search",
    "validation_macs": "validation",
}
_UNFINISHED = "events", "networks", "trainings"  # folders of a run that is not complete

__all__ = ["RunSpec", "export_records", "run_folder", "run_stream", "saved_predictions"]


def run_stream(spec: RunSpec, out: Path | str) -> pd.DataFrame:
    """Run `spec` over its stream and return its records, a row a task and budget.

    Everything is kept in `<out>/<key>`; whatever is there already is not computed again, so a killed
    run goes on where it stopped. What other training code computed is computed anew.
    """
    set_up_cpu(spec.threads)
    stream = load_stream(spec.stream, spec.missing).only(spec.tasks)
    folder = Path(out) / spec.key(stream.content)
    with _alone_in(folder):
        code = training_hash(spec.backbone)
        _start_over_if_code_changed(folder, code)
        complete = folder / "records.parquet"
        if complete.exists():
            return pd.read_parquet(complete)
        write_json(folder / "spec.json", spec.model_dump())
        started = time.monotonic()
        with _enough_memory():
            rows = _run_tasks(spec, stream, folder)
        records = pd.DataFrame(rows).assign(left_out=", ".join(stream.left_out))
        write_json(
            folder / "provenance.json",
            {**provenance(), "training_hash": code, "seconds": round(time.monotonic() - started, 1)},
        )
        with atomic_path(complete) as temporary:
            records.to_parquet(temporary, index=False)
        for name in _UNFINISHED:
            shutil.rmtree(folder / name, ignore_errors=True)
    return records


def run_folder(spec: RunSpec, out: Path | str) -> Path:
    """Where `run_stream` keeps what it computes for `spec`."""
    return Path(out) / spec.key(load_stream(spec.stream, spec.missing).only(spec.tasks).content)


def export_records(spec: RunSpec, out: Path | str, file: Path | str) -> None:
    """Copy the finished records of `spec` to `file` (Parquet), their provenance beside it (JSON)."""
    folder, file = run_folder(spec, out), Path(file)
    for source, target in (("provenance.json", file.with_suffix(".json")), ("records.parquet", file)):
        with atomic_path(target) as temporary:
            shutil.copyfile(folder / source, temporary)


def saved_predictions(spec: RunSpec, out: Path | str) -> dict[tuple[int, float], dict[str, np.ndarray]]:
    """Logits and labels of dev and test by event and budget, to compute another metric from.

    Keys of each: logits_dev, labels_dev, logits_test, labels_test; the error of a record is
    `lib.learning.training.error_of` of them. Raises UserError where the run is not complete.
    """
    folder = run_folder(spec, out)
    if not (folder / "records.parquet").exists():
        raise UserError(f"{folder} holds no complete run of this spec: call run_stream with it first.")
    records = pd.read_parquet(folder / "records.parquet", columns=["event", "budget"])
    found = {}
    for event, budget in records.itertuples(index=False):
        with np.load(folder / "predictions" / f"{event}-{budget!r}.npz") as arrays:
            found[event, budget] = dict(arrays)
    return found


def _run_tasks(spec: RunSpec, stream: Stream, folder: Path) -> list[dict]:
    if spec.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={spec.device} is not here: this torch sees no GPU. Use device='cpu'.")
    torch.manual_seed(spec.seed)
    dense = load_backbone(spec.backbone, spec.pretrained)
    starts = Starts(
        spec,
        dense,
        lambda event: (
            stream.tasks[event].read(spec.image_size).first(spec.train_images, spec.evaluation_images)
        ),
    )
    unit_network, unit_size = dense, spec.image_size
    if spec.reference is not None:
        name, size = spec.reference.split("@")
        unit_network, unit_size = load_backbone(name, pretrained=False), int(size)
    rows = []
    shares = LEARNERS[spec.learner].shares(spec.trials)
    remaining = _Remaining(len(stream.tasks), dict(zip(spec.budgets, trained_epochs(spec), strict=True)))
    for event, task in enumerate(stream.tasks):
        data = None
        dense_epoch_macs = training_macs(TaskNetwork(unit_network, task.num_classes), unit_size)
        for budget in spec.budgets:
            done = folder / "events" / f"{event}-{budget!r}.json"
            if not done.exists():
                data = data or task.read(spec.image_size).first(spec.train_images, spec.evaluation_images)
                limit = round(budget * len(data.train) * dense_epoch_macs)
                start = starts.for_task(event)
                memory = Memory(folder / "networks", budget, LEARNERS[spec.learner].remembers, start.network)
                training = folder / "trainings" / (str(event) if shares else f"{event}-{budget!r}")
                checkpoints = Checkpoints(training, shared=shares and budget < spec.budgets[-1])
                row = _run_event(spec, start, memory, task, event, data, budget, limit, checkpoints, folder)
                write_json(done, row)
                if not checkpoints.shared:
                    checkpoints.clear()
                remaining.spent(row["seconds"], budget)
            rows.append(json.loads(done.read_text()))
            report(
                f"task {event + 1}/{len(stream.tasks)} {task.name}, {budget:g} dense epochs: error "
                f"{rows[-1]['error_test']:.3f}; {remaining.after(event, budget)}"
            )
    return rows


def trained_epochs(spec: RunSpec) -> list[float]:
    """Of each budget, the dense epochs that are trained, and not shared with the budget before."""
    if not LEARNERS[spec.learner].shares(spec.trials):
        return spec.budgets
    before = [0.0, *spec.budgets]
    return [budget - STABLE * smaller for budget, smaller in zip(spec.budgets, before, strict=False)]


class _Remaining:
    """How long an arm still takes, from what the dense epochs trained so far took."""

    def __init__(self, tasks: int, epochs_of: dict[float, float]):
        self.tasks, self.epochs_of = tasks, epochs_of
        self.seconds = self.epochs = 0.0

    def spent(self, seconds: float, budget: float) -> None:
        self.seconds += seconds
        self.epochs += self.epochs_of[budget]

    def after(self, event: int, budget: float) -> str:
        """The minutes left once `budget` of task `event` is done, as a phrase."""
        left = (self.tasks - event - 1) * sum(self.epochs_of.values())
        left += sum(epochs for other, epochs in self.epochs_of.items() if other > budget)
        if not self.epochs:
            return "was done before"
        return f"about {left * self.seconds / self.epochs / 60:.1f} min left"


def _run_event(
    spec: RunSpec,
    start: Start,
    memory: Memory,
    task: Task,
    event: int,
    data: TaskData,
    budget: float,
    limit: int,
    checkpoints: Checkpoints,
    folder: Path,
) -> dict:
    """Learn one task within `limit` MACs, save its predictions, and return its record."""
    began = time.monotonic()
    learnt, ledger, note = _learnt(spec, start, memory, task, event, data, limit, checkpoints)
    memory.keep(event, learnt.network.body)
    logits = {
        part: predict(learnt.network, getattr(data, part), spec.precision, spec.device) for part in MEASURED
    }
    labels = {part: getattr(data, part).labels.numpy() for part in MEASURED}
    with atomic_path(folder / "predictions" / f"{event}-{budget!r}.npz") as temporary:
        np.savez(
            temporary,
            **{f"logits_{k}": v for k, v in logits.items()},
            **{f"labels_{k}": v for k, v in labels.items()},
        )
    recipe = learnt.recipe
    return {
        **spec.model_dump(exclude={"budgets", "tasks"}),
        "event": event,
        "task": task.name,
        "year": task.year,
        "domain": task.domain,
        "kind": task.kind,
        "budget": budget,
        "steps": learnt.steps,
        "started_from": str(learnt.started_from),
        "used_learning_rate": recipe.learning_rate if recipe else np.nan,
        "used_label_smoothing": recipe.label_smoothing if recipe else np.nan,
        "used_weight_decay": recipe.weight_decay if recipe else np.nan,
        **{column: ledger.spent.get(purpose, 0) for column, purpose in CHARGED.items()},
        "total_macs": ledger.total,
        "limit_macs": limit,
        # As Nevis'22 counts: 2 FLOPs a MAC, and no validation.
        "nevis_flops": 2 * (ledger.total - ledger.spent.get("validation", 0)),
        "forward_macs": forward_macs(start.network, spec.image_size),
        "params": sum(p.numel() for p in start.network.body.parameters()),
        "error_dev": error_of(logits["dev"], labels["dev"]),
        "error_test": error_of(logits["test"], labels["test"]),
        "note": note,
        "seconds": round(time.monotonic() - began, 3),
    }


def _learnt(
    spec: RunSpec,
    start: Start,
    memory: Memory,
    task: Task,
    event: int,
    data: TaskData,
    limit: int,
    checkpoints: Checkpoints,
) -> tuple[Learnt, Ledger, str]:
    """What the spec's learner makes of a task, what that took, and a note where it could make nothing."""
    untrained = Learnt(TaskNetwork(start.network, task.num_classes))
    if limit < start.calibration_macs:
        return untrained, Ledger(0), "the budget is too small for the calibration"
    ledger = Ledger(limit)
    ledger.charge("calibration", start.calibration_macs)

    def rule(probed: bool = False) -> Recipe:
        rate = spec.learning_rate or learning_rate(spec.backbone, spec.ratio, task.name, probed)
        return Recipe(rate, frozen_norms=probed)

    assignment = Assignment(
        # The same order of images and the same crops for every arm of a seed: paired comparisons.
        event,
        start.network,
        memory,
        data,
        task.num_classes,
        ledger,
        checkpoints,
        rule,
        spec.trials,
        spec.precision,
        seed=spec.seed * 1000 + event,
        device=spec.device,
    )
    learnt = LEARNERS[spec.learner].learn(assignment)
    if ledger.total == start.calibration_macs:
        # Where nothing can be learnt, nothing is spent.
        return learnt, Ledger(0), "the budget is too small for two images"
    return learnt, ledger, learnt.note


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


def _start_over_if_code_changed(folder: Path, code: str) -> None:
    """Drop what older training code computed: it is not what this code would compute."""
    stamp = folder / "training_hash"
    if not stamp.exists() or stamp.read_text() != code:
        for name in ("predictions", *_UNFINISHED):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "records.parquet").unlink(missing_ok=True)
        with atomic_path(stamp) as temporary:
            temporary.write_text(code)
