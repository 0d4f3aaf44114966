"""A run's folder: what was computed, by event and budget, whichever list of budgets asked for it."""

import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lib.common.errors import UserError
from lib.common.files import atomic_path, locked, renew, write_json
from lib.common.provenance import provenance
from lib.learning.learners import LEARNERS
from lib.networks.backbone import Backbone, find_backbone, load_backbone, weights_hash
from lib.pruning.criteria import CRITERIA
from lib.pruning.repairs import REPAIRS
from lib.runs.spec import RunSpec
from lib.streams import Stream, load_stream

# Columns have types of their own, whatever their values: any reader takes several files as one table.
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class Store:
    """What all runs of one key have computed.

    events/ and predictions/ hold a file for each event and budget. networks/ and trainings/ hold what a
    killed run goes on from. records.parquet, spec.json and provenance.json are of the run that ended last.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def held(self, spec: RunSpec, code: str) -> Iterator[None]:
        """Hold the folder: of two runs at once, the second waits for the first. Leaves the spec in it, to read.

        Drops what other training code than `code`, a hash, computed. Raises UserError where the folder
        cannot be written or locked.
        """
        with locked(self.folder / ".lock", "choose another with out=, or change its permissions"):
            stamp = self.folder / "training_hash"
            if not stamp.exists() or stamp.read_text(encoding="utf-8") != code:
                for name in ("events", "predictions", "networks", "trainings"):
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / "records.parquet").unlink(missing_ok=True)
            renew(stamp, code.encode())
            renew(self.folder / "spec.json", f"{spec.model_dump_json(indent=1)}\n".encode())
            yield

    def has(self, event: int, budget: float) -> bool:
        """Whether an event has been learnt within a budget."""
        return self._event(event, budget).exists()

    def keep(self, event: int, budget: float, row: dict, predictions: dict[str, np.ndarray]) -> None:
        """Store what came out; with its row an event is done."""
        with atomic_path(self.predictions(event, budget)) as temporary:
            np.savez(temporary, **predictions)  # type: ignore[arg-type]
        write_json(self._event(event, budget), row)

    def records(self, spec: RunSpec, stream: Stream) -> pa.Table:
        """One row per event and budget of `spec`, in order. Raises UserError where one is not done."""
        asked = [(event, budget) for event in range(len(stream.tasks)) for budget in spec.budgets]
        if not all(self.has(*one) for one in asked):
            raise UserError(f"{self.folder} holds no complete run of this spec: call run_stream with it first.")
        common = spec.model_dump(exclude={"budgets", "tasks"}) | {"left_out": ", ".join(stream.left_out)}
        measured = [json.loads(self._event(*one).read_bytes()) for one in asked]
        kinds = {name: kind for name, kind in get_type_hints(RunSpec).items() if name in common}
        kinds |= {name: type(value) for name, value in measured[0].items()} | {"left_out": str}
        schema = pa.schema([(name, _type_of(kind)) for name, kind in kinds.items()])
        return pa.Table.from_pylist([common | row for row in measured], schema)

    def end(self, spec: RunSpec, records: pa.Table, about: dict | None) -> None:
        """Write the records of a run, and drop what it would have gone on from.

        `about` says how what was computed came about; None where nothing was.
        """
        if about is not None:
            write_json(self.folder / "provenance.json", {**provenance(), **about})
        renew(self.folder / "records.parquet", _as_parquet(records))
        shutil.rmtree(self.folder / "trainings", ignore_errors=True)
        for budget in spec.budgets:  # another run may go on from those of other budgets
            shutil.rmtree(self.networks(budget), ignore_errors=True)

    def predictions(self, event: int, budget: float) -> Path:
        """The file of an event's logits and labels."""
        return self.folder / "predictions" / f"{event}-{budget!r}.npz"

    def networks(self, budget: float) -> Path:
        """The folder of the networks that one event leaves to the next."""
        return self.folder / "networks" / repr(budget)

    def trainings(self, name: str) -> Path:
        """The folder of a training's states while it lasts."""
        return self.folder / "trainings" / name

    def _event(self, event: int, budget: float) -> Path:
        return self.folder / "events" / f"{event}-{budget!r}.json"


def _as_parquet(records: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(records, sink)
    return sink.getvalue().to_pybytes()


def _type_of(annotation: Any) -> pa.DataType:
    """What may be None has the type that it has otherwise; a choice among words is a word."""
    known = [_TYPES[kind] for kind in (annotation, *get_args(annotation)) if kind in _TYPES]
    return known[0] if known else pa.string()


def _own_code(spec: RunSpec) -> list[str]:
    """The source of what the spec names and a user registered: under one name it may change."""
    registered = CRITERIA[spec.criterion], REPAIRS[spec.repair], LEARNERS[spec.learner]
    entries = [find_backbone(spec.backbone), *registered]
    functions = [part for entry in entries for part in vars(entry).values() if inspect.isfunction(part)]
    return [inspect.getsource(one) for one in functions if not one.__module__.startswith("lib.")]


def open_run(spec: RunSpec, out: Path | str) -> tuple[Stream, Backbone, Store]:
    """The stream and the dense network of a run, and where it keeps what it computes."""
    stream = load_stream(spec.stream, spec.missing).only(spec.tasks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)  # of random weights
        dense = load_backbone(spec.backbone, spec.pretrained, spec.weights)
    key = spec.key(stream.content, weights_hash(dense), *_own_code(spec))
    return stream, dense, Store(Path(out).expanduser() / key)


def run_folder(spec: RunSpec, out: Path | str) -> Path:
    """Where `run_stream` keeps what it computes for `spec`."""
    return open_run(spec, out)[2].folder


def export_records(spec: RunSpec, out: Path | str, file: Path | str) -> None:
    """Copy the finished records of `spec` to `file` (Parquet), their provenance beside it (JSON)."""
    stream, _, store = open_run(spec, out)
    renew(Path(file), _as_parquet(store.records(spec, stream)))
    renew(Path(file).with_suffix(".json"), (store.folder / "provenance.json").read_bytes())


def saved_predictions(spec: RunSpec, out: Path | str) -> dict[tuple[int, float], dict[str, np.ndarray]]:
    """Logits and labels of dev and test by event and budget, to compute another metric from.

    Keys of each: logits_dev, labels_dev, logits_test, labels_test, and classes, the names of the labels. The
    error of a record is `lib.learning.training.error_of` of them. Raises UserError where the run is not
    complete.
    """
    stream, _, store = open_run(spec, out)
    found = {}
    for row in store.records(spec, stream).select(["event", "budget"]).to_pylist():
        event, budget = row["event"], row["budget"]
        with np.load(store.predictions(event, budget)) as arrays:
            found[event, budget] = dict(arrays)
    return found
