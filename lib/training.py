"""Fine-tune one network on one task within a budget, and measure its error."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from lib.backbones import Backbone
from lib.compute import Ledger, training_macs
from lib.streams.base import Split

CROP_MARGIN = 4  # pixels at 64 px that random crops shift by, scaled with the image


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned: AdamW on all layers and the head.

    The learning rate rises linearly over the first tenth of the steps, then falls linearly to zero
    (Li et al., Budgeted training, 2020). AdamW because its steps do not depend on the scale of the
    gradients, which pruning changes: one rule for the learning rate then serves all networks.
    """

    learning_rate: float
    batch_size: int = 16  # small: at these budgets the number of steps is what is scarce
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    frozen_norms: bool = False  # whether batch norms keep the statistics that a head was solved with


class Diverged(FloatingPointError):
    """The loss became infinite or not a number within `steps` steps."""

    def __init__(self, learning_rate: float, steps: int):
        super().__init__(f"The loss diverged at learning rate {learning_rate:g}.")
        self.steps = steps


class TaskNetwork(nn.Module):
    """A copy of a backbone under a new linear head: normalised images (B, 3, H, W) -> logits (B, C).

    The head starts at zero: the first step then moves it alone, along the pretrained representation.
    """

    def __init__(self, backbone: Backbone, num_outputs: int):
        super().__init__()
        self.mean, self.std = backbone.mean, backbone.std
        self.body = copy.deepcopy(backbone.body)
        self.head = nn.Linear(backbone.feature_dim, num_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def plan_batches(images: int, batch_size: int) -> list[int]:
    """Sizes of the batches that spend `images` images: as few as fit, as equal as can be."""
    if images == 0:
        return []
    steps = -(-images // batch_size)
    small, larger = divmod(images, steps)
    return [small + 1] * larger + [small] * (steps - larger)


def affordable_images(macs: int, each: int) -> int:
    """Training images that `macs` pay for at `each`; 0 below two, which batch norm needs."""
    images = macs // each
    return images if images >= 2 else 0


def fine_tune(
    network: TaskNetwork,
    train: Split,
    ledger: Ledger,
    recipe: Recipe,
    precision: str,
    seed: int,
    device: str = "cpu",
) -> int:
    """Train `network` in place on as many images as the ledger has compute left for.

    Charges the ledger before it trains. Returns the steps taken: 0 where not even two images fit
    (batch norm needs two values a channel). Raises Diverged when the loss is not finite.
    """
    each = training_macs(network, train.images.shape[1])
    images = affordable_images(ledger.left, each)
    if images == 0:
        return 0
    ledger.charge("training", images * each)
    batches = plan_batches(images, recipe.batch_size)

    generator = torch.Generator().manual_seed(seed)
    order = _endless_order(len(train), images, generator)
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    _set_batch_norms(network, len(batches), recipe.frozen_norms)
    warmup = max(1, len(batches) // 10)
    loss_sum = torch.zeros((), device=device)
    start = 0
    for step, size in enumerate(batches):
        rate = min((step + 1) / warmup, (len(batches) - step) / (len(batches) - warmup + 1))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate
        chosen = order[start : start + size]
        start += size
        inputs = random_crops(train.images[chosen], generator)
        loss = _loss(_logits(network, inputs, precision, device), train.labels[chosen].to(device), recipe)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_sum += loss.detach()
    # The loss does not see the last update; the norm of the parameters does, and overflows early.
    if not (loss_sum + nn.utils.get_total_norm(network.parameters())).isfinite():
        raise Diverged(recipe.learning_rate, len(batches))
    return len(batches)


def _set_batch_norms(network: nn.Module, steps: int, frozen: bool) -> None:
    """Let running statistics forget the pretraining images within few steps, or hold them as they are.

    torch's momentum of 0.1 averages over ten steps, more than a small budget has.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = min(0.5, max(0.1, 4 / steps))
            module.train(not frozen)


def random_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to a sixteenth of its side, borders replicated.

    uint8 (B, H, W, 3) -> uint8 (B, 3, H, W). No flips: characters and signs do not survive them.
    """
    count, side = images.shape[:2]
    margin = round(CROP_MARGIN * side / 64)
    shifts = torch.randint(-margin, margin + 1, (2, count, 1), generator=generator)
    rows, columns = (torch.arange(side) + shifts).clamp(0, side - 1)
    which = torch.arange(count)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _endless_order(size: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Indices of `wanted` images: each pass a new random order of all `size`."""
    passes = -(-wanted // size)
    return torch.cat([torch.randperm(size, generator=generator) for _ in range(passes)])[:wanted]


def normalised(images: Tensor, network: Backbone | TaskNetwork) -> Tensor:
    """uint8 images (B, 3, H, W) as the network wants them: float, channels last in memory."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) * 255
        for values in (network.mean, network.std)
    )
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _logits(network: TaskNetwork, images: Tensor, precision: str, device: str) -> Tensor:
    """float32 logits of uint8 images (B, 3, H, W)."""
    inputs = normalised(images.to(device), network)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        return network(inputs).float()


def _loss(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    softened = labels * (1 - recipe.label_smoothing) + recipe.label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, softened)


@torch.inference_mode()
def representation(network: Backbone, split: Split, precision: str, device: str = "cpu") -> Tensor:
    """The representation (N, D) of a split's images, float32."""
    body = network.body.to(device, memory_format=torch.channels_last).eval()
    found = []
    for batch in split.images.split(50):
        inputs = normalised(batch.permute(0, 3, 1, 2).to(device), network)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            found.append(body(inputs).float().cpu())
    return torch.cat(found)


@torch.inference_mode()
def predict(network: TaskNetwork, split: Split, precision: str, device: str = "cpu") -> np.ndarray:
    """Logits (N, C) of a split, float32."""
    network.to(device, memory_format=torch.channels_last).eval()
    batches = (batch.permute(0, 3, 1, 2) for batch in split.images.split(50))
    return torch.cat([_logits(network, batch, precision, device).cpu() for batch in batches]).numpy()


def error_of(logits: np.ndarray, labels: np.ndarray) -> float:
    """1 - accuracy for classes (N,); 1 - mean average precision over the tags present for tags (N, C)."""
    if labels.ndim == 1:
        return float(1 - (logits.argmax(1) == labels).mean())
    present = labels.any(axis=0)
    return float(1 - average_precision_score(labels[:, present], logits[:, present], average="macro"))
