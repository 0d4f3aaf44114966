"""How long arms take is estimated from what they compute and how fast that is here."""

import pytest

from lib.learning.training import TaskNetwork
from lib.networks.backbone import load_backbone
from lib.networks.macs import forward_macs, training_macs
from lib.runs.spec import RunSpec
from tools import estimate

ARM = {"backbone": "resnet18half_64", "ratio": 0.0, "budgets": [16, 256], "tasks": ["mnist", "stamps"]}
TEST, TRAIN = 300 + 76, (700, 184)  # images of mnist and stamps


@pytest.fixture(autouse=True)
def speeds(monkeypatch):
    """Ten images a second in training, a hundred that are looked at."""
    monkeypatch.setattr(estimate, "trained", lambda *_: 10)
    monkeypatch.setattr(estimate, "seen", lambda *_: 100)
    monkeypatch.setattr(estimate, "STARTING", 0)


def test_fine_tuning_takes_the_budgets_and_measuring():
    unit = training_macs(TaskNetwork(load_backbone("efficientnet_lite0", pretrained=False), 10), 128)
    each = training_macs(TaskNetwork(load_backbone("resnet18half_64"), 10), 64)
    found = estimate.seconds_of(RunSpec(**ARM), 64)
    assert found == pytest.approx(2 * (16 + 256) * unit / each / 10 + 2 * TEST / 100, rel=1e-3)


def test_a_probe_looks_at_each_training_image_once_at_most():
    unit = training_macs(TaskNetwork(load_backbone("efficientnet_lite0", pretrained=False), 10), 128)
    affordable = 16 * unit // forward_macs(load_backbone("resnet18half_64"), 64)
    assert 100 < affordable < 184
    found = estimate.seconds_of(RunSpec(**ARM, learner="probe"), 64)
    assert found == pytest.approx((2 * affordable + sum(TRAIN) + TEST) / 100)
    # Images are counted at any size, and looked at at the arm's own.
    assert estimate.seconds_of(RunSpec(**ARM, learner="probe", image_size=64), 32) == found


def test_controls_measure_and_nothing_else():
    assert estimate.seconds_of(RunSpec(**ARM, learner="majority"), 64) == pytest.approx(TEST / 100)
    assert estimate.seconds_of(RunSpec(**ARM, learner="pixels"), 64) == 0


def test_pruning_looks_at_the_calibration_images():
    arm = ARM | {"learner": "majority", "evaluation_images": 50, "calibration_images": 64}
    dense, pruned = (estimate.seconds_of(RunSpec(**arm | {"ratio": ratio}), 64) for ratio in (0.0, 0.5))
    assert dense == pytest.approx(100 / 100) and pruned - dense == pytest.approx(estimate.LOOKS * 64 / 100)
