"""The explorer without a browser: what its controls do."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import explorer as explore
from explorer import Explorer
from lib.common.vision import timm
from lib.evidence.adviser import recommend
from lib.evidence.records import COMPARED, arms, load_records


@pytest.fixture(scope="module")
def explorer(tmp_path_factory) -> Explorer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore, "BACKBONES", ["resnet18half_64"])  # opens quickly
        return Explorer(tmp_path_factory.mktemp("explore"))


def test_every_control_changes_what_is_shown(explorer):
    changes = {"ratio": 0.25, "criterion": "l1", "repair": "none", "granularity": "channel"}
    for control, value in changes.items():
        before = explorer.summary.value, explorer.network_picture.value
        getattr(explorer, control).value = value
        assert explorer.summary.value != before[0], control
        assert (explorer.network_picture.value != before[1]) == (control != "repair")
    assert bytes(explorer.network_picture.value).startswith(b"\x89PNG")


def test_fine_tuning_on_own_images_draws_a_curve(explorer, tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "BUDGETS", [4, 16])
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(level - 30, level + 30, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{number}.png")
    explorer.folder.value = str(tmp_path)
    assert explorer.classes.value == "2 classes: dark, light"
    explorer.fine_tune()
    assert explorer.message.value.startswith("4: error ") and ", 16: error " in explorer.message.value
    assert explorer.curve_picture.layout.display == "" and not explorer.start.disabled
    assert bytes(explorer.curve_picture.value).startswith(b"\x89PNG")
    (axes,) = explore._curve({4: 0.5}, pd.DataFrame()).axes
    assert axes.get_xlabel() == "budget (dense images)"


def test_a_folder_that_is_not_there_is_one_sentence(explorer):
    explorer.folder.value = "/nowhere/at/all"
    assert "expected a folder at /nowhere/at/all" in explorer.classes.value
    explorer.fine_tune()
    assert "expected a folder at /nowhere/at/all" in explorer.message.value and not explorer.start.disabled


def test_a_task_s_classes_have_names(explorer):
    explorer.folder.value = ""
    explorer.task.value = "materials"
    assert explorer.classes.value.startswith("10 classes: ") and "0" not in explorer.classes.value[12:]
    explorer.task.value = "clipart_tags"
    assert explorer.classes.value.startswith("16 tags: ")


def test_it_says_what_did_best_on_other_tasks_and_opens_on_what_keeps_a_part_of_the_network(explorer):
    explorer.folder.value, explorer.task.value = "", "mnist"
    records = load_records("paper", *COMPARED)
    for budget in (16, 64, 256):
        best = arms(records).loc[recommend(budget, "mnist", records).arm, "label"]
        assert f"<b>{best}</b> ({budget})" in explorer.advice.value
    opened = re.search(r"fidelity <b>(.+?)</b>", Explorer().summary.value)
    assert float(opened[1]) > 0.3


def test_a_network_and_a_checkpoint_of_one_s_own_are_pruned_and_fine_tuned(explorer, tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "BUDGETS", [4])
    checkpoint = tmp_path / "mine.pth"
    torch.manual_seed(1)
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), checkpoint)
    explorer.folder.value, explorer.task.value = "", "mnist"
    explorer.weights.value = str(checkpoint)
    assert "does not fit resnet18half_64" in explorer.message.value
    explorer.network.value = "timm:resnet10t"
    assert explorer.message.value == "" and "million MACs" in explorer.summary.value
    explorer.fine_tune()
    assert explorer.message.value.startswith("4: error ")
    explorer.weights.value = str(tmp_path / "not there.pth")
    assert "not there.pth" in explorer.message.value
    explorer.network.value = explorer.weights.value = ""
    assert explorer.message.value == ""
