"""What the notebooks that need no records measure for themselves: fidelity (05) and time (06)."""

import itertools
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from lib.learning.training import TaskNetwork
from lib.networks.backbone import Backbone, load_backbone, normalised
from lib.networks.macs import forward_macs, training_macs
from lib.networks.measure import fidelity, measure_latency
from lib.pruning import plan_pruning
from lib.runs.spec import RunSpec
from lib.streams import load_stream
from tools.speed import images_per_second


def mixed_images(count: int, image_size: int = 64) -> Tensor:
    """Training images of the pocket stream, as many of each task, in turn: uint8 (count, H, W, 3)."""
    tasks = load_stream("pocket").tasks
    each = -(-count // len(tasks))
    parts = [task.read(image_size).train.first(each).images for task in tasks]
    return torch.stack([images[place] for place in range(each) for images in parts])[:count]


def fidelity_table(
    backbones: Iterable[str],
    recipes: dict[tuple[str, str], tuple[str, str, str]],
    ratios: Iterable[float],
    image_count: int,
) -> pd.DataFrame:
    """Zero-shot fidelity, one row per backbone, recipe and ratio.

    `recipes` maps what is varied and its name to criterion, scope and repair. These look at the first third
    of `image_count` images of the pocket stream; fidelity is measured on the others. Columns: backbone,
    varied, name, ratio, fidelity.
    """
    rows = []
    for backbone in backbones:
        dense = load_backbone(backbone)
        images = normalised(mixed_images(image_count).permute(0, 3, 1, 2), dense)
        seen, held_out = images[: image_count // 3], images[image_count // 3 :]
        how = {"images": seen, "image_size": images.shape[-1]}
        for ((varied, name), (criterion, scope, repair)), ratio in itertools.product(recipes.items(), ratios):
            plan = plan_pruning(dense, ratio, criterion, scope=scope, repair=repair, **how)
            rows.append((backbone, varied, name, ratio, fidelity(dense, plan.apply(dense), held_out)))
    return pd.DataFrame(rows, columns=["backbone", "varied", "name", "ratio", "fidelity"])


def time_table(backbones: Iterable[str], ratios: Iterable[float], image_size: int) -> pd.DataFrame:
    """MACs and measured milliseconds of one image, one row per backbone, granularity, ratio and work.

    Columns further: precision, and share_of_macs and share_of_time, of the dense network's. The dense network
    is in each granularity and measured once.
    """
    tables = []
    for backbone in backbones:
        dense = load_backbone(backbone, pretrained=False)
        spec = RunSpec(backbone=backbone, ratio=0, budgets=[2])
        whole = _times(dense, spec, image_size)
        for granularity in ("filter", "channel"):
            for ratio in (0.0, *ratios):
                table = whole
                if ratio:
                    how = {"criterion": "l1", "scope": "uniform", "repair": "none"}
                    pruned = plan_pruning(dense, ratio, granularity=granularity, **how).apply(dense)
                    table = _times(pruned, spec, image_size)
                shares = table[["macs", "ms"]] / whole[["macs", "ms"]]
                table[["share_of_macs", "share_of_time"]] = shares
                about = {"backbone": backbone, "granularity": granularity, "ratio": ratio, "precision": spec.precision}
                tables.append(pd.DataFrame(about, index=table.index).join(table))
    return pd.concat(tables, ignore_index=True)


def _times(network: Backbone, spec: RunSpec, image_size: int) -> pd.DataFrame:
    """Work, MACs and milliseconds of one image, forward and in training."""
    rows = []
    for batch in (1, 32):
        took = measure_latency(network, image_size, batch_size=batch, precision=spec.precision) / batch
        rows.append((f"forward, batch {batch}", forward_macs(network, image_size), took))
    took = 1000 / images_per_second(network, image_size, spec.engine, rounds=3)
    rows.append(("training, batch 16", training_macs(TaskNetwork(network, 10), image_size), took))
    return pd.DataFrame(rows, columns=["work", "macs", "ms"])
