"""The streams of the Nevis'22 benchmark (Bornschein et al., 2022; github.com/google-deepmind/dm_nevis).

"nevis/full", "nevis/short" and so on; with "/meta_train" after it, the years before 2020 alone, on which the
benchmark has everything chosen. A task is here when its data set lies in the folder `datasets_folder()`:
prepared by the benchmark's tools in nevis/KEY, for torchvision in torchvision/, by tools/datasets in
folders/NAME.zip, or as images in folders/NAME.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.common.paths import BUILD, folder_from
from lib.streams.task import Listed

META_TEST_FROM = 2020  # the year from which tasks are kept for the final evaluation
TABLES = json.loads(Path(__file__).with_suffix(".json").read_bytes())

Events = list[tuple[int, str]]  # years and names, in the benchmark's order


def datasets_folder() -> Path:
    """Where downloaded data sets are looked for: the environment's DATASETS, or build/datasets."""
    return folder_from("DATASETS", BUILD / "datasets")


def _tasks(variant: str, *arguments: str) -> list[Listed]:
    meta_train = arguments[-1:] == ("meta_train",)
    numbers = arguments[:-1] if meta_train else arguments
    years = TABLES["streams"].get(variant, TABLES["streams"]["full"])
    events = [(int(year), name) for year, names in years.items() for name in names]
    if variant == "random_dataset":
        events = _drawn(events, *numbers)
    elif numbers:
        raise UserError(
            f"nevis/{variant}/{'/'.join(numbers)} is unknown: expected nevis/{variant}, or with /meta_train."
        )
    return [_listed(*event) for event in events if event[0] < META_TEST_FROM or not meta_train]


def _drawn(events: Events, *numbers: str) -> Events:
    """All events from META_TEST_FROM on, and as many of the earlier ones as make the first number, by the second's lot."""
    before = [event for event in events if event[0] < META_TEST_FROM]
    after = len(events) - len(before)
    sound = len(numbers) in (1, 2) and all(map(str.isdecimal, numbers))
    if not sound or not after < int(numbers[0]) <= len(events):
        raise UserError(
            f"nevis/random_dataset/{'/'.join(numbers)} is not valid: expected nevis/random_dataset/COUNT or "
            f"nevis/random_dataset/COUNT/SEED with {after + 1} to {len(events)} tasks."
        )
    np.random.default_rng(int((*numbers, "0")[1])).shuffle(before)
    return [event for event in events if event not in before[int(numbers[0]) - after :]]


STREAMS = {f"nevis/{variant}": partial(_tasks, variant) for variant in (*TABLES["streams"], "random_dataset")}


def _listed(year: int, name: str) -> Listed:
    row, root = TABLES["datasets"][name], datasets_folder()
    places: list[tuple] = [("nevis", root / "nevis" / row["key"])] if row["library"] == "nevis" else []
    places += [("torchvision", row["torchvision"], root / "torchvision")] if "torchvision" in row else []
    places += [("archive", root / "folders" / f"{name}.zip"), ("folder", root / "folders" / name)]
    return Listed(name, year, row["domain"], places, row["kind"], row["num_classes"])
