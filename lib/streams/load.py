"""Load a stream by its name, or by the path of a stream file."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, Field, ValidationError

from lib.common.errors import UserError, choose
from lib.streams.folder import ArchiveSource, FolderSource
from lib.streams.ingest import task_from
from lib.streams.nevis import STREAMS as NEVIS
from lib.streams.nevis import PreparedSource, datasets_folder
from lib.streams.shipped import PocketSource, pocket
from lib.streams.task import Listed, Source, Stream
from lib.streams.torchvision_sets import TorchvisionSource, how_to_get, is_there

COLUMNS = ["name", "year", "domain", "kind", "num_classes", "available", "how"]
# a stream's name -> its tasks, by what is written behind the name, split at slashes
STREAMS: dict[str, Callable[..., list[Listed]]] = {"pocket": pocket, **NEVIS}
# kind of source -> what opens a place of it, whether it is there, and where it is or how to get it
SOURCES: dict[str, tuple[Callable[..., Source], Callable[..., bool], Callable[..., str]]] = {
    "folder": (FolderSource, Path.is_dir, "images in {}/train/<class>".format),
    "nevis": (PreparedSource, Path.is_dir, "prepare {0.name} with dm_nevis and put it at {0}".format),
    "torchvision": (TorchvisionSource, is_there, how_to_get),
    "archive": (ArchiveSource, Path.is_file, "{} (see `python -m tools.datasets --list`)".format),
    "pocket": (PocketSource, lambda _: True, "lib/streams/pocket/{0[name]}.parquet".format),
}
IN_FILES = ("folder", "nevis", "torchvision")  # the kinds of source that a stream file may name


def load_stream(name: str | Path, missing: str = "error") -> Stream:
    """The stream called `name`, or described by the file `name` (.yaml).

    Raises UserError for an unknown one, and, unless `missing` is "skip", for tasks that are not here; with
    "skip" their names are in `left_out`.
    """
    choose("value of missing", missing, ("error", "skip"))
    name, rows = _rows(name)
    found = [(row, *_found(row)) for row in rows]
    absent = [(row.name, how) for row, how, source in found if source is None]
    if absent and (missing == "error" or len(absent) == len(rows)):
        listed = "; ".join(f"{task} ({how})" for task, how in absent)
        raise UserError(
            f"{len(absent)} of {len(rows)} tasks of the stream {name!r} are not here: {listed}. Get them, or "
            "go on without them with missing='skip'."
        )
    tasks = (task_from(source, row.name, row.year, row.domain) for row, _, source in found if source)
    return Stream(name, tuple(tasks), tuple(task for task, _ in absent))


def list_tasks(name: str | Path) -> pd.DataFrame:
    """Every task of a stream, whether its images are here or not.

    Columns: name, year, domain, kind, num_classes, available, how (where it is or how to get it).
    """
    rows = []
    for row in _rows(name)[1]:
        how, source = _found(row)
        known = source or row
        rows.append([row.name, row.year, row.domain, known.kind, known.num_classes, source is not None, how])
    return pd.DataFrame(rows, columns=COLUMNS).astype({"num_classes": "Int64"})


def _found(row: Listed) -> tuple[str, Source | None]:
    """Where a task is, and its source; how to get it, and None, where it is at none of its places."""
    for kind, *place in row.places:
        opened, is_here, how = SOURCES[kind]
        if is_here(*place):
            return how(*place), opened(*place)
    return "; or ".join(SOURCES[kind][2](*place) for kind, *place in row.places), None


def _rows(name: str | Path) -> tuple[str, list[Listed]]:
    """A stream's name, for a file the one that it gives itself, and its tasks."""
    if isinstance(name, Path) or name.lower().endswith((".yaml", ".yml")):
        return _read(Path(os.path.expanduser(name)))
    known = next((stream for stream in STREAMS if f"{name}/".startswith(f"{stream}/")), name)
    choose("stream", known, [*STREAMS, "the path of a stream file (.yaml)"])
    return name, STREAMS[known](*name.removeprefix(known).split("/")[1:])


class _Task(BaseModel, extra="forbid", strict=True, str_strip_whitespace=True):
    name: str = Field(min_length=1)
    source: str
    year: int = Field(ge=1900, le=2100, strict=False)
    domain: str = "other"


class _StreamFile(BaseModel, extra="forbid", strict=True, str_strip_whitespace=True):
    name: str = Field(min_length=1)
    tasks: list[_Task] = Field(min_length=1)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"{twice[0]!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _read(file: Path) -> tuple[str, list[Listed]]:
    """The name and the tasks that a stream file gives. Raises UserError for one that is none."""
    try:
        found = _StreamFile.model_validate(yaml.load(file.read_bytes(), _Loader))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): expected the path of a stream file.") from error
    except yaml.YAMLError as error:
        tabs = " Indent with spaces instead of tabs." if "'\\t'" in str(error) else ""
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}.{tabs}") from error
    except ValidationError as error:
        first = error.errors()[0]
        what = f": {'.'.join(map(str, first['loc']))} is not valid ({first['msg']})"
        if not first["loc"]:
            kind = "nothing" if first["input"] is None else f"a {type(first['input']).__name__}"
            what = f" holds {kind}: expected `name` and `tasks`"
        raise UserError(f"{file}{what}; see docs/extending.md for an example.") from error
    names = [task.name for task in found.tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file}: two tasks are called {twice[0]!r}: expected a name of its own for each.")
    return found.name, [_listed(task, file) for task in found.tasks]


def _listed(task: _Task, file: Path) -> Listed:
    kind, _, place = task.source.partition(":")
    if kind not in IN_FILES or not place:
        raise UserError(
            f"{file}: the source {task.source!r} of {task.name!r} is unknown: expected one of "
            f"{', '.join(IN_FILES)}, then a colon and the place."
        )
    place = os.path.expanduser(os.path.expandvars(place.strip()))
    found = (place, datasets_folder() / "torchvision") if kind == "torchvision" else (file.parent / place,)
    return Listed(task.name, task.year, task.domain, [(kind, *found)])
