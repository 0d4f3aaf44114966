"""What notebooks measure or count for themselves: networks (01, 05, 06), tasks (07), rates (10), distances (11)."""

import copy
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.common.errors import UserError
from lib.common.paths import PAPER_RECORDS
from lib.evidence.analysis import leads
from lib.evidence.records import COMPARED, MissingArms, arms, of_reference, reference_pixels, said, some
from lib.learning.rates import rates
from lib.learning.training import TaskNetwork
from lib.networks.backbone import Backbone, load_backbone, normalised
from lib.networks.macs import forward_macs, training_macs
from lib.networks.measure import fidelity, measure_latency
from lib.pruning import plan_pruning
from lib.pruning.plan import PruningPlan
from lib.runs.profiles import arms_of
from lib.runs.spec import RunSpec, best_image_size
from lib.streams import calibration_images, list_tasks, load_stream
from lib.streams.shipped import POCKET
from tools.distances import FOLDER as DISTANCES
from tools.distances import measure as measure_distances
from tools.speed import images_per_second


def mixed_images(count: int, image_size: int) -> Tensor:
    """Training images of the pocket stream, as many of each task, in turn: uint8 (count, H, W, 3)."""
    tasks = load_stream("pocket").tasks
    each = -(-count // len(tasks))
    parts = [task.read(image_size).train.first(each).images for task in tasks]
    return torch.stack([images[place] for place in range(each) for images in parts])[:count]


def pruned_networks(profile: str) -> tuple[Backbone, dict[float, PruningPlan], int]:
    """The main network of a profile, a plan for each share that the profile removes of it, and its size in pixels."""
    arms = [arm for group in COMPARED for arm in arms_of(profile, group).values()]
    backbone, own = arms[0]["backbone"], [arm for arm in arms if arm["backbone"] == arms[0]["backbone"]]
    dense, size = load_backbone(backbone), arms[0].get("image_size") or best_image_size(backbone)
    seen = normalised(calibration_images(64, size).permute(0, 3, 1, 2), dense)
    how = {name: arms[0][name] for name in ("criterion", "scope", "granularity") if name in arms[0]}
    ratios = sorted({arm["ratio"] for arm in own} - {0})
    plans = {ratio: plan_pruning(dense, ratio, **how, repair="none", image_size=size, images=seen) for ratio in ratios}
    return dense, plans, size


def second_count(network: Backbone, image_size: int) -> int:
    """Forward MACs of one image as ptflops counts them."""
    from ptflops import get_model_complexity_info  # imports torchvision, which lib prepares

    throwaway = copy.deepcopy(network)  # ptflops leaves its hooks behind
    how = {"as_strings": False, "print_per_layer_stat": False, "backend": "pytorch"}
    return get_model_complexity_info(throwaway, (3, image_size, image_size), **how)[0]


def fidelity_table(
    backbones: Iterable[str],
    recipes: dict[tuple[str, str], tuple[str, str, str]],
    ratios: Iterable[float],
    image_count: int,
    granularity: str = "channel",
) -> pd.DataFrame:
    """Zero-shot fidelity, one row per backbone, recipe and ratio.

    `recipes` maps what is varied and its name to criterion, scope and repair. These look at `image_count` of the
    shipped photographs; fidelity is measured on as many images of the pocket stream. Columns: backbone, varied, name,
    ratio, fidelity.
    """
    rows = []
    for backbone in backbones:
        dense, size = load_backbone(backbone), best_image_size(backbone)
        seen = normalised(calibration_images(image_count, size).permute(0, 3, 1, 2), dense)
        held_out = normalised(mixed_images(image_count, size).permute(0, 3, 1, 2), dense)
        for ((varied, name), (criterion, scope, repair)), ratio in itertools.product(recipes.items(), ratios):
            how = {"scope": scope, "repair": repair, "granularity": granularity, "image_size": size, "images": seen}
            plan = plan_pruning(dense, ratio, criterion, **how)
            cosine = fidelity(dense, plan.apply(dense), held_out)
            rows.append((said(backbone), varied, name.replace("_", " "), ratio, cosine))
    return pd.DataFrame(rows, columns=["backbone", "varied", "name", "ratio", "fidelity"])


def time_table(
    backbone: str, ratios: Sequence[float], sizes: Sequence[int], others: Iterable[str], granularity: str = "channel"
) -> pd.DataFrame:
    """MACs and measured milliseconds of one image, one row per network and work.

    Networks: the dense one, shares of it removed as in the records, it on fewer pixels, the first of both, and others.
    Columns: network, family, work, macs, ms, and share_of_macs and share_of_time, of the dense network's for the same
    work.
    """
    dense, size = load_backbone(backbone), best_image_size(backbone)
    how = {"criterion": "activation_images", "scope": "global", "repair": "none", "granularity": granularity}

    @cache
    def seen(pixels: int) -> Tensor:
        return normalised(calibration_images(512, pixels).permute(0, 3, 1, 2), dense)

    def pruned(ratio: float, pixels: int) -> Backbone:
        return plan_pruning(dense, ratio, **how, image_size=pixels, images=seen(pixels)).apply(dense)

    networks = [("dense", "dense", dense, size)]
    networks += [(f"{ratio:.0%} removed", "pruned", pruned(ratio, size), size) for ratio in ratios]
    networks += [(f"{pixels} px", "fewer pixels", dense, pixels) for pixels in sizes]
    networks += [(f"{sizes[0]} px, {ratios[0]:.0%} removed", "pruned", pruned(ratios[0], sizes[0]), sizes[0])]
    loaded = [(said(name), load_backbone(name, pretrained=False), best_image_size(name)) for name in others]
    networks += [(name, "other network", network, pixels) for name, network, pixels in loaded]
    spec = RunSpec(backbone=backbone, ratio=0, budgets=[2])
    rows = [
        (name, family, *work) for name, family, network, pixels in networks for work in _times(network, spec, pixels)
    ]
    table = pd.DataFrame(rows, columns=["network", "family", "work", "macs", "ms"])
    whole = table.groupby("work")[["macs", "ms"]].transform("first")  # the dense network's, which comes first
    table[["share_of_macs", "share_of_time"]] = table[["macs", "ms"]] / whole
    return table


def _times(network: Backbone, spec: RunSpec, image_size: int) -> list[tuple[str, float, float]]:
    """Work, MACs and milliseconds of one image, forward and in training."""
    rows = []
    for batch in (1, 32):
        took = measure_latency(network, image_size, batch_size=batch, precision=spec.precision) / batch
        rows.append((f"forward, batch {batch}", forward_macs(network, image_size), took))
    took = 1000 / images_per_second(network, image_size, spec.engine, rounds=2)
    rows.append(("training", training_macs(TaskNetwork(network, 10), image_size), took))
    return rows


@cache
def distances(backbone: str, stream: str) -> pd.DataFrame:
    """How far each task is from the pretraining images: as committed, or measured on the images.

    Columns: stream, event, task, distance (nats).
    """
    file = DISTANCES / f"{backbone}.parquet"
    committed = pd.read_parquet(file) if file.exists() else pd.DataFrame({"stream": []})
    known = committed[committed["stream"] == stream]
    return known if len(known) else measure_distances(backbone, load_stream(stream))


def rates_tried(backbone: str, learner: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean dev error over tasks at every pair of rates that was tried, and at the committed one.

    From the records of tools/tune_rates.py. Columns of the first: ratio, budget, body_rate, head_rate, error_dev; of
    the second: ratio, budget, body, head, best and error_dev (the lowest of the grid, and at the committed rates).
    Raises MissingArms where nothing was tuned.
    """
    file = PAPER_RECORDS / "tuning" / f"{backbone}-{learner}.parquet"
    if not file.exists():
        raise MissingArms(f"There is no {file.name}: expected the records of the tuning.")
    tuning = pd.read_parquet(file)
    table = tuning.groupby(["ratio", "budget", "body_rate", "head_rate"])["error_dev"].mean().reset_index()
    body, head = rates(learner, backbone)
    committed = table[(table["body_rate"] == body) & (table["head_rate"] == head)]
    rule = committed.rename(columns={"body_rate": "body", "head_rate": "head"}).set_index(["ratio", "budget"])
    return table, rule.assign(best=table.groupby(["ratio", "budget"])["error_dev"].min()).reset_index()


def leads_by_distance(streams: dict[str, pd.DataFrame], share: float = 0.5) -> pd.DataFrame:
    """Leads of pruned over dense, and of inner filters over channels, per task, mean over the budgets of all streams.

    Of the reference network with `share` removed. `streams`: records by a stream's name. A task that a stream has twice
    is one row. Columns: panel, stream, task, distance (nats), points. Raises MissingArms where no records have a pair
    to compare, UserError for a task whose distance is not known.
    """
    found = {name: _pairs_led(records, share) for name, records in streams.items()}
    tables = [pd.DataFrame()]
    for panel in dict.fromkeys(panel for pairs in found.values() for panel in pairs):
        of_streams = {name: pairs[panel] for name, pairs in found.items() if panel in pairs}
        shared = set.intersection(*(set(table["budget"]) for table in of_streams.values()))
        for name, table in of_streams.items():
            first = streams[name].iloc[0]
            at_shared = table[table["budget"].isin(shared)].groupby(["event", "task"], sort=False)["points"].mean()
            far = distances(first["reference"].split("@")[0], first["stream"])
            both = at_shared.reset_index().merge(far, on=["event", "task"], how="left")
            if both["distance"].isna().any():
                raise UserError(f"{name} has other tasks than {DISTANCES}: run `python -m tools.distances`.")
            means = both.groupby("task", sort=False)[["distance", "points"]].mean().reset_index()
            tables.append(means.assign(panel=panel, stream=name))
    return some(pd.concat(tables, ignore_index=True), "a network dense and pruned")


def _pairs_led(records: pd.DataFrame, share: float) -> dict[str, pd.DataFrame]:
    """`analysis.leads` of each pair of arms of the reference network that the records have, by what leads what."""
    about = arms(records)
    own = about[of_reference(about) & (about["image_size"] == reference_pixels(about))]
    named = own["how"].where(own["ratio"] > 0, "dense")

    def arm(how: str, learner: str) -> list[str]:
        return list(own.index[(named == how) & own["ratio"].isin([0, share]) & (own["learner"] == learner)][:1])

    pairs = {
        "pruned over dense, fine-tuned": (arm("", "independent"), arm("dense", "independent")),
        "pruned over dense, probe": (arm("", "probe"), arm("dense", "probe")),
        "inner filters over channels, probe": (arm("inner filters", "probe"), arm("", "probe")),
    }
    return {name: leads(records, *pair) for name, pair in pairs.items() if all(pair)}


def stream_table(profile: str) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The tasks of a profile's stream, one row each, with what their cards say, and the first images of each.

    The images are uint8 (12, 64, 64, 3), of the training part.
    """
    arm = next(iter(arms_of(profile).values()))
    stream = load_stream(arm.get("stream", "pocket"), arm.get("missing", "error")).only(arm.get("tasks"))
    data = [task.read(64) for task in stream.tasks]
    listed = list_tasks(stream.name)
    here = listed["available"] & listed["name"].isin([task.name for task in stream.tasks])
    tasks = listed[here].drop(columns=["available", "how"]).reset_index(drop=True)
    for part in ("train", "dev", "test"):
        tasks[part] = [len(getattr(parts, part)) for parts in data]
    cards = pd.DataFrame(json.loads((POCKET / "cards.json").read_text())).set_index("name")
    shown = cards[["majority", "linear_colour", "linear_pixels", "licence"]]
    known = shown.rename(columns={"linear_colour": "colour", "linear_pixels": "pixels"}).reindex(tasks["name"])
    return tasks.join(known.reset_index(drop=True)), [parts.train.images[:12].numpy() for parts in data]
