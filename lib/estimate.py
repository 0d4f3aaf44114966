"""Say how long the arms that are still to run will take: `python -m lib.estimate PROFILE JOBS`."""

import os
import sys

import torch

from lib.backbones import load_backbone
from lib.compute import forward_macs, training_macs
from lib.errors import exit_with_one_sentence
from lib.profiles import arms_of, is_done
from lib.runs import RunSpec, capped, chosen_tasks, trained_epochs
from lib.speed import images_per_second
from lib.streams import load_stream
from lib.training import TaskNetwork


def seconds_of(spec: RunSpec, rate: float) -> float:
    """Estimated seconds of one arm on one thread: the budgets, and measuring dev and test after each."""
    network = TaskNetwork(load_backbone(spec.backbone, pretrained=False), 10)
    train, forward = training_macs(network, spec.image_size), forward_macs(network, spec.image_size)
    total = 0
    for task in chosen_tasks(load_stream(spec.stream, spec.missing), spec).tasks:
        data = capped(task.read(spec.image_size), spec)
        total += sum(trained_epochs(spec)) * len(data.train) * train
        total += len(spec.budgets) * (len(data.dev) + len(data.test)) * forward
    return total / rate


def main(profile: str, jobs: int) -> None:
    arms = arms_of(profile)
    pending = {name: RunSpec(**fields) for name, fields in arms.items() if not is_done(profile, name)}
    torch.set_num_threads(1)
    rates = {}  # MACs a second
    for spec in pending.values():
        if spec.backbone not in rates:
            backbone = load_backbone(spec.backbone, pretrained=False)
            rates[spec.backbone] = images_per_second(backbone, spec.precision, spec.image_size)
            rates[spec.backbone] *= training_macs(TaskNetwork(backbone, 10), spec.image_size)
    side_by_side = max(1, min(jobs, os.cpu_count() or 1, len(pending)))
    minutes = sum(seconds_of(spec, rates[spec.backbone]) for spec in pending.values()) / side_by_side / 60
    print(
        f"{profile}: {len(pending)} of {len(arms)} arms to run, {side_by_side} side by side: about "
        f"{max(1, round(minutes))} minutes on this machine."
    )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1], int(sys.argv[2]))
