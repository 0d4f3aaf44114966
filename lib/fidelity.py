"""How near a pruned network stays to the dense one, before any training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.backbones import Backbone
from lib.streams import load_stream
from lib.training import normalised


def mixed_images(network: Backbone, count: int, image_size: int = 64) -> Tensor:
    """Training images of the pocket stream, as many of each task, in turn: normalised (count, 3, H, W)."""
    tasks = load_stream("pocket").tasks
    each = -(-count // len(tasks))
    parts = [task.read(image_size).train.images[:each] for task in tasks]
    mixed = torch.stack([images[place] for place in range(each) for images in parts])[:count]
    return normalised(mixed.permute(0, 3, 1, 2), network)


@torch.inference_mode()
def fidelity(dense: Backbone, pruned: Backbone, images: Tensor) -> float:
    """Mean cosine of the two networks' representations of `images`, centred on the dense mean.

    1 is untouched, 0 is unrelated.
    """
    expected, found = dense(images), pruned(images)
    centre = expected.mean(0)
    return F.cosine_similarity(expected - centre, found - centre).mean().item()
