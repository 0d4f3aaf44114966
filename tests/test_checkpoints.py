"""Trainings that stop and go on, and budgets that share a trunk: bit for bit as if each were alone."""

import pytest
import torch
from helpers import Counter, few_images, state_of
from test_runs import PRUNED, TASKS, assert_same_records
from torch import nn

from lib.learning import state as checkpoints_module
from lib.learning.engine import Engine, Precision
from lib.learning.ledger import Ledger
from lib.learning.state import Checkpoints
from lib.learning.training import Recipe, TaskNetwork, fine_tune
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import training_macs
from lib.runs.run import run_stream
from lib.runs.spec import RunSpec
from lib.runs.store import saved_predictions
from lib.streams import Split, TaskData

HALF = Engine(Precision.named("bf16"))
BUDGETS = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0]
SHARING = PRUNED | {"backbone": "resnet18half_64", "tasks": TASKS, "budgets": BUDGETS}


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
    fine_tune(network, train, ledger, Recipe(0.003, **recipe), HALF, seed=5, checkpoints=checkpoints)
    assert ledger.total == ledger.limit, "the whole of it is charged, however much was there already"
    return state_of(network)


def assert_equal_states(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", ["classes", "tags", "frozen norms"])
@pytest.mark.parametrize("stop", [1, 5, 6, 7, 11, 12])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(forgetful, clothes, folder, monkeypatch, kind, stop):
    train, recipe = clothes.train, {"frozen_norms": kind == "frozen norms"}
    if kind == "tags":
        train = Split(train.images, nn.functional.one_hot(train.labels, 10).float())
    images = 12 * 16 + 3  # thirteen steps, the first six of which are the trunk's; almost three passes
    expected = trained(forgetful, train, images, **recipe)
    monkeypatch.setattr(checkpoints_module, "SECONDS", -1)  # one before every step
    save, steps = Checkpoints.save, []

    def saved(self, state, images):
        save(self, state, images)
        steps.append(int(state["steps"]))
        if steps[-1] == stop:
            raise Stopped

    monkeypatch.setattr(Checkpoints, "save", saved)
    with pytest.raises(Stopped):
        trained(forgetful, train, images, Checkpoints(folder), **recipe)
    assert steps == list(range(1, stop + 1))
    assert_equal_states(trained(forgetful, train, images, Checkpoints(folder), **recipe), expected)
    assert steps == list(range(1, 13)), "nothing was trained twice"


def test_a_larger_budget_goes_on_from_the_trunk(forgetful, clothes, folder, monkeypatch):
    counter = Counter(monkeypatch)
    for images in (20, 40, 75, 150, 300):
        found = trained(forgetful, clothes.train, images, Checkpoints(folder, shared=True))
        shared, counter.trained = counter.trained, 0
        assert_equal_states(found, trained(forgetful, clothes.train, images))
        assert counter.trained == images
        assert shared <= images * 3 / 4 + 16 or images == 20
        counter.trained = 0


def test_a_smaller_budget_after_a_larger_one_starts_anew(forgetful, clothes, folder):
    expected = trained(forgetful, clothes.train, 50)
    trained(forgetful, clothes.train, 300, Checkpoints(folder, shared=True))
    assert_equal_states(trained(forgetful, clothes.train, 50, Checkpoints(folder, shared=True)), expected)


@pytest.mark.parametrize("learner", ["independent", "probe_finetune"])
def test_budgets_that_share_cost_little_and_are_what_each_is_alone(learner, tmp_path, monkeypatch):
    """In images that really go through the network: 1.6 times those of the largest at most."""
    counter = Counter(monkeypatch)
    together = RunSpec(**SHARING | {"learner": learner})
    records = run_stream(together, tmp_path / "together")
    shared, counter.trained = counter.trained, 0
    predictions = saved_predictions(together, tmp_path / "together")
    for budget in BUDGETS:
        alone = RunSpec(**SHARING | {"learner": learner, "budgets": [budget]})
        expected = run_stream(alone, tmp_path / "alone")
        of_budget = records[records["budget"] == budget].reset_index(drop=True)
        assert_same_records(of_budget, expected)
        for key, arrays in saved_predictions(alone, tmp_path / "alone").items():
            assert (predictions[key]["logits_test"] == arrays["logits_test"]).all()
        largest, counter.trained = counter.trained, 0
    assert largest < shared <= 1.6 * largest


@pytest.mark.slow
def test_what_budgets_share_makes_no_difference_with_any_of_five_seeds(tmp_path):
    """The paired difference of each error from the one trained alone: its interval is 0, not around it."""
    for seed in range(5):
        fields = SHARING | {"seed": seed, "budgets": [0.5, 1.0, 2.0]}
        together = run_stream(RunSpec(**fields), tmp_path).set_index(["budget", "event"])["error_test"]
        for budget in fields["budgets"]:
            alone = run_stream(RunSpec(**fields | {"budgets": [budget]}), tmp_path)
            assert (alone["error_test"].to_numpy() - together[budget].to_numpy() == 0).all()


@pytest.mark.parametrize("changes", [{"learner": "previous"}, {"trials": 2, "learning_rate": None}])
def test_budgets_that_start_differently_share_nothing(changes, tmp_path, monkeypatch):
    counter = Counter(monkeypatch)
    records = run_stream(RunSpec(**SHARING | changes), tmp_path)
    trained_macs = records["train_macs"].sum() + records["search_macs"].sum()
    outputs = load_backbone("resnet18half_64").feature_dim * 26  # a head's share is far below one image's
    each = records["forward_macs"].iloc[0]
    assert counter.trained * (3 * each - each) <= trained_macs <= counter.trained * 3 * (each + outputs)
