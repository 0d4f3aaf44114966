"""Pruning against the dense network with the same channels masked, and against numpy."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import BACKBONES, assert_same_state, macs_by_layer, random_backbone, state_of
from torch import nn

from lib.backbones import Backbone, list_backbones
from lib.errors import UserError
from lib.pruning import load_pruned, plan_pruning
from lib.pruning.repair import REPAIRS
from lib.pruning.scores import CRITERIA, gaussian_moments
from lib.vision import timm, torchvision

RATIO, ROUND_TO = 0.5, 8
# One network of every kind of block; with these, every criterion.
ONE_OF_A_KIND = ["efficientnet_lite0", "resnet18", "resnet50", "resnet26_64", "resnet18half_64"]


@pytest.fixture(scope="module", params=BACKBONES)
def pruned(request):
    """A backbone with random weights, its plan and the smaller network, all in double precision."""
    dense = random_backbone(request.param).double()
    before = state_of(dense)
    plan = plan_pruning(dense, RATIO, criterion="l1", round_to=ROUND_TO)
    return SimpleNamespace(dense=dense, before=before, plan=plan, small=plan.apply(dense))


@pytest.fixture(scope="module")
def dense(request) -> Backbone:
    return random_backbone(request.param)


@pytest.fixture(scope="module")
def lite0_plan(lite0):
    return plan_pruning(lite0, 0.25, criterion="l2", round_to=8)


def images(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def site_layers(dense: nn.Module, small: nn.Module, producer: str) -> list[str]:
    """Convolutions from a site's producer to its consumer: the next whose input got narrower."""
    names = list(convolutions(dense))
    layers = names[names.index(producer) :]
    for position, name in enumerate(layers[1:], 1):
        before, after = dense.get_submodule(name), small.get_submodule(name)
        if before.groups == 1 and after.weight.shape[1] != before.weight.shape[1]:
            return layers[: position + 1]
    raise AssertionError(f"no consumer of {producer} got narrower")


@torch.no_grad()
def masked_output(dense: nn.Module, small: nn.Module, kept: dict, inputs: torch.Tensor) -> torch.Tensor:
    """The dense network's output, its removed channels set to zero where they enter the consumer."""
    masked = copy.deepcopy(dense)
    for producer, indices in kept.items():
        width = dense.get_submodule(producer).out_channels
        if len(indices) == width:
            continue
        mask = torch.zeros(width, 1, 1, dtype=inputs.dtype)
        mask[indices] = 1
        consumer = masked.get_submodule(site_layers(dense, small, producer)[-1])
        consumer.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))
    return masked(inputs)


@torch.no_grad()
def assert_equals_masked(dense, plan, small, inputs, tolerance: float) -> None:
    expected, found = masked_output(dense, small, plan.kept, inputs), small(inputs)
    scale = expected.abs().max()
    assert (dense(inputs) - expected).abs().max() > 0.01 * scale  # the mask does something
    assert (found - expected).abs().max() <= tolerance * scale


def test_pruned_network_equals_masked_dense(pruned):
    assert_equals_masked(pruned.dense, pruned.plan, pruned.small, images(), 1e-11)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dense", ONE_OF_A_KIND, indirect=True)
def test_pruned_network_equals_masked_dense_in_float32(dense, criterion):
    plan = plan_pruning(dense, 0.4, criterion=criterion, seed=3)
    assert_equals_masked(dense, plan, plan.apply(dense), images(torch.float32), 1e-5)


def test_blocks_and_representation_keep_their_shapes(pruned):
    shapes = {}
    for label, network in (("dense", pruned.dense), ("small", pruned.small)):
        network = copy.deepcopy(network).to("meta")
        for name in {name.rpartition(".")[0] for name in pruned.plan.kept}:
            network.get_submodule(name).register_forward_hook(
                lambda *call, name=name, label=label: shapes.setdefault(label, {}).update(
                    {name: call[2].shape}
                )
            )
        shapes.setdefault(label, {})["representation"] = network(images().to("meta")).shape
    assert shapes["small"] == shapes["dense"]
    assert shapes["small"]["representation"] == (2, pruned.dense.feature_dim)


def test_pruned_network_is_physically_smaller_and_keeps_its_attributes(pruned):
    dense, small = pruned.dense, pruned.small
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    assert sum(macs_by_layer(small, 64).values()) < 0.9 * sum(macs_by_layer(dense, 64).values())
    for name in ("name", "feature_dim", "image_size", "mean", "std"):
        assert getattr(small, name) == getattr(dense, name)
    assert torch.equal(small.classifier.weight, dense.classifier.weight)


def test_dense_network_is_untouched(pruned):
    assert_same_state(pruned.dense, pruned.before)
    pruned_tensors = {tensor.data_ptr() for tensor in pruned.small.state_dict().values()}
    assert not pruned_tensors & {tensor.data_ptr() for tensor in pruned.dense.state_dict().values()}


def test_table_agrees_with_widths_and_macs_of_the_networks(pruned):
    table = pruned.plan.table().set_index("site")
    assert set(table.index) == set(pruned.plan.kept)
    size = pruned.dense.image_size
    macs_before, macs_after = macs_by_layer(pruned.dense, size), macs_by_layer(pruned.small, size)
    for producer, row in table.iterrows():
        layers = site_layers(pruned.dense, pruned.small, producer)
        assert row["before"] == pruned.dense.get_submodule(producer).weight.shape[0]
        assert row["after"] == pruned.small.get_submodule(producer).weight.shape[0]
        assert row["after"] == pruned.small.get_submodule(layers[-1]).weight.shape[1]
        assert row["macs_before"] == sum(macs_before[name] for name in layers)
        assert row["macs_after"] == sum(macs_after[name] for name in layers)


def test_every_block_with_an_inner_width_is_a_site(pruned):
    """Layers whose width changed are those of the sites: nothing else, and half of the filters there."""
    removed = kept = 0
    for name, conv in convolutions(pruned.dense).items():
        narrower = conv.out_channels != pruned.small.get_submodule(name).out_channels
        assert narrower <= (name in pruned.plan.kept or conv.groups == conv.in_channels)
        if name in pruned.plan.kept:
            kept += pruned.small.get_submodule(name).out_channels
            removed += conv.out_channels - pruned.small.get_submodule(name).out_channels
    assert removed / (removed + kept) == pytest.approx(RATIO, abs=0.02)


@pytest.mark.parametrize(("ratio", "round_to"), [(0.1, 8), (0.3, 1), (0.5, 16), (0.97, 8)])
def test_kept_counts_are_rounded_and_near_the_ratio(lite0, ratio, round_to):
    plan = plan_pruning(lite0, ratio, round_to=round_to)
    for name, indices in plan.kept.items():
        width = lite0.get_submodule(name).out_channels
        assert len(indices) % round_to == 0 or len(indices) == width
        assert indices == sorted(set(indices)) and indices[0] >= 0 and indices[-1] < width
        target = (1 - ratio) * width
        assert abs(len(indices) - target) <= round_to / 2 or len(indices) == round_to > target


@torch.no_grad()
@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_ratio_0_is_the_identity(lite0, criterion, repair):
    plan = plan_pruning(lite0, 0, criterion=criterion, repair=repair)
    assert_same_state(plan.apply(lite0), state_of(lite0))
    assert (plan.table()["before"] == plan.table()["after"]).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_plans_are_deterministic_and_only_random_depends_on_the_seed(lite0, criterion):
    first, again, other = (plan_pruning(lite0, 0.5, criterion=criterion, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert (first.kept == other.kept) == (criterion != "random")


def test_random_draws_another_order_at_every_site(lite0):
    kept = plan_pruning(lite0, 0.5, criterion="random").kept
    same_width = [indices for name, indices in kept.items() if lite0.get_submodule(name).out_channels == 672]
    assert len(same_width) == 3 and len({tuple(indices) for indices in same_width}) == 3


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_magnitude_criteria_keep_the_largest_filters(lite0, criterion, power):
    for name, indices in plan_pruning(lite0, 0.5, criterion=criterion).kept.items():
        weight = lite0.get_submodule(name).weight.detach().numpy().astype(np.float64)
        norms = (np.abs(weight) ** power).sum(axis=(1, 2, 3))
        removed = np.delete(norms, indices)
        assert norms[indices].min() >= removed.max() * (1 - 1e-6)


@torch.no_grad()
def test_activation_keeps_the_channels_that_move_the_consumer_most(lite0):
    """Monte Carlo of relu6 of the normal that the batch norm describes, times the outgoing weights' norm."""
    normal = np.random.default_rng(0).standard_normal((20_000, 1))
    for name, indices in list(plan_pruning(lite0, 0.5, criterion="activation").kept.items())[::5]:
        block = lite0.get_submodule(name.rpartition(".")[0])
        bias, scale = (tensor.numpy() for tensor in (block.bn2.bias, block.bn2.weight))
        deviation = np.clip(bias + np.abs(scale) * normal, 0, 6).std(axis=0)
        scores = deviation * np.sqrt((block.conv_pwl.weight.numpy() ** 2).sum(axis=(0, 2, 3)))
        best = set(np.argsort(-scores)[: len(indices)].tolist())
        assert len(best & set(indices)) >= 0.97 * len(indices)


def test_gaussian_moments_of_relu_match_the_closed_form():
    mean = torch.tensor([-3.0, -0.5, 0.0, 0.7, 4.0, 1.0, -1.0], dtype=torch.float64)
    std = torch.tensor([1.0, 2.0, 0.3, 1.5, 0.1, 0.0, 0.0], dtype=torch.float64)
    found_mean, found_std = gaussian_moments(F.relu, mean, std)
    for m, s, first, deviation in zip(*(t.tolist() for t in (mean, std, found_mean, found_std)), strict=True):
        below = 0.5 * (1 + math.erf(m / s / math.sqrt(2))) if s else float(m > 0)
        density = s * math.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi) if s else 0.0
        expected = m * below + density
        variance = (m * m + s * s) * below + m * density - expected**2
        assert first == pytest.approx(expected, abs=2e-3 * s + 1e-12)
        assert deviation == pytest.approx(math.sqrt(max(variance, 0)), abs=2e-3 * s + 1e-6)


def test_gaussian_moments_of_relu6_match_monte_carlo():
    mean, std = torch.tensor([-1.0, 0.0, 3.0, 6.0, 9.0]), torch.tensor([1.0, 5.0, 2.0, 1.0, 4.0])
    samples = np.random.default_rng(0).normal(mean, std, size=(400_000, 5)).clip(0, 6)
    found_mean, found_std = gaussian_moments(F.relu6, mean, std)
    np.testing.assert_allclose(found_mean, samples.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(found_std, samples.std(axis=0), atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("dense", ["efficientnet_lite0", "resnet50", "resnet26_64"], indirect=True)
def test_mean_repair_is_exact_for_constant_channels_into_a_1x1_consumer(dense):
    plan = plan_pruning(dense, 0.5, criterion="random", repair="mean")
    small = plan.apply(dense)
    sites = {name: site_layers(dense, small, name) for name in plan.kept}
    pointwise = {
        name for name, layers in sites.items() if dense.get_submodule(layers[-1]).kernel_size == (1, 1)
    }
    assert len(pointwise) >= 8
    everything = {name: list(range(dense.get_submodule(name).out_channels)) for name in plan.kept}
    plan = replace(
        plan, kept={name: plan.kept[name] if name in pointwise else everything[name] for name in sites}
    )
    constant = copy.deepcopy(dense)
    for name in pointwise:
        convs = list(convolutions(dense))
        last = convs.index(sites[name][-1]) - 1  # the convolution just before the consumer
        norm = constant.get_submodule(convs[last].replace("conv_dw", "bn2").replace("conv2", "bn2"))
        norm.weight[sorted(set(everything[name]) - set(plan.kept[name]))] = 0
    inputs = images(torch.float32)
    expected = constant(inputs)
    scale = expected.abs().max()
    assert (plan.apply(constant)(inputs) - expected).abs().max() <= 1e-5 * scale
    unrepaired = replace(plan, repair="none").apply(constant)(inputs)
    assert (unrepaired - expected).abs().max() > 0.01 * scale


@torch.no_grad()
@pytest.mark.parametrize("repair", [name for name in REPAIRS if name != "none"])
def test_repair_brings_the_pretrained_network_nearer_to_the_dense_one(lite0, digits, repair):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (lite0.mean, lite0.std))
    inputs = (digits.train.images[:24].permute(0, 3, 1, 2) / 255 - mean) / std
    expected = lite0(inputs)
    distance = {
        name: (plan_pruning(lite0, 0.25, "activation", repair=name).apply(lite0)(inputs) - expected).norm()
        for name in ("none", repair)
    }
    assert distance[repair] < 0.95 * distance["none"]


@pytest.mark.parametrize("repair", REPAIRS)
def test_repaired_pruning_leaves_the_dense_network_untouched(lite0, repair):
    before = state_of(lite0)
    plan_pruning(lite0, 0.5, repair=repair).apply(lite0)
    assert_same_state(lite0, before)


@torch.no_grad()
@pytest.mark.parametrize("dense", list_backbones(), indirect=True)
def test_saved_network_loads_bit_for_bit(dense, folder):
    plan = plan_pruning(dense, 0.3, criterion="activation", repair="mean")
    small = plan.apply(dense)
    plan.save(small, folder)
    loaded = load_pruned(folder)
    assert_same_state(loaded, state_of(small))
    assert torch.equal(loaded(images(torch.float32)), small(images(torch.float32)))
    assert (loaded.name, loaded.feature_dim, loaded.training) == (small.name, small.feature_dim, False)


def _flip_a_weight(folder):
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def _truncate(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def _edit_plan(change):
    def damage(folder):
        plan = json.loads((folder / "plan.json").read_text())
        change(plan)
        (folder / "plan.json").write_text(json.dumps(plan))

    return damage


DAMAGES = {
    "no weights": lambda folder: (folder / "weights.safetensors").unlink(),
    "no plan": lambda folder: (folder / "plan.json").unlink(),
    "weights cut off": _truncate("weights.safetensors"),
    "plan cut off": _truncate("plan.json"),
    "empty weights": lambda folder: (folder / "weights.safetensors").write_bytes(b""),
    "a weight edited": _flip_a_weight,
    "another network named": _edit_plan(lambda plan: plan.update(backbone="efficientnet_lite1")),
    "unknown network named": _edit_plan(lambda plan: plan.update(backbone="alexnet")),
    "a field missing": _edit_plan(lambda plan: plan.pop("kept")),
    "a wrong type": _edit_plan(lambda plan: plan.update(kept=3)),
    "a filter out of range": _edit_plan(lambda plan: next(iter(plan["kept"].values())).append(10**6)),
    "a filter fewer": _edit_plan(lambda plan: next(iter(plan["kept"].values())).pop()),
    "no filter at a site": _edit_plan(lambda plan: next(iter(plan["kept"].values())).clear()),
    "a foreign JSON": lambda folder: (folder / "plan.json").write_text("[]"),
    "not UTF-8": lambda folder: (folder / "plan.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(lite0, lite0_plan, folder, damage):
    lite0_plan.save(lite0_plan.apply(lite0), folder)
    load_pruned(folder)
    DAMAGES[damage](folder)
    with pytest.raises(UserError, match=str(folder)):
        load_pruned(folder)


def test_weights_of_another_plan_are_refused(lite0, lite0_plan, folder):
    lite0_plan.save(lite0_plan.apply(lite0), folder)
    other = plan_pruning(lite0, 0.5)
    other.save(other.apply(lite0), folder / "other")
    (folder / "other" / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(UserError, match="weights"):
        load_pruned(folder)


@pytest.mark.parametrize(
    ("fields", "value", "expected"),
    [
        ({"criterion": "magic"}, "'magic'", list(CRITERIA)),
        ({"repair": "glue"}, "'glue'", list(REPAIRS)),
        ({"scope": "galaxy"}, "'galaxy'", ["uniform"]),
        ({"granularity": "atom"}, "'atom'", ["filter"]),
        ({"ratio": 1.5}, "1.5", ["0 <= ratio < 1"]),
        ({"ratio": 1.0}, "1.0", ["0 <= ratio < 1"]),
        ({"ratio": -0.1}, "-0.1", ["0 <= ratio < 1"]),
        ({"ratio": float("nan")}, "nan", ["0 <= ratio < 1"]),
        ({"ratio": 0.001}, "0.001", ["larger ratio", "round_to"]),
        ({"round_to": 0}, "round_to=0", ["1 or more"]),
    ],
)
def test_bad_requests_name_the_value_and_what_is_expected(lite0, fields, value, expected):
    with pytest.raises(UserError) as error:
        plan_pruning(lite0, **{"ratio": 0.5, **fields})
    assert value in str(error.value)
    for text in expected:
        assert text in str(error.value)


def _features(body: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width


def _headless(network: nn.Module) -> nn.Module:
    network.fc = nn.Identity()
    return network


models = torchvision.models
basic_block = timm.models.resnet.BasicBlock
UNDECLARED = {
    "vgg11_bn": lambda: _features(models.vgg11_bn().features, 512),
    "mobilenet_v2": lambda: _features(models.mobilenet_v2().features, 1280),
    "mobilenet_v3_small": lambda: _features(models.mobilenet_v3_small().features, 576),
    "efficientnet_b0": lambda: (timm.create_model("efficientnet_b0", num_classes=0), 1280),
    "resnext50_32x4d": lambda: (_headless(models.resnext50_32x4d()), 2048),
    "silu": lambda: (timm.models.ResNet(basic_block, [1, 1, 1, 1], num_classes=0, act_layer=nn.SiLU), 512),
    "group_norm": lambda: (
        timm.models.ResNet(basic_block, [1, 1, 1, 1], num_classes=0, norm_layer=timm.layers.GroupNorm),
        512,
    ),
}


@pytest.mark.parametrize("name", UNDECLARED)
def test_undeclared_architectures_are_refused(name):
    body, width = UNDECLARED[name]()
    network = Backbone(name, body, nn.Linear(width, 10), 64, (0.5,) * 3, (0.5,) * 3).eval()
    assert network(images(torch.float32)).shape == (2, width)
    with pytest.raises(UserError, match="expected"):
        plan_pruning(network, 0.5, criterion="activation").apply(network)


def test_plan_is_refused_by_a_network_that_is_pruned_already(lite0, lite0_plan):
    with pytest.raises(UserError, match="does not fit"):
        lite0_plan.apply(lite0_plan.apply(lite0))


def test_plan_that_keeps_the_first_filters_is_refused_by_its_own_result(lite0, lite0_plan):
    first = replace(lite0_plan, kept={name: list(range(len(kept))) for name, kept in lite0_plan.kept.items()})
    with pytest.raises(UserError, match="does not fit"):
        first.apply(first.apply(lite0))


def test_plan_of_another_network_is_refused(lite0_plan):
    with pytest.raises(UserError, match="does not fit"):
        lite0_plan.apply(random_backbone("efficientnet_lite1"))
