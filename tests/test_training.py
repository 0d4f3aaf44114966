"""Fine-tuning against a plainly written loop; errors by hand; what a budget buys."""

import copy
import shutil

import numpy as np
import pytest
import torch
from helpers import assert_same_state, random_backbone, state_of
from torch import nn

from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.training import Recipe, TaskNetwork, error_of, fine_tune, plan_batches, predict, random_crops
from lib.networks.backbone import Backbone
from lib.networks.macs import training_macs
from lib.streams import Split


@pytest.fixture(scope="module")
def small_backbone() -> Backbone:
    """A small convolutional backbone. Smooth activations: a kink would amplify rounding."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Backbone("small", body, nn.Linear(16, 2), 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()


def tagged(split: Split) -> Split:
    """Digits as tags: odd, above four, round."""
    digits = split.labels
    tags = torch.stack([digits % 2 == 1, digits > 4, torch.isin(digits, torch.tensor([0, 6, 8, 9]))], 1)
    return Split(split.images, tags.float())


@pytest.mark.parametrize("images", [0, 1, 2, 3, 5, 16, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 16384])
def test_batches_spend_all_images_in_equal_parts_that_suit_the_budget(images):
    batches = plan_batches(images)
    assert sum(batches) == images
    assert not batches or (max(batches) <= 32 and max(batches) - min(batches) <= 1)
    assert images < 2 or min(batches) >= 2, "batch norm needs two values a channel"
    assert len(batches) >= 8 or images < 64, "few images are not few steps"
    assert len(batches) >= 2 or images < 16, "nor one alone"
    assert min(batches, default=8) >= 8 or images % 8, "batches of less than eight are noise"
    assert max(batches, default=0) >= 16 or images <= 16 * 8, "nor are many images many small steps"


def test_rates_rise_over_a_tenth_of_the_steps_and_fall_to_zero_in_equal_parts():
    recipe = Recipe(1e-4, 1e-2)
    body, head = np.array([recipe.rates(step, 40) for step in range(40)]).T
    np.testing.assert_allclose(head, 100 * body)
    np.testing.assert_allclose(body[:4], 1e-4 * np.array([0.25, 0.5, 0.75, 1]))
    np.testing.assert_allclose(np.diff(body[3:]), -body[-1])
    assert recipe.rates(0, 1) == (1e-4, 1e-2)


@pytest.mark.parametrize(("side", "margin"), [(64, 4), (32, 2), (128, 8)])
def test_random_crops_are_crops_of_the_padded_image(digits, side, margin):
    image = digits.train.images[3].numpy().repeat(2, axis=0).repeat(2, axis=1)[:side, :side]
    image = (image // 2 + np.random.default_rng(0).integers(0, 99, image.shape)).astype(np.uint8)
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    possible = {
        np.ascontiguousarray(padded[y : y + side, x : x + side].transpose(2, 0, 1)).tobytes(): (y, x)
        for y in range(2 * margin + 1)
        for x in range(2 * margin + 1)
    }
    copies = torch.from_numpy(image).expand(150, side, side, 3)
    torch.manual_seed(0)
    crops = random_crops(copies)
    assert crops.shape == (150, 3, side, side) and crops.dtype == torch.uint8
    shifts = [possible[crop.numpy().tobytes()] for crop in crops]  # KeyError: not a crop
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(2 * margin + 1))
    assert abs(np.corrcoef(np.array(shifts).T)[0, 1]) < 0.25


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    if labels.ndim == 1:
        classes = logits.shape[1]
        targets = torch.full_like(logits, smoothing / classes)
        targets[torch.arange(len(labels)), labels] += 1 - smoothing
        return -(targets * logits.log_softmax(1)).sum(1).mean()
    targets = torch.where(labels == 1, 1 - smoothing / 2, smoothing / 2)
    return -(targets * logits.sigmoid().log() + (1 - targets) * (1 - logits.sigmoid()).log()).mean()


def plain_fine_tune(backbone, train: Split, outputs: int, images: int, recipe: Recipe, seed: int):
    """The same training as simply as can be said: one image at a time is cropped and normalised."""

    def seeded(*place: int) -> torch.Generator:
        return torch.Generator().manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    body = copy.deepcopy(backbone.body).train()
    head = nn.Linear(backbone.feature_dim, outputs)
    head.weight.data.zero_(), head.bias.data.zero_()
    order, passes = [], 0
    while len(order) < images:
        order += torch.randperm(len(train.images), generator=seeded(seed, 1, passes)).tolist()
        passes += 1
    order = order[:images]
    parts = [{"params": list(body.parameters())}, {"params": list(head.parameters())}]
    optimizer = torch.optim.AdamW(parts, lr=1.0, weight_decay=recipe.weight_decay, foreach=False)
    size = min(max(images // 8, 4), 32)
    batches = [part.tolist() for part in np.array_split(order, -(-images // size))]
    warm = max(1, round(len(batches) / 10))
    for step, chosen in enumerate(batches):
        size = len(chosen)
        shifts = torch.randint(-4, 5, (2, size, 1), generator=seeded(seed, 0, step)).squeeze(2).numpy()
        inputs = np.empty((size, 3, 64, 64))
        for i, index in enumerate(chosen):
            padded = np.pad(train.images[index].numpy(), ((4, 4), (4, 4), (0, 0)), mode="edge")
            y, x = 4 + shifts[:, i]
            crop = padded[y : y + 64, x : x + 64] / 255
            inputs[i] = ((crop - np.array(backbone.mean)) / np.array(backbone.std)).transpose(2, 0, 1)
        now = min((step + 1) / warm, (len(batches) - step) / (len(batches) - warm + 1))
        optimizer.param_groups[0]["lr"] = recipe.body_rate * now
        optimizer.param_groups[1]["lr"] = recipe.head_rate * now
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):  # an average over a half to a quarter of the steps so far
                module.momentum = np.select([step < 8, step < 16, step < 32], [0.5, 0.25, 0.125], 0.1).item()
        optimizer.zero_grad()
        logits = head(body(torch.tensor(inputs, dtype=torch.float32)))
        plain_loss(logits, train.labels[chosen], recipe.label_smoothing).backward()
        optimizer.step()
    return nn.ModuleDict({"body": body, "head": head}).eval()


@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_fine_tuning_equals_a_plain_loop(small_backbone, digits, kind):
    train, outputs = (digits.train, 10) if kind == "classes" else (tagged(digits.train), 3)
    recipe = Recipe(body_rate=0.003, head_rate=0.01)
    network = TaskNetwork(small_backbone, outputs)
    images = 2 * len(train) + 71  # more than two passes, and a cut batch
    steps = fine_tune(network, train, Ledger(images * training_macs(network, 64)), recipe, Engine(), seed=5)
    expected = plain_fine_tune(small_backbone, train, outputs, images, recipe, seed=5)
    assert steps == len(plan_batches(images)) > 8
    start = TaskNetwork(small_backbone, outputs).state_dict()
    for name, weight in network.eval().state_dict().items():
        moved = (expected.state_dict()[name] - start[name]).float().norm()
        assert moved > 0
        assert (weight - expected.state_dict()[name]).float().norm() <= 1e-3 * moved, name


@torch.no_grad()
def test_predictions_are_the_logits_of_normalised_images(lite0, digits):
    network = TaskNetwork(lite0, 10)
    nn.init.normal_(network.head.weight)
    images = digits.test.images[:7].permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (lite0.mean, lite0.std))
    reference = nn.Sequential(copy.deepcopy(lite0.body), copy.deepcopy(network.head)).double()
    expected = reference((images - mean) / std).numpy()
    found = predict(network, digits.test, Engine())
    assert found.shape == (len(digits.test), 10) and found.dtype == np.float32
    np.testing.assert_allclose(found[:7], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("images", [50, 64.99, 77.5, 100.9])
def test_budget_is_spent_to_98_percent_and_never_overspent(small_backbone, digits, images):
    network = TaskNetwork(small_backbone, 10)
    ledger = Ledger(int(images * training_macs(network, 64)))
    fine_tune(network, digits.train, ledger, Recipe(0.01, 0.01), Engine(), seed=0)
    assert 0.98 * ledger.limit <= ledger.total <= ledger.limit


def test_what_is_charged_is_what_was_trained(small_backbone, digits):
    """Images that really go through the network, counted at its first layer, times the cost of one."""
    network = TaskNetwork(small_backbone, 10)
    seen = []

    def see(_, inputs: tuple, __) -> None:
        if inputs[0].device.type == "cpu":  # counting MACs runs on meta tensors
            seen.append(len(inputs[0]))

    network.body[0].register_forward_hook(see)
    each = training_macs(network, 64)
    ledger = Ledger(int(70.5 * each))
    steps = fine_tune(network, digits.train, ledger, Recipe(0.01, 0.01), Engine(), seed=0)
    assert (steps, sum(seen), ledger.spent) == (len(seen), 70, {"training": 70 * each})


@pytest.mark.parametrize("images", [0, 0.5, 1.99])
def test_budget_too_small_for_two_images_trains_nothing(small_backbone, digits, images):
    network = TaskNetwork(small_backbone, 10)
    before = state_of(network)
    ledger = Ledger(int(images * training_macs(network, 64)))
    assert fine_tune(network, digits.train, ledger, Recipe(0.01, 0.01), Engine(), seed=0) == 0
    assert ledger.total == 0
    assert_same_state(network, before)


@pytest.mark.parametrize("images", [2, 3, 5, 33, 65])
def test_no_batch_holds_a_single_image(digits, images):
    """Batch norm refuses one value a channel, which is what one image has where a map is 1x1."""
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten())
    network = TaskNetwork(Backbone("flat", body, nn.Linear(8, 2), 64, (0.5,) * 3, (0.5,) * 3), 10)
    ledger = Ledger(images * training_macs(network, 64))
    assert fine_tune(network, digits.train, ledger, Recipe(0.01, 0.01), Engine(), seed=0) > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_training_is_the_same_training(small_backbone, digits, precision):
    """As near as the other order of its sums allows."""

    def train(precision: str) -> dict[str, torch.Tensor]:
        network = TaskNetwork(small_backbone, 10)
        ledger = Ledger(300 * training_macs(network, 64))
        fine_tune(network, digits.train, ledger, Recipe(0.003, 0.003), Engine(precision), seed=0)
        return state_of(network)

    start, eager, compiled = (
        state_of(TaskNetwork(small_backbone, 10)),
        train(precision),
        train(f"{precision} compiled"),
    )
    for name, weight in eager.items():
        moved = (weight - start[name]).float().norm()
        assert moved > 0
        assert (compiled[name] - weight).float().norm() <= (1e-2 if precision == "fp32" else 0.2) * moved, name


def test_diverging_loss_is_an_error(digits):
    network = TaskNetwork(random_backbone("resnet18half_64"), 10)
    ledger = Ledger(120 * training_macs(network, 64))
    with pytest.raises(FloatingPointError, match=r"rates of 1e\+30 and 1e\+30"):
        fine_tune(network, digits.train, ledger, Recipe(1e30, 1e30), Engine(), seed=0)


@pytest.mark.parametrize("images", [12, 40])
def test_divergence_in_the_last_step_is_an_error_too(digits, images):
    """The last step's loss is that before its update: only the weights show what the update did."""
    network = TaskNetwork(random_backbone("resnet18half_64"), 10)
    ledger = Ledger(images * training_macs(network, 64))
    with pytest.raises(FloatingPointError, match="rates of"):
        fine_tune(network, digits.train, ledger, Recipe(1e37, 1e37), Engine(), seed=0)


def test_training_learns(lite0, digits):
    """Ten classes: chance is an error of 0.9."""
    network = TaskNetwork(lite0, 10)
    ledger = Ledger(4 * len(digits.train) * training_macs(network, 64))
    fine_tune(network, digits.train, ledger, Recipe(0.003, 0.003), Engine(), seed=0)
    assert error_of(predict(network, digits.train, Engine()), digits.train.labels.numpy()) < 0.7


def test_seed_decides_the_result(small_backbone, digits):
    def train(seed: int) -> dict:
        network = TaskNetwork(small_backbone, 10)
        fine_tune(
            network, digits.train, Ledger(80 * training_macs(network, 64)), Recipe(0.05, 0.05), Engine(), seed=seed
        )
        return state_of(network)

    first, again, other = train(0), train(0), train(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_task_network_leaves_the_backbone_untouched(small_backbone, digits):
    before = state_of(small_backbone)
    network = TaskNetwork(small_backbone, 10)
    fine_tune(network, digits.train, Ledger(100 * training_macs(network, 64)), Recipe(0.1, 0.1), Engine(), seed=0)
    assert_same_state(small_backbone, before)
    assert not small_backbone.training and all(p.grad is None for p in small_backbone.parameters())
    assert not torch.equal(network.state_dict()["body.0.weight"], before["body.0.weight"])


def test_error_of_classes_by_hand():
    logits = np.array([[2.0, 1, 0], [0, 3, 1], [0, 0, 9], [5, 4, 3]], np.float32)
    assert error_of(logits, np.array([0, 1, 1, 2])) == 0.5
    assert error_of(logits, np.array([0, 1, 2, 0])) == 0


def test_error_of_tags_is_one_minus_the_mean_average_precision_of_tags_present():
    """First tag: hits at ranks 1 and 3, so (1 + 2/3) / 2. Second: at rank 2, so 1/2. Third: none present."""
    logits = np.array([[9.0, 3, 5], [8, 9, 1], [7, 2, 1], [6, 1, 0]], np.float32)
    tags = np.array([[1.0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]], np.float32)
    assert error_of(logits, tags) == pytest.approx(1 - ((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_error_of_a_constant_answer_is_the_share_that_lacks_the_tag():
    tags = np.array([[1.0], [0], [0], [0]], np.float32)
    assert error_of(np.zeros((4, 1), np.float32), tags) == pytest.approx(0.75)
