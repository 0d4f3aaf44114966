"""The streams of the Nevis'22 benchmark (Bornschein et al., 2022; github.com/google-deepmind/dm_nevis).

"nevis/full", "nevis/short" and so on; with "/meta_train" after it, the years before 2020 alone, on which the
benchmark has everything chosen. A task is here when its data set lies in the folder `datasets_folder()`:
prepared by the benchmark's tools in nevis/KEY, for torchvision in torchvision/, by tools/datasets in
folders/NAME.zip, or as images in folders/NAME.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.common.paths import BUILD, folder_from
from lib.streams.task import Listed

META_TEST_FROM = 2020  # the year from which tasks are kept for the final evaluation
REMOVED = 30  # tasks that two of the ablations leave out
TABLES = json.loads(Path(__file__).with_suffix(".json").read_bytes())

Events = list[tuple[int, str]]  # years and names, in the benchmark's order


def datasets_folder() -> Path:
    """Where downloaded data sets are looked for: the environment's DATASETS, or build/datasets."""
    return folder_from("DATASETS", BUILD / "datasets")


def _all_but(before: Events, after: Events, count: str = "", seed: str = "0") -> Events:
    least, most = len(after) + 1, len(before + after)
    if not (count.isdigit() and seed.isdigit() and least <= int(count) <= most):
        raise UserError(
            f"nevis/random_dataset/{count} is not valid: expected nevis/random_dataset/COUNT or "
            f"nevis/random_dataset/COUNT/SEED with {least} to {most} tasks."
        )
    shuffled = list(before)
    np.random.default_rng(int(seed)).shuffle(shuffled)
    return shuffled[int(count) - len(after) :]


# ablation -> what it leaves out of the full stream, of the tasks before META_TEST_FROM and those after
ABLATIONS: dict[str, Callable[..., Events]] = {
    "remove_first_30_tasks": lambda before, _: before[:REMOVED],
    # From the last year backwards; within a year from its first task, as the benchmark counts them.
    "remove_last_30_tasks": lambda before, _: sorted(before, key=lambda event: -event[0])[:REMOVED],
    "no_imagenet": lambda before, _: [event for event in before if event[1] == "ImageNet"],
    "random_dataset": _all_but,
}


def _tasks(variant: str, *arguments: str) -> list[Listed]:
    meta_train = arguments[-1:] == ("meta_train",)
    arguments = arguments[:-1] if meta_train else arguments
    if len(arguments) > (2 if variant == "random_dataset" else 0):
        raise UserError(
            f"nevis/{variant}/{'/'.join(arguments)} is unknown: expected nevis/{variant}, or with /meta_train after it."
        )
    years = TABLES["streams"].get(variant, TABLES["streams"]["full"])
    events = [(int(year), name) for year, names in years.items() for name in names]
    before = [event for event in events if event[0] < META_TEST_FROM]
    after = [event for event in events if event not in before]
    left_out = ABLATIONS[variant](before, after, *arguments) if variant in ABLATIONS else []
    return [_listed(*event) for event in (before if meta_train else events) if event not in left_out]


STREAMS = {f"nevis/{variant}": partial(_tasks, variant) for variant in (*TABLES["streams"], *ABLATIONS)}


def _listed(year: int, name: str) -> Listed:
    row, root = TABLES["datasets"][name], datasets_folder()
    places = [("archive", root / "folders" / f"{name}.zip"), ("folder", root / "folders" / name)]
    if "torchvision" in row:
        places.insert(0, ("torchvision", root / "torchvision" / row["torchvision"]))
    if row["library"] == "nevis":
        places.insert(0, ("nevis", root / "nevis" / row["key"]))
    return Listed(name, year, row["domain"], places, row["kind"], row["num_classes"])
