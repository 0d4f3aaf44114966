"""Load a stream by its name, or by the path of a stream file."""

import pandas as pd

from lib.errors import UserError
from lib.streams.base import STREAMS, Listed, Stream
from lib.streams.files import rows_of_file
from lib.streams.ingest import task_from

COLUMNS = ["name", "year", "domain", "kind", "num_classes", "available", "how"]


def load_stream(name: str, missing: str = "error") -> Stream:
    """The stream called `name`, or described by the file `name` (.yaml).

    Raises UserError for an unknown one, and, unless `missing` is "skip", for tasks that are not here; with
    "skip" their names are in `left_out`.
    """
    if missing not in ("error", "skip"):
        raise UserError(f"missing={missing!r} is unknown: expected 'error' or 'skip'.")
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
    rows = [{**_fields(row), "available": row.open is not None} for row in _rows(name)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"num_classes": "Int64"})


def _fields(row: Listed) -> dict:
    return {key: getattr(row, key) for key in COLUMNS if key != "available"}


def _rows(name: str) -> list[Listed]:
    if name.endswith((".yaml", ".yml")):
        return rows_of_file(name)
    known = [stream for stream in STREAMS if f"{name}/".startswith(f"{stream}/")]
    if not known:
        raise UserError(
            f"Unknown stream {name!r}: expected one of {', '.join(STREAMS)}, or the path of a "
            "stream file (.yaml)."
        )
    arguments = name.removeprefix(known[0]).split("/")[1:]
    return STREAMS[known[0]](*arguments)
