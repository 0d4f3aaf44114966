"""Learners: what they start from, what they pay, heads against scikit-learn, and search within the budget."""

import copy
import itertools
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from helpers import Counter, few_images
from sklearn.linear_model import Ridge, RidgeCV
from test_runs import NO_RATES, ONE_TASK, PRUNED, TASKS, assert_same_records, killed_run, start_run
from torch.utils.flop_counter import FlopCounterMode

from lib.common.errors import UserError
from lib.learning import search as search_module
from lib.learning.engine import Engine
from lib.learning.job import Job
from lib.learning.learners import LEARNERS, PRETRAINED, Learnt, neighbours_error
from lib.learning.ledger import Ledger
from lib.learning.probe import STRENGTHS, affordable_probe, probe_macs, ridge_head, stratified
from lib.learning.search import SPACE, search
from lib.learning.state import Checkpoints, Memory
from lib.learning.training import Recipe, TaskNetwork, error_of, fine_tune, predict, representation
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import forward_macs, training_macs
from lib.runs.run import CHARGED, run_stream
from lib.runs.spec import RunSpec
from lib.streams import Split, Task, TaskData


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load_backbone("resnet18half_64")


@pytest.fixture(scope="module")
def clothes() -> TaskData:
    return few_images("fashion_mnist", 160, 64, 100)


@pytest.fixture(scope="module")
def features(small, clothes) -> torch.Tensor:
    return representation(small, clothes.train, Engine())


RULE = Recipe(3e-3, 3e-3)


def job_of(
    start: Backbone, data: TaskData, limit: int, memory: Memory | None = None, recipe=RULE, event=0, trials=1
) -> Job:
    """A job of ten classes."""
    memory = memory or Memory(Path("nowhere"), 0, start)
    return Job(
        event=event,
        task=Task("clothes", 2017, "objects", "classification", 10, "", lambda size: data, lambda: ()),
        data=data,
        start=start,
        recipe=recipe,
        trials=trials,
        budget=2,
        ledger=Ledger(limit),
        memory=memory,
        checkpoints=Checkpoints(memory.folder / "trainings"),
        engine=Engine(),
        seed=3000 + event,
    )


# --- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [40, 160])
@pytest.mark.parametrize("width", [30, 256], ids=["more images than features", "more features"])
@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_the_head_is_scikit_learn_s_ridge_by_leaving_one_out(features, clothes, images, width, kind):
    x, labels = features[:images, :width].double(), clothes.train.labels[:images]
    targets = F.one_hot(labels, 10).double()
    if kind == "tags":
        labels = targets = torch.stack([labels < 3, labels % 2 == 0], 1).double()
    centred = x - x.mean(0)
    values = torch.linalg.svdvals(centred).square()
    strengths = (STRENGTHS * values[values > values.max() * 1e-9].mean()).numpy()
    expected = RidgeCV(alphas=strengths).fit(x.numpy(), targets.numpy())
    weight, bias = ridge_head(x.float(), labels, targets.shape[1])
    found = weight.double().numpy()
    scale = (found * expected.coef_).sum() / (expected.coef_**2).sum()
    assert scale > 0
    np.testing.assert_allclose(found, scale * expected.coef_, atol=2e-3 * np.abs(found).max())
    difference = bias.double().numpy() - scale * expected.intercept_
    np.testing.assert_allclose(difference, difference.mean(), atol=2e-3 * scale)


def test_the_scale_of_the_logits_suits_images_that_were_left_out(features, clothes):
    x, labels = features[:60].double(), clothes.train.labels[:60]
    weight, _ = ridge_head(features[:60], labels, 10)
    targets = F.one_hot(labels, 10).double().numpy()
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    strengths = (STRENGTHS * values[values > values.max() * 1e-9].mean()).numpy()
    chosen = RidgeCV(alphas=strengths).fit(x.numpy(), targets)
    scale = (weight.double().numpy() * chosen.coef_).sum() / (chosen.coef_**2).sum()
    outputs = []
    for left_out in range(60):
        others = np.arange(60) != left_out
        fitted = Ridge(alpha=chosen.alpha_).fit(x.numpy()[others], targets[others])
        outputs.append(fitted.predict(x.numpy()[[left_out]])[0])
    outputs = torch.tensor(np.array(outputs))
    losses = [F.cross_entropy(outputs * scale * factor, labels).item() for factor in (0.8, 1, 1.25)]
    assert losses[1] == min(losses)


def test_a_task_of_one_seen_class_and_equal_images_still_has_a_head():
    weight, bias = ridge_head(torch.ones(4, 6), torch.zeros(4, dtype=torch.int64), 3)
    assert weight.isfinite().all() and bias.isfinite().all() and bias.argmax() == 0


def test_a_probe_costs_its_images_and_the_largest_that_fits_is_taken(small, clothes, monkeypatch):
    each = forward_macs(small, 64)
    sizes = each, small.feature_dim, 10
    for limit in (0, each, 20 * each, 77 * each, 1000 * each):
        counter = Counter(monkeypatch)
        task = job_of(small, clothes, limit)
        learnt = LEARNERS["probe"].learn(task)
        monkeypatch.undo()
        images = affordable_probe(*sizes, 160, limit)
        assert counter.seen == images <= 160 and counter.trained == 0 and learnt.steps == 0
        assert task.ledger.total == (probe_macs(*sizes, images) if images else 0) <= limit
        assert task.ledger.total >= images * each
        if 0 < images < 160:
            assert probe_macs(*sizes, images + 1) > limit
    assert images == 160
    error = error_of(predict(learnt.network, clothes.test, Engine()), clothes.test.labels.numpy())
    assert error < 0.45  # guessing: 0.9
    for name, weight in learnt.network.body.state_dict().items():
        assert torch.equal(weight, small.body.state_dict()[name])


@pytest.mark.parametrize("count", [5, 10, 37, 160, 500])
def test_the_subset_is_stratified(clothes, count):
    chosen = stratified(clothes.train, count)
    counts = chosen.labels.bincount(minlength=10)
    there = clothes.train.labels.bincount(minlength=10)
    assert len(chosen) == min(count, 160)
    for a in range(10):
        assert all(counts[a] >= min(counts[b] - 1, there[a]) for b in range(10))
    assert len(stratified(Split(clothes.train.images, torch.ones(160, 3)), 7)) == 7


# --- what a learner starts from -------------------------------------------------------------------


def test_neighbours_are_those_of_a_plain_loop(features, clothes):
    labels = clothes.train.labels
    wrong = 0
    for i in range(len(labels)):
        cosines = [float(F.cosine_similarity(features[i], f, dim=0)) if i != j else -9 for j, f in enumerate(features)]
        nearest = sorted(range(len(labels)), key=lambda j: -cosines[j])[:5]
        votes = np.zeros(10)
        for j in nearest:
            votes[labels[j]] += cosines[j]
        wrong += votes.argmax() != labels[i]
    assert neighbours_error(features, labels, 10) == pytest.approx(wrong / len(labels))
    tags = F.one_hot(labels, 10).float()
    assert 0 < neighbours_error(features, tags, 10) < 0.6


@pytest.fixture
def memory(small, folder) -> Memory:
    return Memory(folder, 7, small)


def trained(start: Backbone, data: TaskData, rate: float = 3e-3, images: int = 640) -> TaskNetwork:
    network = TaskNetwork(start, 10)
    fine_tune(network, data.train, Ledger(images * training_macs(network, 64)), Recipe(rate, rate), Engine(), seed=0)
    return network


def test_dynamic_takes_the_network_that_fits_the_task(small, clothes, memory, monkeypatch):
    fitting = trained(small, clothes)
    spoilt = copy.deepcopy(fitting)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in spoilt.body.parameters():
            weight.normal_()
    for event in range(12):
        memory.keep(event, (fitting if event == 7 else spoilt).body)
    loads = []
    network_of = Memory.network_of
    monkeypatch.setattr(Memory, "network_of", lambda self, e: loads.append(e) or network_of(self, e))
    counter = Counter(monkeypatch)
    macs = 800 * training_macs(TaskNetwork(small, 10), 64)
    task = job_of(small, clothes, macs, memory, event=12)
    learnt = LEARNERS["dynamic"].learn(task)
    assert learnt.started_from == 7 and loads == [11, 10, 9, 8, 7, 6, 5, 7]
    assert counter.seen == 8 * 64
    compared = task.ledger.spent["comparison"]
    assert 8 * 64 * forward_macs(small, 64) <= compared <= macs / 4
    # Event 7 is forgotten by event 15, and the pretrained network wins.
    for event in range(12, 15):
        memory.keep(event, spoilt.body)
    assert LEARNERS["dynamic"].learn(job_of(small, clothes, macs, memory, event=15)).started_from == PRETRAINED


@pytest.mark.parametrize("images", [2, 10, 40, 100, 400])
def test_the_comparison_takes_a_quarter_of_the_budget_at_most(small, clothes, memory, images):
    for event in range(7):
        memory.keep(event, TaskNetwork(small, 10).body)
    macs = images * training_macs(TaskNetwork(small, 10), 64)
    task = job_of(small, clothes, macs, memory, event=7)
    learnt = LEARNERS["dynamic"].learn(task)
    assert task.ledger.spent.get("comparison", 0) <= macs / 4 and task.ledger.total <= macs
    assert learnt.steps > 0 and (images < 400 or task.ledger.spent["comparison"] > 0)
    assert learnt.started_from == PRETRAINED  # the others are equal to it: ties go to the pretrained one


def test_memory_keeps_what_the_next_event_and_a_repeated_one_need(small, folder):
    memory = Memory(folder, 2, small)
    network = TaskNetwork(small, 10)
    for event in range(5):
        with torch.no_grad():
            network.body.state_dict()["conv1.weight"].fill_(event)
        memory.keep(event, network.body)
    assert list(memory.events_before(5)) == [4, 3] and list(memory.events_before(4)) == [3, 2]
    assert sorted(file.name for file in folder.iterdir()) == [f"{event}.safetensors" for event in (2, 3, 4)]
    assert (memory.network_of(3).body.conv1.weight == 3).all()
    assert list(Memory(folder, 2, small).events_before(1)) == [0]
    nothing = Memory(folder / "none", 0, small)
    nothing.keep(0, network.body)
    assert not (folder / "none").exists() and list(nothing.events_before(3)) == []


def test_previous_goes_on_from_the_last_body(small, clothes, memory):
    first = LEARNERS["previous"].learn(job_of(small, clothes, 10**11, memory))
    assert first.started_from == PRETRAINED
    memory.keep(0, first.network.body)
    task = job_of(small, clothes, 10**10, memory, event=1)
    second = LEARNERS["previous"].learn(task)
    assert second.started_from == 0
    start = copy.deepcopy(small)
    start.body.load_state_dict(first.network.body.state_dict())
    expected = TaskNetwork(start, 10)
    fine_tune(expected, clothes.train, Ledger(10**10), RULE, Engine(), seed=task.seed)
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, second.network.state_dict()[name])


def test_probe_finetune_starts_from_the_probe_s_head(small, clothes, monkeypatch):
    limit = 200 * training_macs(TaskNetwork(small, 10), 64)
    task = job_of(small, clothes, limit, recipe=Recipe(1e-12, 1e-12))
    learnt = LEARNERS["probe_finetune"].learn(task)
    probe = LEARNERS["probe"].learn(job_of(small, clothes, limit // 2))
    assert learnt.steps > 0 and learnt.recipe.frozen_norms
    found, expected = (predict(one.network, clothes.test, Engine()) for one in (learnt, probe))
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert task.ledger.spent["probe"] <= limit // 2 and task.ledger.total >= 0.98 * limit
    # Where not even a probe fits, the head is new and so is the rule.
    tiny = job_of(small, clothes, 3 * training_macs(TaskNetwork(small, 10), 64) // 2)
    assert LEARNERS["probe_finetune"].learn(tiny).steps == 0 or "probe" in tiny.ledger.spent


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        *itertools.product(("last_stage", "norms"), ("resnet18half_64", "efficientnet_lite0")),
        ("last_stage", "timm:regnety_002"),
    ],
)
def test_what_is_not_trained_stays_and_the_ledger_knows(name, backbone, clothes):
    """One image costs what PyTorch's own counter sees of a step of two."""
    start = load_backbone(backbone, pretrained=False)
    parts = {"last_stage": ("layer4.", "blocks.6.", "conv_head.", "bn2.", "s4."), "norms": ("bn", "downsample.1")}[name]
    job = job_of(start, clothes, 40 * training_macs(TaskNetwork(start, 10), 64))
    learnt = LEARNERS[name].learn(job)
    before, moved = start.body.state_dict(), set()
    for key, value in learnt.network.body.state_dict().items():
        if not torch.equal(value, before[key]) and not key.endswith("num_batches_tracked"):
            moved.add(key)
    if name == "last_stage":
        assert moved == {key for key in before if key.startswith(parts) and not key.endswith("num_batches_tracked")}
    else:
        assert moved == {key for key in before if before[key].ndim == 1 and any(part in key for part in parts)}
    network = learnt.network.train()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 3, 64, 64)).sum().backward()
    each = counter.get_total_flops() / 2 / 2
    images = job.ledger.spent["training"] / training_macs(network, 64)
    assert images == round(images) > 40
    # It counts a grouped convolution's weight gradient once for each group.
    assert training_macs(network, 64) == pytest.approx(each, rel=0.01) or name == "last_stage"
    assert training_macs(network, 64) < 0.8 * training_macs(TaskNetwork(start, 10), 64)


def test_a_network_without_stages_has_no_last_one(clothes):
    start = load_backbone("timm:convnext_atto", pretrained=False)
    with pytest.raises(UserError, match="timm:convnext_atto has no declared block that opens a stage"):
        LEARNERS["last_stage"].learn(job_of(start, clothes, 10**12))


def test_pixels_are_the_means_of_their_squares_under_the_head_of_a_probe(small, clothes, monkeypatch):
    job = job_of(small, clothes, 10**12)
    learnt = LEARNERS["pixels"].learn(job)
    pixels = clothes.train.images.numpy().reshape(160, 32, 2, 32, 2, 3).mean((2, 4)) / 255
    expected = ((pixels - np.array(small.mean)) / np.array(small.std)).transpose(0, 3, 1, 2).reshape(160, -1)
    weight, bias = ridge_head(torch.tensor(expected, dtype=torch.float32), clothes.train.labels, 10)
    torch.testing.assert_close(learnt.network.head.weight, weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(learnt.network.head.bias, bias, rtol=1e-3, atol=1e-3)
    assert job.ledger.spent == {"probe": probe_macs(0, 3072, 10, 160)}


@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_the_majority_is_the_most_frequent_answer_and_costs_nothing(small, clothes, kind):
    labels = torch.tensor([3, 3, 5, 3, 5, 1])
    labels = labels if kind == "classes" else F.one_hot(labels, 10).float()
    data = replace(clothes, train=Split(clothes.train.images[:6], labels))
    job = job_of(small, data, 10**12)
    logits = predict(LEARNERS["majority"].learn(job).network, clothes.test, Engine())
    assert (logits == logits[0]).all() and logits[0].argsort()[::-1][:3].tolist() == [3, 5, 1]
    assert job.ledger.total == 0


# --- search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [2, pytest.param(5, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize("images", [30, 600, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_search_is_charged_and_leaves_half_of_the_budget(small, clothes, monkeypatch, trials, images):
    network = TaskNetwork(small, 10)
    each, forward = training_macs(network, 64), forward_macs(network, 64)
    counter = Counter(monkeypatch)
    job = job_of(small, clothes, images * each, trials=trials)
    ledger = job.ledger
    recipe, note = search(network, job)
    assert note == ""
    assert ledger.total == counter.trained * each + counter.seen * forward <= ledger.limit / 2
    if images == 30:
        assert ledger.total == 0 and recipe == RULE
    if images == 4000:
        assert ledger.total >= 0.4 * ledger.limit
        runs = {2: 2, 5: 5 + 2, 8: 8 + 4 + 2}[trials]
        assert counter.seen == runs * 64
    assert 1e-4 <= recipe.head_rate <= 1e-1 and 0 <= recipe.label_smoothing <= 0.3


def proposals(monkeypatch, small, clothes, error_of_rate) -> list[float]:
    """The learning rates that a search of six tries on its first rung, if errors depend on them as given."""
    rates = []

    def tried(network, train, ledger, recipe, engine, *, seed) -> int:
        rates.append(recipe.head_rate)
        return 1

    monkeypatch.setattr(search_module, "fine_tune", tried)
    monkeypatch.setattr(search_module, "error_of", lambda *_: error_of_rate(rates[-1]))
    search(TaskNetwork(small, 10), job_of(small, clothes, 10**13, trials=6))
    return rates[:6]


def test_a_search_learns_from_the_first_trial_on(small, clothes, monkeypatch):
    """With a study's usual ten random proposals, opposite results would lead to the same proposals."""
    falls = proposals(monkeypatch, small, clothes, lambda rate: 0.5 - np.log10(rate) / 10)
    rises = proposals(monkeypatch, small, clothes, lambda rate: 0.5 + np.log10(rate) / 10)
    assert falls[0] == rises[0] == RULE.head_rate
    assert len(set(falls) & set(rises)) <= 2  # the second trial has one result to go by
    assert np.log10(falls[2:]).mean() > np.log10(rises[2:]).mean()


def test_a_rule_outside_of_what_is_searched_is_a_trial_too(small, clothes, monkeypatch):
    job = job_of(small, clothes, 1600 * training_macs(TaskNetwork(small, 10), 64), trials=2, recipe=Recipe(1e-7, 1e-7))
    recipe, _ = search(TaskNetwork(small, 10), job)
    assert recipe.body_rate == 1e-7 or 1e-4 <= recipe.head_rate <= 1e-1


@pytest.mark.slow
def test_a_search_finds_better_than_a_bad_rule_and_repeats_itself(small, clothes):
    def learn(trials: int) -> Learnt:
        limit = 1600 * training_macs(TaskNetwork(small, 10), 64)
        return LEARNERS["independent"].learn(job_of(small, clothes, limit, trials=trials, recipe=Recipe(1e6, 1e6)))

    def error(learnt: Learnt) -> float:
        return error_of(predict(learnt.network, clothes.test, Engine()), clothes.test.labels.numpy())

    ruled, searched, again = learn(1), learn(8), learn(8)
    assert ruled.recipe.head_rate == 1e6 and searched.recipe == again.recipe
    assert error(searched) < error(ruled) - 0.2
    assert error(searched) == error(again)


def test_a_trial_that_diverges_is_over_and_noted_and_the_search_goes_on(small, clothes, monkeypatch):
    monkeypatch.setitem(SPACE, "body_rate", optuna.distributions.FloatDistribution(1e-3, 1e38, log=True))
    limit = 1600 * training_macs(TaskNetwork(small, 10), 64)
    task = job_of(small, clothes, limit, trials=8)
    learnt = LEARNERS["independent"].learn(task)
    diverged = int(re.fullmatch(r"(\d+) trials of the search diverged", learnt.note)[1])
    assert 0 < diverged < 8 and learnt.steps > 0 and learnt.recipe.body_rate < 1e3
    assert task.ledger.total <= limit
    error = error_of(predict(learnt.network, clothes.test, Engine()), clothes.test.labels.numpy())
    assert error < 0.6  # guessing: 0.9


# --- over a stream --------------------------------------------------------------------------------

STREAM = PRUNED | {"backbone": "resnet18half_64", "tasks": [*TASKS, "letters"], "budgets": [32, 64]}


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_runs_over_a_stream_within_its_budget(learner, tmp_path):
    records = run_stream(RunSpec(**STREAM | {"learner": learner}), tmp_path)
    assert (records["note"] == "").all() and (records["total_macs"] <= records["limit_macs"]).all()
    assert (records[list(CHARGED)].sum(axis=1) == records["total_macs"]).all()
    assert (records["nevis_flops"] == 2 * records["total_macs"]).all()  # nothing is validated
    assert (records["steps"].gt(0) == LEARNERS[learner].fine_tunes).all()
    assert records["error_test"].between(0, 1).all()
    assert set(records.loc[records["event"] == 0, "started_from"]) == {"pretrained"}
    if learner == "previous":
        assert records["started_from"].tolist() == ["pretrained", "pretrained", "0", "0", "1", "1"]
    assert not list(tmp_path.glob("*/*/*.safetensors")), "networks or checkpoints stay behind"


@pytest.mark.parametrize("learner", [pytest.param("previous", marks=pytest.mark.slow), "dynamic"])
def test_a_killed_run_of_a_learner_with_memory_goes_on_to_the_same_records(learner, tmp_path):
    fields = STREAM | {"learner": learner}
    undisturbed = run_stream(RunSpec(**fields), tmp_path / "undisturbed")
    killed_run(fields, tmp_path / "killed")
    assert_same_records(run_stream(RunSpec(**fields), tmp_path / "killed"), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["dynamic", "independent"])
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, learner):
    """Of the learner with most state on disk, and of one without memory.

    A kill lands in reading, training, writing or starting.
    """
    fields = STREAM | {"learner": learner, "tasks": None, "budgets": [32, 48, 64, 80, 96, 128]}
    undisturbed = run_stream(RunSpec(**fields), tmp_path / "undisturbed")
    out, rng = tmp_path / "killed", np.random.default_rng(0)
    for _ in range(20):
        begun = len(list(out.glob("*/events/*")))
        process = start_run(fields, out)
        # From the first new file on, for as long as two events take.
        while len(list(out.glob("*/events/*"))) == begun and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2 * undisturbed["seconds"].mean()))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    assert_same_records(run_stream(RunSpec(**fields), out), undisturbed)


def test_calibration_of_a_network_that_goes_on_is_paid_once(tmp_path):
    looks = {"criterion": "activation_images", "repair": "least_squares", "calibration_images": 8}
    records = run_stream(RunSpec(**STREAM | looks | {"learner": "previous", "budgets": [128]}), tmp_path)
    assert records["calibration_macs"].gt(0).tolist() == [True, False, False]
    alone = run_stream(RunSpec(**STREAM | looks | {"budgets": [128]}), tmp_path)
    assert alone["calibration_macs"].gt(0).all()


def test_a_search_over_a_stream_is_in_the_records(tmp_path):
    fields = STREAM | {**NO_RATES, "trials": 4, "budgets": [512], "tasks": ["mnist"]}
    records = run_stream(RunSpec(**fields), tmp_path)
    assert records["search_macs"].gt(0).all() and records["used_weight_decay"].gt(0).all()
    assert records["validation_macs"].gt(0).all() and records["note"].eq("").all()
    counted = records["train_macs"] + records["calibration_macs"] + records["search_macs"]
    assert (records["nevis_flops"] == 2 * counted).all()


def test_probe_has_nothing_to_search(tmp_path):
    with pytest.raises(Exception, match="learner='probe' has no recipe to search: expected trials=1"):
        RunSpec(**ONE_TASK | {"learner": "probe", "trials": 2, **NO_RATES})
