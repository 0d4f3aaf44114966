"""Fine-tune one network on one task within a budget, and measure its error."""

import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.state import Checkpoints
from lib.networks.backbone import Backbone, normalised
from lib.networks.macs import training_macs
from lib.streams.task import Split, are_tags

CROP_MARGIN = 4  # pixels at 64 px that random crops shift by, scaled with the image
WARMUP = 0.1  # share of the steps in which the rates rise
# Eight steps where batches of eight allow: with four images batch norms are too noisy, and more steps do not make up.
LEAST_STEPS, SMALLEST_BATCH, LARGEST_BATCH = 8, 8, 32
LOOKS = 64  # steps between two looks at whether the loss is still finite
AT_ONCE = 50  # images that are looked at together: at 128 px, 100 take half as long again, 200 twice as long


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned: AdamW, with a rate for the body and one for the head.

    Both rise over a tenth of the steps, then fall linearly to zero (Li et al., Budgeted training, 2020). A head
    that starts at zero wants a hundred times the rate of the pretrained body. AdamW because its steps do not
    depend on the scale of the gradients, which pruning changes: one rule for the rates then serves all networks.
    """

    body_rate: float
    head_rate: float
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    frozen_norms: bool = False  # whether batch norms keep the statistics that a head was solved with

    def rates(self, step: int, steps: int) -> tuple[float, float]:
        """Those of body and head at one of so many steps."""
        warm = max(1, round(WARMUP * steps))
        now = min((step + 1) / warm, (steps - step) / (steps - warm + 1))
        return self.body_rate * now, self.head_rate * now


class Diverged(FloatingPointError):
    """The loss became infinite or not a number within `steps` steps."""

    def __init__(self, recipe: Recipe, steps: int):
        super().__init__(f"The loss diverged at rates of {recipe.body_rate:g} and {recipe.head_rate:g}.")
        self.steps = steps


class TaskNetwork(nn.Module):
    """A copy of a backbone under a new linear head: normalised images (B, 3, H, W) -> logits (B, C).

    The head starts at zero: the first step then moves it alone, along the pretrained representation.
    """

    def __init__(self, backbone: Backbone, num_outputs: int):
        super().__init__()
        self.mean, self.std = backbone.mean, backbone.std
        self.body = copy.deepcopy(backbone.body)
        # Without the random weights that it would draw.
        self.head = nn.utils.skip_init(nn.Linear, backbone.feature_dim, num_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def plan_batches(images: int) -> list[int]:
    """Sizes of the batches that spend `images` images: as equal as can be, in few steps, but not too few."""
    size = min(max(images // LEAST_STEPS, SMALLEST_BATCH), LARGEST_BATCH)
    steps = -(-images // size)
    small, larger = divmod(images, max(1, steps))
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
    engine: Engine,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
) -> int:
    """Train `network` in place on as many images as the ledger has compute left for.

    Charges the ledger before it trains, whatever part of it `checkpoints` hold already. Returns the steps
    taken: 0 where not even two images fit (batch norm needs two values a channel). Raises Diverged when the
    loss is not finite.
    """
    each = training_macs(network, train.images.shape[1])
    images = affordable_images(ledger.left, each)
    if images == 0:
        return 0
    ledger.charge("training", images * each)
    batches = plan_batches(images)
    with engine.running():
        training = _Training(network, train, recipe, engine, seed)
        if checkpoints and (state := checkpoints.latest()):
            training.load(state)
        for step in range(training.steps, len(batches)):
            training.step(batches[step], recipe.rates(step, len(batches)))
            if checkpoints and checkpoints.due():
                checkpoints.save(training.state())
        training.check()
    return len(batches)


class _Training:
    """A network in training. All that is random follows from the seed and the step."""

    def __init__(self, network: TaskNetwork, train: Split, recipe: Recipe, engine: Engine, seed: int):
        self.network = network.to(engine.device, memory_format=torch.channels_last).train()
        self.train, self.recipe, self.engine, self.seed = train, recipe, engine, seed
        trained = [[p for p in part.parameters() if p.requires_grad] for part in (network.body, network.head)]
        groups = [{"params": part} for part in trained if part]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        # Norms that are not trained, and those behind a head that was solved, keep their statistics.
        self.norms = [norm for norm in norms if norm.weight.requires_grad and not recipe.frozen_norms]
        for norm in norms:
            norm.train(norm in self.norms)
        self.forward = network
        if engine.precision.endswith("compiled"):
            # On a GPU, steps of so few images are bound by the launching of kernels: CUDA graphs.
            mode = "default" if engine.device == "cpu" else "reduce-overhead"
            self.forward = torch.compile(network, mode=mode)
        self.steps = self.drawn = 0
        self.loss_sum = torch.zeros((), device=engine.device)

    def step(self, size: int, rates: tuple[float, float]) -> None:
        """One step on the next `size` images, at the rates of body and head."""
        torch.manual_seed(_seed_of(self.seed, 0, self.steps))  # also of a network's own dropout
        for norm in self.norms:
            # Forget the pretraining images within few steps: torch's 0.1 averages over ten. It halves now and
            # then, not at every step, for each value is compiled for.
            norm.momentum = _momentum(self.steps)
        for group, rate in zip(self.optimizer.param_groups[::-1], rates[::-1], strict=False):
            group["lr"] = rate
        chosen = _drawn(len(self.train), self.drawn, size, self.seed)
        images, labels = (part[chosen].to(self.engine.device) for part in (self.train.images, self.train.labels))
        inputs = normalised(random_crops(images), self.network)
        with self.engine.autocast():
            logits = self.forward(inputs).float()
        loss = _loss(logits, labels, self.recipe)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += loss.detach()
        self.steps, self.drawn = self.steps + 1, self.drawn + size
        if self.steps % LOOKS == 0:
            self.check()

    def check(self) -> None:
        """Raises Diverged where the loss was not finite, or the weights are not."""
        # The loss does not see the last update; the norm of the parameters does, and overflows early.
        if not (self.loss_sum + nn.utils.get_total_norm(self.network.parameters())).isfinite():
            raise Diverged(self.recipe, self.steps)

    def state(self) -> dict[str, Tensor]:
        """All that the following steps depend on."""
        moments = {
            f"{moment}/{name}": self.optimizer.state[parameter][moment]
            for name, parameter in self.network.named_parameters()
            for moment in _MOMENTS
            if parameter in self.optimizer.state
        }
        place = {"steps": torch.tensor(self.steps), "drawn": torch.tensor(self.drawn)}
        return {**self.network.state_dict(), **moments, **place, "loss_sum": self.loss_sum}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self.steps, self.drawn = int(state["steps"]), int(state["drawn"])
        self.loss_sum.copy_(state["loss_sum"])
        self.network.load_state_dict({name: state[name] for name in self.network.state_dict()})
        for name, parameter in self.network.named_parameters():
            if f"{_MOMENTS[0]}/{name}" in state:
                # The fused update reads moments in the order in which their parameter lies in memory.
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.steps), device=parameter.device),
                    **{key: torch.empty_like(parameter).copy_(state[f"{key}/{name}"]) for key in _MOMENTS},
                }


def _momentum(step: int) -> float:
    """Of batch norms: an average over a half to a quarter of the steps so far, then torch's own."""
    return 0.5 if step < 8 else 0.25 if step < 16 else 0.125 if step < 32 else 0.1


_MOMENTS = "exp_avg", "exp_avg_sq"  # as torch's AdamW calls them


def _seed_of(*place: int) -> int:
    """A seed that follows from numbers, well mixed."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def _drawn(size: int, start: int, count: int, seed: int) -> Tensor:
    """Indices of `count` images from place `start` on: each pass is a new random order of all `size`."""
    first, last = start // size, (start + count - 1) // size
    orders = torch.cat([_order(size, number, seed) for number in range(first, last + 1)])
    return orders[start - first * size :][:count]


@lru_cache(maxsize=2)
def _order(size: int, number: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(_seed_of(seed, 1, number)))


def random_crops(images: Tensor) -> Tensor:
    """Each image shifted by up to a sixteenth of its side, borders replicated; by torch's own generator.

    uint8 (B, H, W, 3) -> uint8 (B, 3, H, W). No flips: characters and signs do not survive them.
    """
    count, side = images.shape[:2]
    margin = round(CROP_MARGIN * side / 64)
    shifts = torch.randint(-margin, margin + 1, (2, count, 1))
    rows, columns = (torch.arange(side) + shifts).clamp(0, side - 1).to(images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _loss(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    if are_tags(labels):
        softened = labels * (1 - recipe.label_smoothing) + recipe.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, softened)
    return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)


def representation(network: Backbone, split: Split, engine: Engine) -> Tensor:
    """The representation (N, D) of a split's images, float32.

    The network's body moves to the engine's device, channels last in memory, and to eval mode.
    """
    return _outputs(network, network.body, split, engine)


def predict(network: TaskNetwork, split: Split, engine: Engine, seen: Tensor | None = None) -> np.ndarray:
    """Logits (N, C) of a split, float32; by the head alone where its representation (N, D) is given as `seen`.

    The network moves to the engine's device, channels last in memory, and to eval mode.
    """
    return _outputs(network, network if seen is None else network.head, split, engine, seen).numpy()


@torch.inference_mode()
def _outputs(
    network: Backbone | TaskNetwork, part: nn.Module, split: Split, engine: Engine, seen: Tensor | None = None
) -> Tensor:
    """What `part` of a network makes of a split's images, or of what was `seen` of them, float32."""
    part.to(engine.device, memory_format=torch.channels_last).eval()
    found = []
    with engine.running():
        for batch in (split.images if seen is None else seen).split(AT_ONCE):
            inputs = batch.to(engine.device)
            if seen is None:
                inputs = normalised(inputs.permute(0, 3, 1, 2), network)
            with engine.autocast():
                found.append(part(inputs).float().cpu())
    return torch.cat(found)


def error_of(logits: np.ndarray, labels: np.ndarray) -> float:
    """1 - accuracy for classes (N,); 1 - mean average precision over the tags present for tags (N, C)."""
    if not are_tags(labels):
        return float(1 - (logits.argmax(1) == labels).mean())
    present = labels.any(axis=0)
    return float(1 - average_precision_score(labels[:, present], logits[:, present], average="macro"))
