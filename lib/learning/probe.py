"""A head on a frozen representation in closed form: ridge regression, its strength by leaving one out."""

from bisect import bisect_right
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.learning.engine import Engine
from lib.learning.training import TaskNetwork, representation
from lib.networks.backbone import Backbone
from lib.streams.task import Split, are_tags

# Of the ridge, in mean eigenvalues of the Gram matrix.
STRENGTHS = torch.logspace(-4, 2, 13, dtype=torch.float64)


def probe_macs(forward: int, feature_dim: int, num_outputs: int, images: int) -> int:
    """MACs of the representation of `images` images, at `forward` each, and of solving the head on it."""
    wide, small = max(images, feature_dim), min(images, feature_dim)
    # The Gram matrix, its eigenvectors (9 n^3 FLOPs: Golub and Van Loan, Matrix Computations), two
    # projections, and a scoring of every strength.
    solve = wide * small**2 + 9 * small**3 // 2
    solve += (2 * feature_dim + len(STRENGTHS) * images) * small * num_outputs
    return images * forward + solve


def affordable_probe(forward: int, feature_dim: int, num_outputs: int, most: int, macs: int) -> int:
    """The largest number of images, `most` or fewer, whose probe `macs` pay for; 0 below two."""
    cost = partial(probe_macs, forward, feature_dim, num_outputs)
    affordable = bisect_right(range(most + 1), macs, key=cost) - 1
    return affordable if affordable >= 2 else 0


def stratified(split: Split, count: int) -> Split:
    """`count` images, as equally many a class as there are; of a multi-label split the first ones."""
    if split.is_multilabel or count >= len(split):
        return split.first(count)
    ranks = pd.Series(split.labels.numpy()).groupby(split.labels.numpy()).cumcount()
    chosen = torch.tensor(ranks.argsort(kind="stable")[:count].sort_values().to_numpy())
    return Split(split.images[chosen], split.labels[chosen])


def probed(network: Backbone, split: Split, num_outputs: int, engine: Engine) -> TaskNetwork:
    """`network`, its weights as they are, under a head that was solved on all of `split`."""
    result = TaskNetwork(network, num_outputs)
    features = representation(network, split, engine)
    weight, bias = ridge_head(features, split.labels, num_outputs)
    with torch.no_grad():
        result.head.weight.copy_(weight)
        result.head.bias.copy_(bias)
    return result


def ridge_head(features: Tensor, labels: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
    """The head of least squared error on features (N, D), scaled so that its outputs are logits.

    Weight (C, D) and bias (C,), float32.

    `labels` are classes (N,) or tags (N, C). The strength of the ridge has the smallest squared error of
    leaving one image out, which is exact here (Allen, 1974); scale and offset of the logits have the
    smallest cross entropy of the same left-out outputs.
    """
    targets = (labels if are_tags(labels) else F.one_hot(labels, num_outputs)).double()
    x, mean_x, mean_y = features.double(), features.double().mean(0), targets.mean(0)
    x, y = x - mean_x, targets - mean_y
    # Left singular vectors and squared singular values, by way of the smaller Gram matrix.
    if len(x) <= x.shape[1]:
        values, left = torch.linalg.eigh(x @ x.T)
    else:
        values, right = torch.linalg.eigh(x.T @ x)
        left = x @ right / values.clamp(min=1e-12).sqrt()
    sound = values > values.max().clamp(min=1e-30) * 1e-9
    values, left = values[sound], left[:, sound]
    projected = left.T @ y

    def left_out_at(strength: Tensor) -> tuple[float, Tensor, Tensor]:
        """Mean squared error and outputs, each image left out once."""
        shrink = values / (values + strength)
        leverage = 1 / len(x) + (left**2 * shrink).sum(1)
        residual = (y - left @ (shrink[:, None] * projected)) / (1 - leverage).clamp(min=1e-6)[:, None]
        return residual.square().mean().item(), strength, targets - residual

    _, strength, left_out = min(map(left_out_at, STRENGTHS * values.mean()), key=lambda found: found[0])
    weight = (x.T @ (left @ (projected / (values + strength)[:, None]))).T
    scale, offset = _as_logits(left_out, labels)
    bias = scale * (mean_y - weight @ mean_x) + offset
    return (scale * weight).float(), bias.float()


def _as_logits(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and offset of `outputs` (N, C) with the smallest cross entropy."""
    parameters = torch.tensor([5.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = parameters[0] * outputs + parameters[1]
        if are_tags(labels):
            value = F.binary_cross_entropy_with_logits(logits, labels.double())
        else:
            value = F.cross_entropy(logits, labels)
        # A scale that stays finite also where the classes are told apart without error.
        value = value + 1e-4 * parameters[0].square()
        value.backward()
        return value

    optimizer.step(loss)
    # Outputs that are worse than none still may not turn the ranking round.
    scale, offset = parameters.detach()
    return scale.clamp(min=1e-3), offset
