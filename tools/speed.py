"""How fast a network trains here."""

import time

import torch

from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.training import Recipe, TaskNetwork, fine_tune
from lib.networks.backbone import Backbone
from lib.networks.macs import training_macs
from lib.streams.task import Split

TIMED_IMAGES = 256


def images_per_second(backbone: Backbone, image_size: int, engine: Engine, rounds: int = 1) -> float:
    """Training images per second, the best of `rounds`. Raises UserError for a device that is not here."""
    shape = 64, image_size, image_size, 3
    images = Split(torch.zeros(shape, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    network = TaskNetwork(backbone, 10)
    each = training_macs(network, image_size)
    rates = []
    with engine.running():
        for count in [64, *[TIMED_IMAGES] * rounds]:  # in the first, kernels are compiled
            began = time.monotonic()
            fine_tune(network, images, Ledger(count * each), Recipe(1e-4, 1e-4), engine, seed=0)
            rates.append(count / (time.monotonic() - began))
    return max(rates[1:])
