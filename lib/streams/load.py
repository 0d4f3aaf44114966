"""Load a stream by its name, or by the path of a stream file."""

from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.common.errors import UserError, choose
from lib.streams.folder import FolderSource
from lib.streams.ingest import task_from
from lib.streams.nevis import datasets_folder
from lib.streams.nevis.prepared import PreparedSource
from lib.streams.task import STREAMS, Listed, Stream
from lib.streams.torchvision_sets import TorchvisionSource

COLUMNS = ["name", "year", "domain", "kind", "num_classes", "available", "how"]
# kind of source -> the place that a stream file in the folder `base` means by what stands behind the colon
SOURCES = {
    "folder": lambda place, base: FolderSource.at(base / place),
    "nevis": lambda place, base: PreparedSource.at(base / place),
    "torchvision": lambda place, _: TorchvisionSource.at(place, datasets_folder() / "torchvision"),
}


def load_stream(name: str, missing: str = "error") -> Stream:
    """The stream called `name`, or described by the file `name` (.yaml).

    Raises UserError for an unknown one, and, unless `missing` is "skip", for tasks that are not here; with
    "skip" their names are in `left_out`.
    """
    choose("value of missing", missing, ("error", "skip"))
    rows = _rows(name)
    absent = [row for row in rows if row.open is None]
    if absent and (missing == "error" or len(absent) == len(rows)):
        listed = "; ".join(f"{row.name} ({row.how})" for row in absent)
        raise UserError(
            f"{len(absent)} of {len(rows)} tasks of the stream {name!r} are not here: {listed}. Get them, or "
            "go on without them with missing='skip'."
        )
    tasks = (task_from(row.open(), row.name, row.year, row.domain) for row in rows if row.open)
    return Stream(name, tuple(tasks), tuple(row.name for row in absent))


def list_tasks(name: str) -> pd.DataFrame:
    """Every task of a stream, whether its images are here or not.

    Columns: name, year, domain, kind, num_classes, available, how (where it is or how to get it).
    """
    rows = [{**vars(row), "available": row.open is not None} for row in _rows(name)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"num_classes": "Int64"})


def _rows(name: str) -> list[Listed]:
    if name.endswith((".yaml", ".yml")):
        return _rows_of_file(Path(name))
    known = [stream for stream in STREAMS if f"{name}/".startswith(f"{stream}/")]
    if not known:
        raise UserError(
            f"Unknown stream {name!r}: expected one of {', '.join(STREAMS)}, or the path of a "
            "stream file (.yaml)."
        )
    arguments = name.removeprefix(known[0]).split("/")[1:]
    return STREAMS[known[0]](*arguments)


class _TaskEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1)
    source: str = Field(pattern="^[a-z]+:.+$")
    year: int = Field(ge=1900, le=2100)
    domain: str = "other"


class _StreamFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1)
    tasks: list[_TaskEntry] = Field(min_length=1)


def _rows_of_file(file: Path) -> list[Listed]:
    """The tasks of a stream file. Raises UserError for a file that is none."""
    try:
        content = _StreamFile.model_validate(yaml.safe_load(file.read_bytes()))
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}): expected the path of a stream file."
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{file}: {where} is not valid ({first['msg']}): see docs/extending.md for an example."
        ) from error
    return [_listed(entry, file) for entry in content.tasks]


def _listed(entry: _TaskEntry, file: Path) -> Listed:
    kind, _, place = entry.source.partition(":")
    if kind not in SOURCES:
        raise UserError(
            f"{file}: source {entry.source!r} is unknown: expected one of {', '.join(SOURCES)}, then a colon."
        )
    places, absent = [SOURCES[kind](place, file.parent)], {"kind": "classification", "num_classes": None}
    return Listed.at(places, entry.name, entry.year, entry.domain, **absent)
