"""Streams that anyone describes in a file: stream.yaml.

    name: mine
    tasks:
      - {name: birds, source: "folder:data/birds", year: 2011}
      - {name: mnist, source: "nevis:data/nevis/stable/MNIST", year: 1998}
      - {name: flowers, source: "torchvision:Flowers102", year: 2008}

Relative sources are relative to the file; torchvision's lie in torchvision/ below `datasets_folder()`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.errors import UserError
from lib.streams.base import Listed
from lib.streams.folder import FolderSource
from lib.streams.nevis import datasets_folder
from lib.streams.prepared import PreparedSource
from lib.streams.sources import Source
from lib.streams.torchvision import LOADERS, TorchvisionSource, how_to_get, is_there


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


def _folder(place: str, base: Path) -> Callable[[], Source] | str:
    folder = base / place
    return partial(FolderSource, folder) if folder.is_dir() else f"expected a folder at {folder}"


def _nevis(place: str, base: Path) -> Callable[[], Source] | str:
    folder = base / place
    return (
        partial(PreparedSource, folder) if folder.is_dir() else f"expected a prepared directory at {folder}"
    )


def _torchvision(name: str, _: Path) -> Callable[[], Source] | str:
    if name not in LOADERS:
        raise UserError(f"torchvision:{name} is unknown: expected one of {', '.join(LOADERS)}.")
    root = datasets_folder() / "torchvision"
    return partial(TorchvisionSource, name, root) if is_there(name, root) else how_to_get(name, root)


# kind of source: (place, folder of the file) -> how to open it, or how to get it
SOURCES: dict[str, Callable[[str, Path], Callable[[], Source] | str]] = {
    "folder": _folder,
    "nevis": _nevis,
    "torchvision": _torchvision,
}


def rows_of_file(path: str) -> list[Listed]:
    """The tasks of a stream file. Raises UserError for a file that is none."""
    file = Path(path)
    try:
        content = _StreamFile.model_validate(yaml.safe_load(file.read_text()))
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
    found = SOURCES[kind](place, file.parent)
    if isinstance(found, str):
        return Listed(entry.name, entry.year, entry.domain, "classification", None, found, None)
    source = found()
    return Listed(entry.name, entry.year, entry.domain, source.kind, source.num_classes, entry.source, found)
