"""How near a pruned network stays to the dense one, before any training."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.benchmark import Timer

from lib.common.errors import UserError, choose
from lib.networks.backbone import Backbone, normalised
from lib.networks.copies import plain_copy


def fidelity(dense: nn.Module, pruned: nn.Module, images: Tensor) -> float:
    """Mean cosine of the two networks' representations of normalised `images`, centred on the dense mean.

    1 is untouched, 0 is unrelated. Raises UserError for images that the dense network does not tell apart.
    """
    dense, pruned = (plain_copy(network).eval() for network in (dense, pruned))
    with torch.inference_mode():
        expected, found = dense(images), pruned(images)
    directions = expected - expected.mean(0)
    if not directions.norm() > 1e-5 * expected.norm():  # also where either is NaN
        raise UserError(
            f"Fidelity cannot compare {len(images)} image(s) whose representations are alike or not finite: "
            "expected two or more that differ."
        )
    return F.cosine_similarity(directions, found - expected.mean(0)).mean().item()


def distance_to_pretraining(network: Backbone, images: Tensor) -> float:
    """Nats per channel by which activations of uint8 images (N, H, W, 3) differ from pretraining images'.

    What enters each batch norm is compared with its running statistics: the Kullback-Leibler divergence of
    two normal distributions a channel, averaged over channels and then over layers. No pretraining image is
    needed. Only networks with batch norms have it; raises UserError for another.
    """
    looked_at: Any = plain_copy(network).eval()
    norms = [module for module in looked_at.body.modules() if isinstance(module, _BatchNorm)]
    if not norms or any(norm.running_var is None for norm in norms):
        raise UserError(
            f"{network.name} has no batch norms with running statistics: expected a network that has, such as a ResNet."
        )
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(norm: _BatchNorm, inputs: tuple[Tensor]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        counts = torch.full((len(values),), values.shape[1], dtype=torch.float64)
        sums[norm] += torch.stack([counts, values.sum(1), values.square().sum(1)])

    for norm in norms:
        norm.register_forward_pre_hook(add)
    with torch.inference_mode():
        for batch in images.split(50):
            looked_at(normalised(batch.permute(0, 3, 1, 2), looked_at))
    return sum(_divergence(norm, *sums[norm]).mean().item() for norm in norms) / len(norms)


def _divergence(norm: _BatchNorm, count: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """KL(N(here) || N(running)) of every channel."""
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0) + norm.eps
    kept = norm.running_var.double() + norm.eps
    ratio = variance / kept
    return (ratio - 1 - ratio.log() + (mean - norm.running_mean.double()).square() / kept) / 2


def measure_latency(
    network: nn.Module, image_size: int, device: str = "cpu", batch_size: int = 1, precision: str = "fp32"
) -> float:
    """Milliseconds of one forward pass of `batch_size` images, the median of several.

    Runs on as many threads as torch has; `precision` is "fp32" or "bf16" (autocast). Leaves `network`
    where it was.
    """
    choose("precision", precision, ("fp32", "bf16"))
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device} is not here: this torch sees no GPU. Use device='cpu'.")
    runner = plain_copy(network).to(device).to(memory_format=torch.channels_last).eval()
    images = torch.zeros(batch_size, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    timer = Timer("runner(images)", globals=locals(), num_threads=torch.get_num_threads())
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
        timer.timeit(2)  # the first passes compile kernels
        return timer.adaptive_autorange(max_run_time=2).median * 1000
