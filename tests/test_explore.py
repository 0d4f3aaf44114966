"""The explorer without a browser: what its controls do."""

import numpy as np
import pytest
from PIL import Image

import explorer as explore
from explorer import Explorer


@pytest.fixture(scope="module")
def explorer(tmp_path_factory) -> Explorer:
    found = Explorer(tmp_path_factory.mktemp("explore"))
    found.backbone.value = "resnet18half_64"
    return found


def test_every_control_changes_what_is_shown(explorer):
    changes = {"ratio": 0.25, "criterion": "l1", "repair": "none", "granularity": "channel"}
    for control, value in changes.items():
        before = explorer.summary.value, explorer.network_picture.value
        getattr(explorer, control).value = value
        assert explorer.summary.value != before[0], control
        assert (explorer.network_picture.value != before[1]) == (control in ("ratio", "granularity"))
    assert bytes(explorer.network_picture.value).startswith(b"\x89PNG")


def test_fine_tuning_on_own_images_draws_a_curve(explorer, tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "BUDGETS", [0.25, 0.5])
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(level - 30, level + 30, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{number}.png")
    explorer.folder.value = str(tmp_path)
    explorer.fine_tune()
    assert explorer.message.value.startswith("0.25: error ") and ", 0.5: error " in explorer.message.value
    assert explorer.curve_picture.layout.display == "" and not explorer.start.disabled
    assert bytes(explorer.curve_picture.value).startswith(b"\x89PNG")


def test_a_folder_that_is_not_there_is_one_sentence(explorer):
    explorer.folder.value = "/nowhere/at/all"
    explorer.fine_tune()
    assert "expected a folder at /nowhere/at/all" in explorer.message.value and not explorer.start.disabled
