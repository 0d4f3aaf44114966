"""Say how long the arms that are still to run will take: `python -m tools.estimate PROFILE JOBS`."""

import functools
import os
import sys

from lib.common.errors import exit_with_one_sentence
from lib.learning.engine import Engine
from lib.learning.training import TaskNetwork
from lib.networks.backbone import load_backbone
from lib.networks.macs import forward_macs, training_macs
from lib.pruning import plan_pruning
from lib.runs.profiles import arms_of
from lib.runs.spec import RunSpec
from lib.streams import load_stream
from tools.speed import images_per_second
from tools.stamps import is_done


@functools.cache
def speed_of(backbone: str, ratio: float, granularity: str, image_size: int, engine: Engine) -> tuple[float, int, int]:
    """Of the pruned network: training images per second, MACs to train on one, MACs of its forward pass."""
    dense = load_backbone(backbone, pretrained=False)
    plan = plan_pruning(dense, ratio, "l1", scope="uniform", granularity=granularity, repair="none")
    rate = images_per_second(network := plan.apply(dense), image_size, engine)
    return rate, training_macs(TaskNetwork(network, 10), image_size), forward_macs(network, image_size)


def seconds_of(spec: RunSpec) -> float:
    """Estimated seconds of one arm on one thread: the budgets, and measuring test after each."""
    rate, train, forward = speed_of(spec.backbone, spec.ratio, spec.granularity, spec.image_size, spec.engine)
    name, size = spec.reference.split("@")
    unit = training_macs(TaskNetwork(load_backbone(name, pretrained=False), 10), int(size))
    images = 0
    for task in load_stream(spec.stream, spec.missing).only(spec.tasks).tasks:
        data = spec.data_of(task)
        images += sum(spec.budgets) * unit / train
        images += len(spec.budgets) * len(data.test) * forward / train
    return images / rate


def main(profile: str, jobs: int) -> None:
    arms = arms_of(profile)
    pending = {name: RunSpec(**fields) for name, fields in arms.items() if not is_done(profile, name)}
    side_by_side = max(1, min(jobs, os.cpu_count() or 1, len(pending)))
    minutes = sum(map(seconds_of, pending.values())) / side_by_side / 60
    print(
        f"{profile}: {len(pending)} of {len(arms)} arms to run, {side_by_side} side by side: about "
        f"{max(1, round(minutes))} minutes on this machine."
    )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1], int(sys.argv[2]))
