"""Zero-shot fidelity: its ends, and that it tells a better pruning from a worse one."""

import pytest
import torch
from helpers import plain_plan

from lib.networks.backbone import load_backbone, normalised
from lib.networks.measure import fidelity
from measured import mixed_images


def mixed(network, count):
    return normalised(mixed_images(count, 64).permute(0, 3, 1, 2), network)


def test_untouched_is_1_and_unrelated_is_near_0(lite0):
    images = mixed(lite0, 40)
    assert fidelity(lite0, lite0, images) == pytest.approx(1, abs=1e-5)
    torch.manual_seed(0)
    assert abs(fidelity(lite0, load_backbone("efficientnet_lite0", pretrained=False), images)) < 0.3


def test_fewer_filters_and_no_repair_are_further_away(lite0):
    images = mixed(lite0, 40)
    found = {
        (ratio, repair): fidelity(lite0, plain_plan(lite0, ratio, "activation", repair=repair).apply(lite0), images)
        for ratio in (0.1, 0.5)
        for repair in ("none", "mean")
    }
    assert found[0.1, "mean"] > found[0.1, "none"] > found[0.5, "none"]
    assert found[0.1, "mean"] > found[0.5, "mean"]


def test_images_are_of_every_task_in_turn(lite0):
    images = mixed(lite0, 30)
    assert images.shape == (30, 3, 64, 64)
    assert torch.equal(images[:10], mixed(lite0, 10))
    assert not torch.equal(images[0], images[10])
