"""How far images are from what a network was pretrained on, by the statistics that its batch norms kept."""

import torch
from torch import Tensor, nn

from lib.backbones import Backbone
from lib.errors import UserError
from lib.streams import Split
from lib.training import representation


def distance_to_pretraining(network: Backbone, split: Split) -> float:
    """Nats by which a split's activations differ from the pretraining images', a channel, on average.

    What enters each batch norm is compared with its running statistics: the Kullback-Leibler divergence of
    two normal distributions a channel, averaged over channels and then over layers. No pretraining image is
    needed. Only networks with batch norms have it; raises UserError for another.
    """
    norms = [module for module in network.body.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise UserError(f"{network.name} has no batch norms: expected a network that has, such as a ResNet.")
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        counts = torch.full((len(values),), values.shape[1], dtype=torch.float64)
        sums[norm] += torch.stack([counts, values.sum(1), values.square().sum(1)])

    handles = [norm.register_forward_pre_hook(add) for norm in norms]
    try:
        representation(network, split, "fp32")
    finally:
        for handle in handles:
            handle.remove()
    return sum(_divergence(norm, *sums[norm]).mean().item() for norm in norms) / len(norms)


def _divergence(norm: nn.BatchNorm2d, count: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """KL(N(here) || N(running)) of every channel."""
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0) + norm.eps
    kept = norm.running_var.double() + norm.eps
    ratio = variance / kept
    return (ratio - 1 - ratio.log() + (mean - norm.running_mean.double()).square() / kept) / 2
