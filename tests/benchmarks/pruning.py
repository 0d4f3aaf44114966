"""The pruning library against Torch-Pruning, in one run: `python tests/benchmarks/pruning.py ARCHIVE`.

Zero-shot quality: EfficientNet-Lite0's top-1 on Tiny ImageNet's validation images, which carry ImageNet's
labels, scaled up to 224 px, as a share of the dense accuracy; Torch-Pruning at the same kept widths. Speed of
pruning: ResNet-50 at ratio 0.5, plan and apply. Realised speed-up: ResNet-50 at 224 px, batch 32.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from lib.common.vision import timm  # before torch_pruning, which imports torchvision
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import forward_macs
from lib.networks.measure import measure_latency
from lib.pruning import plan_pruning
from lib.pruning.statistics import synthetic_images
from tools.pretrain import read_tiny_imagenet

import torch_pruning  # isort: skip

RATIOS = (0.1, 0.2, 0.3, 0.5)
SIDE = 224
# name: (criterion, scope, repair, whether the criterion looks at synthetic images)
RECIPES = {
    "random": ("random", "uniform", "none", False),
    "L1": ("l1", "uniform", "none", False),
    "data-free: activation + mean": ("activation", "uniform", "mean", False),
    "data-free: activation, global + mean": ("activation", "global", "mean", False),
    "data-free: activation, global + fold": ("activation", "global", "fold", False),
    "data-free: activation, global + least squares synthetic": (
        "activation",
        "global",
        "least_squares_synthetic",
        False,
    ),
    "data-free: elimination on synthetic images, global + mean": ("activation_images", "global", "mean", True),
    "64 images: elimination, global + least squares": ("activation_images", "global", "least_squares", False),
    "64 images: elimination, global + mean": ("activation_images", "global", "mean", False),
}


def scaled(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, 64, 64, 3) to normalised images (N, 3, 224, 224)."""
    large = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.BICUBIC)) for image in images]
    return (torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


@torch.inference_mode()
def accuracy(network: Backbone, images: torch.Tensor, labels: torch.Tensor) -> float:
    network = network.to(memory_format=torch.channels_last)
    batches = (part.contiguous(memory_format=torch.channels_last) for part in images.split(50))
    found = torch.cat([network.classifier(network(batch)).argmax(1) for batch in batches])
    return (found == labels).float().mean().item()


def torch_pruning_at(network: Backbone, kept: dict[str, list[int]]) -> Backbone:
    """Torch-Pruning with its default magnitude importance, at the widths that a plan keeps."""
    small = copy.deepcopy(network)
    shares = {}
    for name, indices in kept.items():
        # Half a filter more, so that the truncation in Torch-Pruning ends at the plan's count.
        width = small.get_submodule(name).out_channels
        share = 1 - min(width, len(indices) + 0.5) / width
        for carrier in (name, name.replace("conv_pw", "conv_dw")):
            shares[small.get_submodule(carrier)] = share
    torch_pruning.pruner.BasePruner(
        small,
        torch.randn(1, 3, SIDE, SIDE),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict=shares,
    ).step()
    for name, indices in kept.items():
        assert small.get_submodule(name).out_channels == len(indices), name
    return small


def quality(archive: Path, count: int) -> pd.DataFrame:
    """Shares of the dense accuracy, a row a recipe, a column a ratio."""
    training, tests, classes = read_tiny_imagenet(archive)
    synsets = (Path(timm.data.__file__).parent / "_info" / "imagenet_synsets.txt").read_text().split()
    imagenet = torch.tensor([synsets.index(name) if name in synsets else -1 for name in classes])
    rng = np.random.default_rng(0)
    shown = rng.permutation(np.flatnonzero(imagenet[tests.labels] >= 0))[:count]
    validation, truth = scaled(tests.images[shown]), imagenet[tests.labels[shown]]
    calibration = scaled(training.images[rng.choice(len(training.images), 64, replace=False)])
    synthetic = synthetic_images(64, SIDE, seed=0)

    dense = load_backbone("efficientnet_lite0")
    top1 = accuracy(dense, validation, truth)
    print(f"dense EfficientNet-Lite0: top-1 {top1:.3f} on {len(shown)} images", flush=True)
    rows = {}
    for name, (criterion, scope, repair, on_synthetic) in RECIPES.items():
        for ratio in RATIOS:
            plan = plan_pruning(
                dense, ratio, criterion, scope=scope, repair=repair, images=synthetic if on_synthetic else calibration
            )
            rows[name, ratio] = accuracy(plan.apply(dense), validation, truth) / top1
            if name == "L1":
                peer = torch_pruning_at(dense, plan.kept)
                rows["Torch-Pruning, the same widths", ratio] = accuracy(peer, validation, truth) / top1
        print(name, *(f"{rows[name, ratio]:.1%}" for ratio in RATIOS), flush=True)
    return pd.Series(rows).unstack()


def pruning_seconds(rounds: int = 5) -> dict[str, float]:
    """Median seconds of pruning ResNet-50 by half, ours and Torch-Pruning's, taking turns."""
    network = load_backbone("resnet50", pretrained=False)
    example = torch.randn(1, 3, SIDE, SIDE)
    seconds = {"ours": [], "Torch-Pruning": []}
    for _ in range(rounds):
        began = time.perf_counter()
        plan_pruning(network, 0.5, "l1", repair="none").apply(network)
        seconds["ours"].append(time.perf_counter() - began)
        theirs = copy.deepcopy(network)
        ignored = [
            conv for name, conv in theirs.named_modules() if name.endswith(("conv3", "downsample.0", "body.conv1"))
        ]
        began = time.perf_counter()
        torch_pruning.pruner.BasePruner(
            theirs,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=ignored,
        ).step()
        seconds["Torch-Pruning"].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def realised_speed_up() -> dict[str, float]:
    """Measured speed-up of ResNet-50 with half of the inner filters against its ratio of MACs."""
    dense = load_backbone("resnet50", pretrained=False)
    small = plan_pruning(dense, 0.5, "l1", scope="uniform", repair="none").apply(dense)
    macs = forward_macs(dense, SIDE) / forward_macs(small, SIDE)
    found = {"MACs ratio": macs}
    for precision in ("fp32", "bf16"):
        before, after = (
            measure_latency(network, SIDE, batch_size=32, precision=precision) for network in (dense, small)
        )
        found[f"{precision} speed-up"] = before / after
        found[f"{precision} realised"] = before / after / macs
    return found


def latency_targets() -> pd.DataFrame:
    """What `target_latency_ms` reaches: ResNet-26 at 64 px, batch 32, three shares of the dense time."""
    dense = load_backbone("resnet26_64")
    full = measure_latency(dense, 64, batch_size=32)
    rows = []
    for share in (0.9, 0.8, 0.7):
        plan = plan_pruning(
            dense, None, "l1", scope="uniform", repair="none", target_latency_ms=share * full, batch_size=32
        )
        again = measure_latency(plan.apply(dense), 64, batch_size=32)
        rows.append({"wanted": share, "measured again": again / full, "ratio": plan.ratio, "met": plan.target.met})
    return pd.DataFrame(rows).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="tiny-imagenet-200.zip, or the folder it unpacks to")
    parser.add_argument("--images", type=int, default=2000, help="validation images for the quality table")
    arguments = parser.parse_args()
    seconds = pruning_seconds()
    print(f"pruning ResNet-50 by half: {seconds}, {seconds['Torch-Pruning'] / seconds['ours']:.1f} times")
    print("realised speed-up:", {name: round(value, 3) for name, value in realised_speed_up().items()})
    print("latency targets, as shares of the dense network's time", latency_targets(), sep="\n")
    print(quality(arguments.archive, arguments.images).map("{:.1%}".format).to_string())


if __name__ == "__main__":
    main()
