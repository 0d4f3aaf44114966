"""The sequential repair against plain numpy, what can be recovered exactly, and least squares."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, random_backbone, state_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lib.networks.backbone import Backbone, load_backbone, normalised
from lib.networks.macs import forward_macs
from lib.pruning import load_pruned, plan_pruning, sequential
from lib.pruning.repairs import REPAIRS, Damage
from lib.pruning.sites import find_sites, residual_sums, width_of
from lib.pruning.surgery import keep_channels
from lib.streams import calibration_images

# Residual convolutions; squeeze-excite in both libraries; timm's own padding; layer scale; tokens.
KINDS = [
    "resnet18half_64",
    "torchvision:mobilenet_v3_small",
    "timm:regnety_002",
    "timm:tf_efficientnet_lite0",
    "timm:convnext_atto",
    "torchvision:vit",
]


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cut(dense: Backbone, granularity: str, share: float, places: slice = slice(None)) -> Damage:
    """The first channels of some sites kept, all of the others."""
    small, kept = copy.deepcopy(dense), {}
    sites = find_sites(dense, granularity)
    for site in sites:
        width = width_of(dense, site)
        kept[site.name] = torch.arange(round(share * width) if site in sites[places] else width)
        keep_channels(small, site, kept[site.name])
    return Damage(small, sites, kept, original=dense)


def repaired(damage: Damage, images: torch.Tensor) -> Backbone:
    damage.images = images
    REPAIRS["sequential"].correct(damage)
    return damage.network


def unregularised(monkeypatch, ridge: float = 1e-12) -> None:
    for name, value in {"RIDGE": ridge, "SHORTAGE": 0, "ROWS": 10**9}.items():
        monkeypatch.setattr(sequential, name, value)


@pytest.mark.parametrize("name", KINDS)
def test_where_nothing_is_removed_nothing_changes(name):
    dense = random_backbone(name).double()
    before = state_of(dense)
    small = repaired(cut(dense, "filter", 1), noise(4))
    for key, value in small.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-7, atol=1e-7)
    assert_same_state(dense, before)


@pytest.mark.parametrize(("granularity", "places"), [("filter", slice(0, 4)), ("channel", slice(8, 10))])
def test_channels_that_kept_ones_tell_exactly_are_made_good(monkeypatch, granularity, places):
    """Every channel of the first sites is there twice, and the copies go."""
    unregularised(monkeypatch)
    dense = random_backbone("resnet18half_64").double()
    for site in find_sites(dense, granularity)[places]:
        half = width_of(dense, site) // 2
        for name in site.output_sliced:
            for tensor in dense.get_submodule(name).state_dict().values():
                if tensor.ndim:
                    tensor[half:] = tensor[:half]
    damage, others = cut(dense, granularity, 0.5, places), noise(4, seed=1)
    assert (damage.network(others) - dense(others)).abs().mean() > 0.1
    small = repaired(damage, noise(24))
    torch.testing.assert_close(small(others), dense(others), rtol=1e-4, atol=1e-4)


def inputs_of(network: nn.Module, images: torch.Tensor, *names: str) -> list[torch.Tensor]:
    seen = {}
    for name in names:
        layer = network.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].clone()}))
    with torch.no_grad():
        network(images)
    return [seen[name] for name in names]


def test_first_block_equals_numpy(monkeypatch):
    """The first layer that lost inputs ends a branch: it corrects the sum, through its norm's slope."""
    unregularised(monkeypatch, ridge=0.02)
    dense = random_backbone("resnet18half_64").double()
    damage, images = cut(dense, "filter", 0.5), noise(3)
    conv, norm, after = (f"body.layer1.0.{part}" for part in ("conv2", "bn2", "act2"))
    reads, found = inputs_of(copy.deepcopy(damage.network), images, conv, after)
    wanted = inputs_of(copy.deepcopy(dense), images, after)[0]
    was = copy.deepcopy(damage.network.get_submodule(conv).weight.detach())

    x = F.unfold(reads, 3, padding=1).transpose(1, 2).flatten(0, 1).numpy()
    lacking = (wanted - found).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    old = dense.get_submodule(norm)
    r = lacking / (old.weight / (old.running_var + old.eps).sqrt()).detach().numpy()
    mean_x, mean_r, deviation = x.mean(0), r.mean(0), x.std(0)
    # Ridge as rows of its own: sqrt(n ridge) deviation_j d_j = 0.
    rows = np.concatenate([x - mean_x, np.diag(np.sqrt(len(x) * 0.02) * deviation)])
    change = np.linalg.lstsq(rows, np.concatenate([r - mean_r, np.zeros((x.shape[1], r.shape[1]))]), rcond=None)[0]

    small = repaired(damage, images)
    got = (small.get_submodule(conv).weight - was).flatten(1).T.numpy()
    np.testing.assert_allclose(got, change, rtol=0.01, atol=0.003 * np.abs(change).max())
    shift = old.running_mean - small.get_submodule(norm).running_mean
    np.testing.assert_allclose(shift.numpy(), mean_r - mean_x @ change, rtol=0.01, atol=0.003 * np.abs(mean_r).max())


@pytest.mark.parametrize(("name", "granularity"), [("resnet18half_64", "channel"), ("torchvision:vit", "filter")])
def test_correcting_the_residual_stream_brings_the_sums_nearer(monkeypatch, name, granularity):
    dense, images = random_backbone(name).double(), noise(16)
    wanted = dense(images)
    corrected = repaired(cut(dense, granularity, 0.5), images)(images)
    monkeypatch.setattr(sequential, "residual_sums", lambda network: {})
    uncorrected = repaired(cut(dense, granularity, 0.5), images)(images)
    assert (corrected - wanted).square().mean() < (uncorrected - wanted).square().mean()


@pytest.mark.parametrize("name", KINDS)
def test_sums_are_found(name):
    """Where a sum is said to be seen, the branch's last layer and the block's input both change it."""
    network = random_backbone(name)
    sums = residual_sums(network)
    assert sums
    for layer, (place, enters) in sums.items():
        assert isinstance(network.get_submodule(layer), (nn.Conv2d, nn.Linear))
        assert layer.startswith(place.rpartition(".")[0] if enters else place)
        assert enters != any(True for _ in network.get_submodule(place).children())


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("resnet26_64", "filter"),
        ("resnet26_64", "channel"),
        ("efficientnet_lite0", "filter"),
        ("efficientnet_lite0", "channel"),
        ("timm:mobilenetv3_small_100", "filter"),
    ],
)
def test_error_on_what_was_looked_at_is_below_that_of_least_squares(name, granularity):
    dense = random_backbone(name) if ":" in name else load_backbone(name)
    images = normalised(calibration_images(24, 64).permute(0, 3, 1, 2), dense)
    with torch.no_grad():
        wanted = dense(images)

        def error(repair: str) -> float:
            how = {"scope": "uniform", "granularity": granularity, "image_size": 64, "images": images}
            small = plan_pruning(dense, 0.4, "l1", repair=repair, **how).apply(dense)
            return (small(images) - wanted).square().mean().item()

        assert error("sequential") <= error("least_squares")


@pytest.mark.parametrize("name", ["resnet18half_64", "torchvision:mobilenet_v3_small", "torchvision:vit"])
def test_macs_are_those_computed(name):
    dense = random_backbone(name).double()
    damage, images = cut(dense, "filter", 0.5), noise(4)
    passes = len(images) * (forward_macs(dense, 64) + forward_macs(damage.network, 64))
    with FlopCounterMode(display=False) as counter:
        repaired(damage, images)
    # torch counts no factorisation and no triangular solve.
    solved = 0
    for layer in damage.network.modules():
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer is not damage.network.classifier:
            width, groups = (0 if depthwise else layer.weight[0].numel()), getattr(layer, "groups", 1)
            solved += groups * width**3 // 3 + width**2 * len(layer.weight)
    assert passes + damage.macs == pytest.approx(counter.get_total_flops() / 2 + solved, rel=0.01)


@pytest.mark.parametrize("repair", ["sequential", "sequential_synthetic"])
def test_plan_charges_it_and_leaves_the_network(tmp_path, monkeypatch, repair):
    monkeypatch.setattr("lib.pruning.calibration.MORE_SYNTHETIC_IMAGES", 16)
    dense = load_backbone("resnet18half_64").train()
    before, images = state_of(dense), noise(16).float()
    plan = plan_pruning(dense, 0.5, repair=repair, images=None if "synthetic" in repair else images)
    assert_same_state(dense, before)
    assert dense.training and all(parameter.requires_grad for parameter in dense.parameters())
    small = plan.apply(dense)
    assert small.training and all(parameter.requires_grad for parameter in small.parameters())
    passes = 16 * (forward_macs(dense, 64) + forward_macs(small, 64))
    assert plan.calibration_macs > passes + ("synthetic" in repair) * 16 * forward_macs(dense, 64)
    again = plan_pruning(dense.eval(), 0.5, repair=repair, images=None if "synthetic" in repair else images)
    assert_same_state(again.apply(dense), state_of(small))
    plan.save(small, tmp_path)
    assert_same_state(load_pruned(tmp_path), state_of(small))
