"""Pretraining on a tiny archive of the official layout: resumed runs, the card, and damaged input."""

import io
import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_same_state
from PIL import Image
from safetensors.torch import load_file

from lib.common.errors import UserError
from lib.common.paths import LIB
from lib.networks.backbone import list_backbones, load_backbone
from lib.networks.catalogue import RESNETS_64, WEIGHTS, build_resnet_64
from lib.networks.macs import forward_macs
from tools.pretrain import (
    TRIED,
    PretrainSpec,
    class_group,
    loss_of,
    pretrain,
    random_resized_crops,
    rate_at,
    read_tiny_imagenet,
    teach,
    write_card,
)

CLASSES = ["n12267677", "n01443537", "n07873807"]  # not in order: an acorn, a fish, a pizza


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The official layout with a dozen images, each class of a colour of its own."""
    file = tmp_path_factory.mktemp("archive") / "tiny-imagenet-200.zip"
    generator = np.random.default_rng(0)

    def jpeg(label: int) -> bytes:
        pixels = generator.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        pixels[..., label] += 180
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "JPEG")
        return target.getvalue()

    with zipfile.ZipFile(file, "w") as opened:
        rows = []
        for label, wordnet_id in enumerate(CLASSES):
            for number in range(8):
                name = f"tiny-imagenet-200/train/{wordnet_id}/images/{wordnet_id}_{number}.JPEG"
                opened.writestr(name, jpeg(label))
            for number in range(3):
                opened.writestr(f"tiny-imagenet-200/val/images/val_{label}{number}.JPEG", jpeg(label))
                rows.append(f"val_{label}{number}.JPEG\t{wordnet_id}\t0\t0\t63\t63")
        opened.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(rows) + "\n")
    return file


def spec(**fields) -> PretrainSpec:
    tiny = {"blocks": 2, "block_epochs": 2, "batch_size": 8, "average_steps": 2, "precision": "fp32"}
    slow = {"network": "resnet18eighth_64", "learning_rate": 0.01, "distillation": 0.5, "teacher_size": 32}
    return PretrainSpec(**{**tiny, **slow, **fields})


WEIGHTS_FILE = "resnet18eighth_64.safetensors"


def same_weights(first, second) -> bool:
    one, other = (load_file(folder / WEIGHTS_FILE) for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_labels_are_the_sorted_wordnet_ids(archive):
    training, validation, classes = read_tiny_imagenet(archive)
    assert classes == sorted(CLASSES)
    assert training.images.shape == (24, 64, 64, 3) and validation.images.shape == (9, 64, 64, 3)
    for part in (training, validation):
        for pixels, label in zip(part.images, part.labels, strict=True):
            brightest = pixels.reshape(-1, 3).mean(0).argmax()
            assert CLASSES[brightest] == classes[label]


def test_killed_and_resumed_is_the_same_as_undisturbed(archive, tmp_path, monkeypatch):
    whole = pretrain(spec(), archive, tmp_path / "whole", checkpoint_steps=2)
    assert whole["block"].tolist() == [1, 1, 2, 2] and whole["epoch"].tolist() == [1, 2, 3, 4]

    save, calls = torch.save, []

    def kill_at_the_fifth(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 5:  # in the middle of the second block, whose teacher is computed already
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", kill_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        pretrain(spec(), archive, tmp_path / "killed", checkpoint_steps=2)
    monkeypatch.undo()
    resumed = pretrain(spec(), archive, tmp_path / "killed", checkpoint_steps=2)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert resumed.drop(columns="seconds").equals(whole.drop(columns="seconds"))


def test_a_block_needs_nothing_but_the_weights_before_it(archive, tmp_path):
    """The committed fp16 file of the first block, in a folder of its own, goes on to the same weights."""
    pretrain(spec(), archive, tmp_path / "whole")
    first = pretrain(spec(), archive, tmp_path / "first", until=1)
    assert first["block"].tolist() == [1, 1]
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first" / WEIGHTS_FILE, tmp_path / "second" / WEIGHTS_FILE)
    second = pretrain(spec(), archive, tmp_path / "second")
    assert second["block"].tolist() == [1, 1, 2, 2]
    assert same_weights(tmp_path / "whole", tmp_path / "second")
    assert not same_weights(tmp_path / "first", tmp_path / "second")
    with pytest.raises(UserError, match="another spec"):
        pretrain(spec(seed=1), archive, tmp_path / "second")


def test_a_block_warms_up_falls_to_zero_and_later_peaks_are_lower():
    of = spec(block_epochs=4, warmup_epochs=1, learning_rate=0.4, later_rate=0.5)
    for block, peak in ((0, 0.4), (1, 0.2)):
        rates = [rate_at(of, block, progress) for progress in np.linspace(0, 1, 9)]
        assert rates[0] == rates[-1] == 0 and max(rates) == rates[2] == pytest.approx(peak)
        assert all(np.diff(rates[2:]) < 0)


def test_the_teacher_knows_the_classes_and_is_computed_once(archive, tmp_path, monkeypatch):
    training, validation, classes = read_tiny_imagenet(archive)
    monkeypatch.setattr("tools.pretrain.HEAD_EPOCHS", 300)
    taught = teach(spec(teacher_size=96), training, validation, classes, tmp_path)
    assert taught.logits.shape == (24, 3) and taught.logits.dtype == np.float16
    assert taught.top1 == 1 and (taught.logits.argmax(1) == training.labels).all()
    # By the list of ImageNet's classes: 1 is the goldfish, 963 the pizza, 988 the acorn.
    network = load_backbone("efficientnet_lite2")
    small = torch.from_numpy(validation.images).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(small, (96, 96), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.no_grad():
        logits = network.classifier(network((small / 255 - 0.5) / 0.5))[:, [1, 963, 988]]
    right = (logits.argmax(1).numpy() == validation.labels).mean()
    assert taught.top1_zero_shot == pytest.approx(right, abs=1e-4)

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("torch.nn.functional.interpolate", never)
    again = teach(spec(teacher_size=96), training, validation, classes, tmp_path)
    assert np.array_equal(again.logits, taught.logits)


def test_loss_is_the_mixture_that_its_formula_says():
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    of = spec(distillation=0.3, temperature=4, label_smoothing=0.1)
    wanted = np.eye(3)[labels] * 0.9 + 0.1 / 3
    answers = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    hard = -(wanted * np.log(answers)).sum(1).mean()
    soft = [np.exp(x.numpy() / 4) / np.exp(x.numpy() / 4).sum(1, keepdims=True) for x in (taught, logits)]
    apart = (soft[0] * np.log(soft[0] / soft[1])).sum(1).mean() * 16
    assert loss_of(of, logits, labels, taught).item() == pytest.approx(0.7 * hard + 0.3 * apart, rel=1e-6)
    assert loss_of(of, logits, labels, None).item() == pytest.approx(hard)


def test_card_measures_the_weights(archive, tmp_path):
    pretrain(spec(), archive, tmp_path)
    card = write_card(spec(), archive, tmp_path, note="A test.")
    assert json.loads(json.dumps(card)) == json.loads((tmp_path / "resnet18eighth_64.json").read_text())
    assert set(card["top1_by_class"]) == set(CLASSES)
    assert set(card["top1_by_group"]) == {"animals", "food", "plants"}
    assert card["top1"] == pytest.approx(np.mean(list(card["top1_by_class"].values())), abs=0.01)
    assert {"data", "command", "spec", "seconds", "licence", "curve", "processor", "tried"} <= card.keys()
    assert card["blocks_done"] == 2 and card["note"] == "A test."
    assert card["teacher"].keys() == {"top1_zero_shot", "top1"}
    # Without a teacher there is none to tell of.
    alone = spec(distillation=0, blocks=1)
    pretrain(alone, archive, tmp_path / "alone")
    assert write_card(alone, archive, tmp_path / "alone")["teacher"] is None


def test_what_else_was_tried_differs_from_the_recipe_in_what_it_says():
    tried = json.loads(TRIED.read_text())
    assert all(row.keys() == {"network", "epochs", "blocks", "what", "top1"} for row in tried)
    assert {row["network"] for row in tried} <= RESNETS_64.keys() and all(0 < row["top1"] < 1 for row in tried)
    # Of each network's full trainings the recipe's own is the best.
    table = pd.DataFrame(tried).query("epochs > 4")
    best = table.loc[table.groupby("network")["top1"].idxmax(), "what"]
    assert len(best) == 3 and best.str.endswith("(the recipe)").all()
    assert (PretrainSpec().blocks, PretrainSpec().block_epochs, PretrainSpec().distillation) == (1, 20, 0)


@pytest.mark.parametrize("network", ["resnet18half_64", "resnet18quarter_64", "resnet18eighth_64", "resnet26_64"])
def test_the_committed_networks_have_one_recipe(network):
    """Fields that an older card does not have did not exist, and are those of no blocks and no teacher."""
    card = json.loads((LIB / "networks" / "weights" / f"{network}.json").read_text())
    ours = PretrainSpec(network=network).model_dump()
    assert card["spec"].get("epochs", ours["block_epochs"]) == ours["block_epochs"]
    asked = {name: value for name, value in card["spec"].items() if name not in ("threads", "epochs")}
    assert asked == {name: json.loads(json.dumps(ours[name])) for name in asked}


def test_crops_stay_within_the_image_and_the_whole_image_is_one(archive):
    training, _, _ = read_tiny_imagenet(archive)
    pixels = torch.from_numpy(training.images[:4])
    crops = random_resized_crops(pixels, 32, 0.25, torch.Generator().manual_seed(0))
    assert crops.shape == (4, 3, 32, 32)
    assert crops.min() >= pixels.min() and crops.max() <= pixels.max()
    constant = torch.full((2, 64, 64, 3), 77, dtype=torch.uint8)
    assert (random_resized_crops(constant, 48, 0.25, torch.Generator().manual_seed(1)) - 77).abs().max() < 1e-3


def test_bad_archives_are_refused_with_one_sentence(archive, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        pretrain(spec(), tmp_path / "nothing.zip", tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"no val/val_annotations\.txt"):
        pretrain(spec(), tmp_path / "folder", tmp_path)
    with pytest.raises(UserError, match="Unknown network"):
        pretrain(spec(network="alexnet"), archive, tmp_path)


def test_groups_of_classes():
    groups = [class_group(i) for i in ("n01443537", "n02509815", "n02666196", "n06596364", "n07873807")]
    assert groups == ["animals", "animals", "things", "things", "food"]
    assert [class_group(i) for i in ("n09193705", "n12267677")] == ["places", "plants"]


@pytest.mark.parametrize("name", [name for name in RESNETS_64 if name in list_backbones()])
def test_shipped_weights_have_a_card_and_are_those_measured(name):
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    assert card["validation_images"] == 10_000 and card["training_images"] == 100_000
    assert abs(card["top1"] - card["top1_fp16"]) <= 0.001
    least = {"resnet26_64": 0.45, "resnet18half_64": 0.38, "resnet18quarter_64": 0.32, "resnet18eighth_64": 0.25}
    assert card["top1"] >= least.get(name, 0.45)
    assert len(card["top1_by_class"]) == 200
    network = load_backbone(name)
    assert network.classifier.out_features == 200
    stored = load_file(WEIGHTS / f"{name}.safetensors")
    again = build_resnet_64(name)
    again.load_state_dict({**again.state_dict(), **{key: value.float() for key, value in stored.items()}})
    assert_same_state(again, network.state_dict())


def test_the_ladder_goes_from_large_to_small_and_its_files_stay_small():
    macs = [forward_macs(build_resnet_64(name).eval(), 64) / 1e6 for name in RESNETS_64]
    assert macs == pytest.approx([334, 191, 47, 11, 3.4], rel=0.02)
    listed = [name for name in list_backbones() if name in RESNETS_64]
    assert listed == [name for name in RESNETS_64 if name in listed] and "resnet26_64" in listed
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*.safetensors")) <= 100 * 2**20
