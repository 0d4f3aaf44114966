"""The streams of the Nevis'22 benchmark (Bornschein et al., 2022; github.com/google-deepmind/dm_nevis).

"nevis/full", "nevis/short" and so on; with "/meta_train" after it, the years before 2020 alone, on which the
benchmark has everything chosen. A task is here when its data set lies in the folder `datasets_folder()`:
prepared by the benchmark's tools in nevis/KEY, for torchvision in torchvision/, by tools/datasets in
folders/NAME.zip, or as images in folders/NAME.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.common.paths import BUILD, folder_from
from lib.streams.archive import ArchiveSource
from lib.streams.folder import FolderSource
from lib.streams.nevis.prepared import PreparedSource
from lib.streams.task import Listed
from lib.streams.torchvision_sets import TorchvisionSource

META_TEST_FROM = 2020  # the year from which tasks are kept for the final evaluation
REMOVED = 30  # tasks that two of the ablations leave out

Event = tuple[int, str]  # year and name


def datasets_folder() -> Path:
    """Where downloaded data sets are looked for: the environment's DATASETS, or build/datasets."""
    return folder_from("DATASETS", BUILD / "datasets")


@cache
def _tables() -> dict:
    return json.loads((Path(__file__).parent / "nevis.json").read_bytes())


def _events(variant: str) -> list[Event]:
    """The tasks of a stream by year, then in the benchmark's order."""
    return [(int(year), name) for year, names in _tables()["streams"][variant].items() for name in names]


def _before(events: list[Event]) -> list[Event]:
    return [event for event in events if event[0] < META_TEST_FROM]


def _without_first(events: list[Event]) -> list[Event]:
    removed = _before(events)[:REMOVED]
    return [event for event in events if event not in removed]


def _without_last(events: list[Event]) -> list[Event]:
    # From the last year backwards; within a year from its first task, as the benchmark counts them.
    removed = sorted(_before(events), key=lambda event: -event[0])[:REMOVED]
    return [event for event in events if event not in removed]


def _without_imagenet(events: list[Event]) -> list[Event]:
    return [event for event in events if event[0] >= META_TEST_FROM or event[1] != "ImageNet"]


def _random(events: list[Event], count: str = "", seed: str = "0") -> list[Event]:
    before = _before(events)
    always = events[len(before) :]
    sound = count.isdigit() and seed.isdigit() and len(always) < int(count) <= len(events)
    if not sound:
        raise UserError(
            f"nevis/random_dataset/{count} is not valid: expected nevis/random_dataset/COUNT or "
            f"nevis/random_dataset/COUNT/SEED with {len(always) + 1} to {len(events)} tasks."
        )
    shuffled = list(before)
    np.random.default_rng(int(seed)).shuffle(shuffled)
    kept = (always + shuffled)[: int(count)]
    return [event for event in events if event in kept]


# stream -> the table that it is made from, and the change that an ablation makes
VARIANTS: dict[str, tuple[str, Callable[..., list[Event]]]] = {
    **{name: (name, list) for name in _tables()["streams"]},
    "remove_first_30_tasks": ("full", _without_first),
    "remove_last_30_tasks": ("full", _without_last),
    "no_imagenet": ("full", _without_imagenet),
    "random_dataset": ("full", _random),
}


def _rows(variant: str, *arguments: str) -> list[Listed]:
    table, change = VARIANTS[variant]
    meta_train = arguments[-1:] == ("meta_train",)
    arguments = arguments[:-1] if meta_train else arguments
    if len(arguments) > (2 if change is _random else 0):
        raise UserError(
            f"nevis/{variant}/{'/'.join(arguments)} is unknown: expected nevis/{variant}, or with /meta_train after it."
        )
    events = change(_events(table), *arguments)
    return [_listed(event) for event in (_before(events) if meta_train else events)]


STREAMS = {f"nevis/{variant}": partial(_rows, variant) for variant in VARIANTS}


def _listed(event: Event) -> Listed:
    year, name = event
    row, root = _tables()["datasets"][name], datasets_folder()
    places = [ArchiveSource.at(root / "folders" / f"{name}.zip"), FolderSource.at(root / "folders" / name)]
    if "torchvision" in row:
        places.insert(0, TorchvisionSource.at(row["torchvision"], root / "torchvision"))
    if row["library"] == "nevis":
        places.insert(0, PreparedSource.at(root / "nevis" / row["key"]))
    return Listed.at(places, name, year, row["domain"], kind=row["kind"], num_classes=row["num_classes"])
