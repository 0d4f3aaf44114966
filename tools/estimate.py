"""Say how long the arms that are still to run will take: `python -m tools.estimate PROFILE JOBS`."""

import functools
import os
import sys

from lib.common.errors import exit_with_one_sentence
from lib.learning.engine import Engine
from lib.learning.learners import LEARNERS
from lib.learning.training import TaskNetwork
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import forward_macs, training_macs
from lib.pruning import plan_pruning
from lib.runs.profiles import arms_of
from lib.runs.spec import RunSpec
from lib.streams import load_stream
from tools.speed import images_per_second, seen_per_second
from tools.stamps import is_done

STARTING = 10  # seconds until an arm's notebook has started and imported what it needs
LOOKS = 4  # passes over the calibration images, for the criterion and the repair
TIMED = 64  # images


@functools.cache
def network_of(backbone: str, ratio: float, granularity: str) -> Backbone:
    """A network of the arm's shape; which filters go does not matter to its speed."""
    dense = load_backbone(backbone, pretrained=False)
    return plan_pruning(dense, ratio, "l1", scope="uniform", granularity=granularity, repair="none").apply(dense)


@functools.cache
def trained(network: Backbone, size: int, engine: Engine) -> float:
    """Images per second that `network` trains on here."""
    return images_per_second(network, size, engine, images=TIMED)


@functools.cache
def seen(network: Backbone, size: int, engine: Engine) -> float:
    """Images per second that `network` looks at here."""
    return seen_per_second(network, size, engine, images=TIMED)


def seconds_of(spec: RunSpec, counted_at: int) -> float:
    """Estimated seconds of one arm on one thread: starting, pruning, the budgets, and measuring test after each.

    Images are counted at a size of `counted_at` pixels, at which all arms have as many: each would be read for it.
    """
    counted = spec.model_copy(update={"image_size": counted_at})
    unit = spec.unit_macs(10)
    network = network_of(spec.backbone, spec.ratio, spec.granularity)
    how = network, spec.image_size, spec.engine
    forward, both = forward_macs(network, spec.image_size), training_macs(TaskNetwork(network, 10), spec.image_size)
    fine_tunes = LEARNERS[spec.learner].fine_tunes
    passes = training = 0  # images that are looked at, and trained on
    if spec.ratio > 0:
        passes += LOOKS * spec.calibration_images
    for task in load_stream(spec.stream, spec.missing).only(spec.tasks).tasks:
        data = counted.data_of(task)
        if spec.learner != "pixels":  # for which no network is needed
            # What is not trained makes the same of the test images at each budget.
            passes += (len(spec.budgets) if fine_tunes else 1) * len(data.test)
        if fine_tunes:
            training += sum(spec.budgets) * unit // both
        elif spec.learner == "probe":
            passes += sum(min(budget * unit // forward, len(data.train)) for budget in spec.budgets)
    return STARTING + (passes and passes / seen(*how)) + (training and training / trained(*how))


def main(profile: str, jobs: int) -> None:
    arms = arms_of(profile)
    pending = {name: RunSpec(**fields) for name, fields in arms.items() if not is_done(profile, name)}
    side_by_side = max(1, min(jobs, os.cpu_count() or 1, len(pending)))
    specs = [*pending.values()]
    minutes = sum(seconds_of(spec, specs[0].image_size) for spec in specs) / side_by_side / 60
    print(
        f"{profile}: {len(pending)} of {len(arms)} arms to run, {side_by_side} side by side: about "
        f"{max(1, round(minutes))} minutes on this machine."
    )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1], int(sys.argv[2]))
