"""How fast a network trains here, and how fast it looks at images."""

import time

import torch

from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.training import Recipe, TaskNetwork, fine_tune, predict
from lib.networks.backbone import Backbone
from lib.networks.macs import training_macs
from lib.streams.task import Split

TIMED_IMAGES = 256


def images_per_second(
    backbone: Backbone, image_size: int, engine: Engine, rounds: int = 1, images: int = TIMED_IMAGES
) -> float:
    """Training images per second, the best of `rounds`. Raises UserError for a device that is not here."""
    split = _blank(64, image_size)
    network = TaskNetwork(backbone, 10)
    each = training_macs(network, image_size)
    rates = []
    with engine.running():
        for count in [images // 4, *[images] * rounds]:  # in the first, kernels are compiled
            began = time.monotonic()
            fine_tune(network, split, Ledger(count * each), Recipe(1e-4, 1e-4), engine, seed=0)
            rates.append(count / (time.monotonic() - began))
    return max(rates[1:])


def seen_per_second(backbone: Backbone, image_size: int, engine: Engine, images: int = TIMED_IMAGES) -> float:
    """Images per second of the forward pass alone."""
    network = TaskNetwork(backbone, 10)
    with engine.running():
        for count in (images // 4, images):
            began = time.monotonic()
            predict(network, _blank(count, image_size), engine)
    return images / (time.monotonic() - began)


def _blank(count: int, image_size: int) -> Split:
    shape = count, image_size, image_size, 3
    return Split(torch.zeros(shape, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))
