"""Say how long the arms that are still to run will take: `python -m lib.estimate PROFILE JOBS`."""

import os
import sys
import time

import torch

from lib.backbones import load_backbone
from lib.compute import Ledger, forward_macs, training_macs
from lib.errors import exit_with_one_sentence
from lib.profiles import arms_of, is_done
from lib.runs import RunSpec, capped, chosen_tasks
from lib.streams import Split, load_stream
from lib.training import Recipe, TaskNetwork, fine_tune

TIMED_IMAGES = 256


def macs_per_second(spec: RunSpec) -> float:
    """How fast one thread trains the arm's dense backbone here: a few steps, timed."""
    torch.set_num_threads(1)
    network = TaskNetwork(load_backbone(spec.backbone, pretrained=False), 10)
    side = spec.image_size
    images = Split(torch.zeros(64, side, side, 3, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    each = training_macs(network, side)
    for count in (64, TIMED_IMAGES):  # the first round compiles kernels
        started = time.monotonic()
        fine_tune(network, images, Ledger(count * each), Recipe(1e-4), spec.precision, seed=0)
    return TIMED_IMAGES * each / (time.monotonic() - started)


def seconds_of(spec: RunSpec, rate: float) -> float:
    """Estimated seconds of one arm on one thread: the budgets, and measuring dev and test after each."""
    network = TaskNetwork(load_backbone(spec.backbone, pretrained=False), 10)
    train, forward = training_macs(network, spec.image_size), forward_macs(network, spec.image_size)
    total = 0
    for task in chosen_tasks(load_stream(spec.stream, spec.missing), spec).tasks:
        data = capped(task.read(spec.image_size), spec)
        total += sum(spec.budgets) * len(data.train) * train
        total += len(spec.budgets) * (len(data.dev) + len(data.test)) * forward
    return total / rate


def main(profile: str, jobs: int) -> None:
    arms = arms_of(profile)
    pending = {name: RunSpec(**fields) for name, fields in arms.items() if not is_done(profile, name)}
    rates = {spec.backbone: 0.0 for spec in pending.values()}
    for spec in pending.values():
        rates[spec.backbone] = rates[spec.backbone] or macs_per_second(spec)
    side_by_side = max(1, min(jobs, os.cpu_count() or 1, len(pending)))
    minutes = sum(seconds_of(spec, rates[spec.backbone]) for spec in pending.values()) / side_by_side / 60
    print(
        f"{profile}: {len(pending)} of {len(arms)} arms to run, {side_by_side} side by side: about "
        f"{max(1, round(minutes))} minutes on this machine."
    )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1], int(sys.argv[2]))
