"""The engine against the loop that most people write, in one run: `python tests/benchmarks/engine.py`.

Throughput: fine_tune from stored uint8 images, its cropping and normalising included, against the bare step
on resident random tensors, and against torchvision's transforms on PIL images through a DataLoader with two
workers in fp32, in a process that lib/learning/engine.py has not touched; all on the same threads, as ratios
of images per second, the median of rounds that alternate.
Growth: time and peak memory of a run over the pocket stream when tasks, images, ratios or budgets double.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lib.common.vision import torchvision
from lib.learning.engine import set_up_cpu
from lib.learning.ledger import Ledger
from lib.learning.training import LARGEST_BATCH, Recipe, TaskNetwork, error_of, fine_tune, predict
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import training_macs
from lib.runs.spec import RunSpec
from lib.streams import Split, load_stream

BACKBONES = ["resnet26_64", "efficientnet_lite0"]
RECIPE = Recipe(1e-4, 1e-2)
ROUNDS = 3
BASE = {  # what growth starts from
    "backbone": "resnet18half_64",
    "ratio": 0.5,
    "criterion": "activation",
    "repair": "mean",
    "budgets": [256],
    "tasks": ["mnist", "letters", "scripts"],
    "train_images": 300,
    "evaluation_images": 100,
}
RUN = """
import json, sys, time
from pathlib import Path
from lib.runs.spec import RunSpec
from lib.runs.run import run_stream
specs, out = json.loads(sys.argv[1]), sys.argv[2]
began = time.monotonic()
for fields in specs:
    run_stream(RunSpec(**fields), out)
# getrusage would count what the parent held when it forked.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([time.monotonic() - began, int(peak.split()[1]) / 1024]))
"""


class Pictures(Dataset):
    """PIL images under the transforms that most people write."""

    def __init__(self, split: Split, network: Backbone):
        transforms = torchvision.transforms
        self.pictures = [Image.fromarray(image.numpy()) for image in split.images]
        self.labels = split.labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(64, padding=4, padding_mode="edge"),
                transforms.ToTensor(),
                transforms.Normalize(network.mean, network.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.pictures[place]), self.labels[place]


def plain_loop(network: TaskNetwork, train: Split, backbone: Backbone, steps: int) -> None:
    """fp32, the default memory layout, a DataLoader with two workers; the same rates and steps."""
    loader = DataLoader(
        Pictures(train, backbone), LARGEST_BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=RECIPE.label_smoothing)
    groups = [{"params": part.parameters()} for part in (network.body, network.head)]
    optimizer = torch.optim.AdamW(groups, weight_decay=RECIPE.weight_decay)
    network.train()
    done = 0
    while done < steps:
        for images, labels in loader:
            for group, rate in zip(optimizer.param_groups, RECIPE.rates(done, steps), strict=True):
                group["lr"] = rate
            optimizer.zero_grad()
            loss = criterion(network(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()  # as progress bars do
            done += 1
            if done == steps:
                break


def bare_step(network: TaskNetwork, precision: str, steps: int) -> None:
    """Forward, backward and update on one resident batch of random tensors."""
    network.to(memory_format=torch.channels_last).train()
    images = torch.randn(LARGEST_BATCH, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (LARGEST_BATCH,))
    optimizer = torch.optim.AdamW(network.parameters(), RECIPE.body_rate, fused=True)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def measured_way(way: str, name: str, images: int) -> tuple[float, float]:
    """Images a second of one of the ways, and the test error that it leaves."""
    backbone = load_backbone(name)
    spec = RunSpec(backbone=name, ratio=0, budgets=[2])
    precision, engine = spec.precision, spec.engine
    task = next(task for task in load_stream("pocket").tasks if task.name == "fashion_mnist")
    data = task.read(64)
    each = training_macs(TaskNetwork(backbone, 10), 64)
    ways = {
        "bare": lambda network, steps: bare_step(network, precision, steps),
        "ours": lambda network, steps: fine_tune(
            network, data.train, Ledger(steps * LARGEST_BATCH * each), RECIPE, engine, seed=0
        ),
        "plain": lambda network, steps: plain_loop(network, data.train, backbone, steps),
    }
    steps = images // LARGEST_BATCH
    ways[way](TaskNetwork(backbone, 10), 2)  # kernels are compiled, workers' code is read
    network = TaskNetwork(backbone, 10)
    began = time.monotonic()
    ways[way](network, steps)
    rate = steps * LARGEST_BATCH / (time.monotonic() - began)
    return rate, error_of(predict(network, data.test, engine), data.test.labels.numpy())


def throughput(name: str, images: int, threads: int) -> dict:
    """Images a second of the three ways, and the test error of the two that learn."""
    rounds, errors = [], {}
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, set_up_cpu, (threads,)) as engine,
        ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as usual,
    ):
        for _ in range(ROUNDS):
            rates = {}
            for way, process in {"bare": engine, "ours": engine, "plain": usual}.items():
                measured = process.submit(measured_way, way, name, images)
                rates[way], errors[way] = measured.result()
            rounds.append(rates)
    table = pd.DataFrame(rounds)
    return {
        "backbone": name,
        "precision": RunSpec(backbone=name, ratio=0, budgets=[2]).precision,
        **table.median().round().astype(int).add_suffix(" images/s").to_dict(),
        "ours/bare": round((table["ours"] / table["bare"]).median(), 2),
        "ours/plain": round((table["ours"] / table["plain"]).median(), 2),
        "error ours": round(errors["ours"], 3),
        "error plain": round(errors["plain"], 3),
    }


def measured_run(specs: list[dict]) -> tuple[float, float]:
    """Seconds and peak megabytes of runs in a process of their own."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", RUN, json.dumps(specs), out]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def growth() -> pd.DataFrame:
    """Time and memory of runs in a process of their own, against the run that is half as large."""
    more = {
        "as it is": [BASE],
        "tasks": [BASE | {"tasks": [*BASE["tasks"], "emoji", "materials", "fashion_mnist"]}],
        "images": [BASE | {"train_images": 600, "evaluation_images": 200}],
        "ratios": [BASE, BASE | {"ratio": 0.25}],
        "budgets": [BASE | {"budgets": [256, 257]}],
    }
    rows = []
    for name, specs in more.items():
        seconds, megabytes = measured_run(specs)
        rows.append({"doubled": name, "seconds": round(seconds, 1), "peak MB": round(megabytes)})
    table = pd.DataFrame(rows)
    return table.assign(
        time_ratio=(table["seconds"] / table["seconds"][0]).round(2),
        memory_ratio=(table["peak MB"] / table["peak MB"][0]).round(2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=2048, help="training images a measurement")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows = [throughput(name, arguments.images, arguments.threads) for name in BACKBONES]
    print(pd.DataFrame(rows).to_string(index=False))
    print()
    print(growth().to_string(index=False))


if __name__ == "__main__":
    main()
