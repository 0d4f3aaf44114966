"""Load a stream by its name, or by the path of a stream file."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.common.errors import UserError, choose
from lib.streams.folder import FolderSource
from lib.streams.ingest import task_from
from lib.streams.nevis import STREAMS as NEVIS
from lib.streams.nevis import datasets_folder
from lib.streams.nevis.prepared import PreparedSource
from lib.streams.pocket import pocket
from lib.streams.task import Listed, Stream
from lib.streams.torchvision_sets import TorchvisionSource

COLUMNS = ["name", "year", "domain", "kind", "num_classes", "available", "how"]
# a stream's name -> its tasks, by what is written behind the name, split at slashes
STREAMS: dict[str, Callable[..., list[Listed]]] = {"pocket": pocket, **NEVIS}
# kind of source -> the place that a stream file in the folder `base` means by what stands behind the colon
SOURCES = {
    "folder": lambda place, base: FolderSource.at(base / place),
    "nevis": lambda place, base: PreparedSource.at(base / place),
    "torchvision": lambda place, _: TorchvisionSource.at(place, datasets_folder() / "torchvision"),
}


def load_stream(name: str | Path, missing: str = "error") -> Stream:
    """The stream called `name`, or described by the file `name` (.yaml).

    Raises UserError for an unknown one, and, unless `missing` is "skip", for tasks that are not here; with
    "skip" their names are in `left_out`.
    """
    choose("value of missing", missing, ("error", "skip"))
    name, rows = _rows(name)
    absent = [row for row in rows if row.open is None]
    if absent and (missing == "error" or len(absent) == len(rows)):
        listed = "; ".join(f"{row.name} ({row.how})" for row in absent)
        raise UserError(
            f"{len(absent)} of {len(rows)} tasks of the stream {name!r} are not here: {listed}. Get them, or "
            "go on without them with missing='skip'."
        )
    tasks = (task_from(row.open(), row.name, row.year, row.domain) for row in rows if row.open)
    return Stream(name, tuple(tasks), tuple(row.name for row in absent))


def list_tasks(name: str | Path) -> pd.DataFrame:
    """Every task of a stream, whether its images are here or not.

    Columns: name, year, domain, kind, num_classes, available, how (where it is or how to get it).
    """
    rows = [{**vars(row), "available": row.open is not None} for row in _rows(name)[1]]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"num_classes": "Int64"})


def _rows(name: str | Path) -> tuple[str, list[Listed]]:
    """A stream's name, for a file the one that it gives itself, and its tasks."""
    if isinstance(name, Path) or name.lower().endswith((".yaml", ".yml")):
        file = Path(os.path.expanduser(name))
        found = _read(file)
        return found.name, [_listed(entry, file) for entry in found.tasks]
    known = [stream for stream in STREAMS if f"{name}/".startswith(f"{stream}/")]
    if not known:
        raise UserError(
            f"Unknown stream {name!r}: expected one of {', '.join(STREAMS)}, or the path of a stream file (.yaml)."
        )
    arguments = name.removeprefix(known[0]).split("/")[1:]
    return name, STREAMS[known[0]](*arguments)


class _TaskEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    name: str = Field(min_length=1)
    source: str
    year: int = Field(ge=1900, le=2100, strict=False)
    domain: str = "other"


class _StreamFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    name: str = Field(min_length=1)
    tasks: list[_TaskEntry] = Field(min_length=1)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(
                problem=f"{twice[0]!r} is given twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read(file: Path) -> _StreamFile:
    """What a stream file says. Raises UserError for one that is none."""
    try:
        content = yaml.load(file.read_bytes(), _Loader)
        if not isinstance(content, dict):
            kind = "nothing" if content is None else f"a {type(content).__name__}"
            raise UserError(f"{file} holds {kind}: expected `name` and `tasks`, as in docs/extending.md.")
        found = _StreamFile.model_validate(content)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): expected the path of a stream file.") from error
    except yaml.YAMLError as error:
        tabs = " Indent with spaces instead of tabs." if "'\\t'" in str(error) else ""
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}.{tabs}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{file}: {where} is not valid ({first['msg']}): see docs/extending.md for an example."
        ) from error
    names = [task.name for task in found.tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file}: two tasks are called {twice[0]!r}: expected a name of its own for each.")
    return found


def _listed(entry: _TaskEntry, file: Path) -> Listed:
    kind, _, place = entry.source.partition(":")
    if kind not in SOURCES or not place:
        raise UserError(
            f"{file}: the source {entry.source!r} of {entry.name!r} is unknown: expected one of "
            f"{', '.join(SOURCES)}, then a colon and the place."
        )
    place = os.path.expanduser(os.path.expandvars(place.strip()))
    places, absent = [SOURCES[kind](place, file.parent)], {"kind": "classification", "num_classes": None}
    return Listed.at(places, entry.name, entry.year, entry.domain, **absent)
