"""How fast a network trains here."""

import time

import torch

from lib.common.errors import UserError
from lib.learning.ledger import Ledger
from lib.learning.training import Recipe, TaskNetwork, fine_tune
from lib.networks.backbone import Backbone
from lib.networks.macs import training_macs
from lib.streams import Split

TIMED_IMAGES = 256


def images_per_second(
    backbone: Backbone, precision: str, image_size: int, device: str = "cpu", rounds: int = 1
) -> float:
    """Training images a second on as many threads as torch has, the best of `rounds`."""
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device={device} is not here: this torch sees no GPU. Use device='cpu'.")
    shape = 64, image_size, image_size, 3
    images = Split(torch.zeros(shape, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    network = TaskNetwork(backbone, 10)
    each = training_macs(network, image_size)
    rates = []
    for count in [64, *[TIMED_IMAGES] * rounds]:  # in the first, kernels are compiled
        began = time.monotonic()
        fine_tune(network, images, Ledger(count * each), Recipe(1e-4), precision, seed=0, device=device)
        rates.append(count / (time.monotonic() - began))
    return max(rates[1:])
