"""The distance to the pretraining images, against torch's own divergence and on images that are nearer."""

import pandas as pd
import pytest
import torch
from helpers import assert_same_state, few_images, random_backbone, state_of
from torch import nn
from torch.distributions import Normal, kl_divergence

from lib.common.errors import UserError
from lib.evidence.records import load_records
from lib.networks.backbone import Backbone, load_backbone, normalised
from lib.networks.measure import distance_to_pretraining
from lib.streams import Split, load_stream
from tools.distances import FOLDER, measure


@pytest.fixture(scope="module")
def clothes() -> Split:
    return few_images("fashion_mnist", 60, 1, 1).train


def test_one_layer_by_hand(clothes):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, eps=0)
    norm.running_mean[:], norm.running_var[:] = torch.randn(3), torch.rand(3) + 0.5
    body = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Backbone("one", body, nn.Linear(3, 2), 64, (0.5,) * 3, (0.3,) * 3).eval()
    inputs = normalised(clothes.images.permute(0, 3, 1, 2), network).transpose(0, 1).flatten(1)
    here = Normal(inputs.mean(1), inputs.std(1, correction=0))
    kept = Normal(norm.running_mean, norm.running_var.sqrt())
    expected = kl_divergence(here, kept).mean().item()
    assert distance_to_pretraining(network, clothes.images) == pytest.approx(expected, rel=1e-4)


def test_it_is_nothing_for_the_images_whose_statistics_were_kept(clothes):
    network = random_backbone("resnet18half_64")
    far = distance_to_pretraining(network, clothes.images)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(normalised(clothes.images[:50].permute(0, 3, 1, 2), network))
    network.eval()
    # In training mode each layer sees what a batch norms; so does it here, but for the unbiased variance.
    near = distance_to_pretraining(network, clothes.images[:50])
    assert near < 1e-3 < far


def test_photographs_are_nearer_to_imagenet_than_digits_and_the_network_is_left_alone():
    network = load_backbone("resnet26_64")
    before = state_of(network)
    digits, materials = (few_images(name, 100, 1, 1).train for name in ("mnist", "materials"))
    assert distance_to_pretraining(network, materials.images) < distance_to_pretraining(network, digits.images)
    assert_same_state(network, before)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_network_without_batch_norms_is_refused(clothes):
    with pytest.raises(UserError, match=r"timm:convnext_atto has no batch norms"):
        distance_to_pretraining(random_backbone("timm:convnext_atto"), clothes.images)


@pytest.mark.parametrize(("profile", "stream"), [("nevis", "nevis/short"), ("further", "nevis/full")])
def test_the_committed_distances_are_of_the_tasks_of_the_committed_records(profile, stream):
    table = pd.read_parquet(FOLDER / "efficientnet_lite0.parquet").query("stream == @stream")
    records = load_records(profile).drop_duplicates("event")
    assert list(zip(table["event"], table["task"], strict=True)) == list(
        zip(records["event"], records["task"], strict=True)
    )
    mnist = table.loc[table["task"] == "MNIST", "distance"]
    assert mnist.nunique() == (stream == "nevis/short")  # twice in SHORT, on the same images


def test_distances_of_a_stream_are_those_of_its_tasks():
    stream = load_stream("pocket").only(["mnist", "emoji"])
    table = measure("resnet18half_64", stream)
    network = load_backbone("resnet18half_64")
    images = [task.read(64).train.first(50).images for task in stream.tasks]
    assert list(table["distance"]) == [distance_to_pretraining(network, one) for one in images]
    assert list(table["task"]) == [task.name for task in stream.tasks]
