"""Trainings that stop and go on: bit for bit as if they had not."""

import pytest
import torch
from helpers import few_images, state_of
from torch import nn

from lib.learning import state as checkpoints_module
from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.state import Checkpoints
from lib.learning.training import Recipe, TaskNetwork, fine_tune, plan_batches
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import training_macs
from lib.streams import Split, TaskData

HALF = Engine("bf16")


class Stopped(Exception):
    """In place of a kill."""


@pytest.fixture(scope="module")
def clothes() -> TaskData:
    return few_images("fashion_mnist", 70, 10, 10)


@pytest.fixture(scope="module")
def forgetful() -> Backbone:
    """A residual network that also drops channels at random."""
    network = load_backbone("resnet18half_64")
    body = nn.Sequential(network.body, nn.Dropout(0.2))
    return Backbone("forgetful", body, network.classifier, 64, network.mean, network.std).eval()


def trained(
    start: Backbone, train: Split, images: int, checkpoints: Checkpoints | None = None, **recipe
) -> dict[str, torch.Tensor]:
    """The state of a network trained on so many images."""
    outputs = 10 if train.labels.ndim == 1 else train.labels.shape[1]
    network = TaskNetwork(start, outputs)
    ledger = Ledger(images * training_macs(network, 64))
    fine_tune(network, train, ledger, Recipe(0.003, 0.003, **recipe), HALF, seed=5, checkpoints=checkpoints)
    assert ledger.total == ledger.limit, "the whole of it is charged, however much was there already"
    return state_of(network)


def assert_equal_states(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", ["classes", "tags", "frozen norms"])
@pytest.mark.parametrize("stop", [1, 4, 7, 8])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(forgetful, clothes, folder, monkeypatch, kind, stop):
    train, recipe = clothes.train, {"frozen_norms": kind == "frozen norms"}
    if kind == "tags":
        train = Split(train.images, nn.functional.one_hot(train.labels, 10).float())
    images = 195  # almost three passes
    last = len(plan_batches(images))
    expected = trained(forgetful, train, images, **recipe)
    monkeypatch.setattr(checkpoints_module, "SECONDS", -1)  # one after every step
    save, steps = Checkpoints.save, []

    def saved(self, state):
        save(self, state)
        steps.append(int(state["steps"]))
        if steps[-1] == stop:
            raise Stopped

    monkeypatch.setattr(Checkpoints, "save", saved)
    with pytest.raises(Stopped):
        trained(forgetful, train, images, Checkpoints(folder), **recipe)
    assert steps == list(range(1, stop + 1))
    assert_equal_states(trained(forgetful, train, images, Checkpoints(folder), **recipe), expected)
    assert steps == list(range(1, last + 1)), "nothing was trained twice"
