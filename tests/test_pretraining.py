"""Pretraining on a tiny archive of the official layout: resumed runs, the card, and damaged input."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from helpers import assert_same_state
from PIL import Image
from safetensors.torch import load_file

from lib.common.errors import UserError
from lib.networks.backbone import list_backbones, load_backbone
from lib.networks.catalogue import RESNETS_64, WEIGHTS, build_resnet_64
from tools.pretrain import (
    PretrainSpec,
    class_group,
    pretrain,
    random_resized_crops,
    read_tiny_imagenet,
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
    return PretrainSpec(
        network="resnet18half_64",
        batch_size=8,
        average_steps=2,
        threads=1,
        precision="fp32",
        **{"epochs": 3, "warmup_epochs": 0.5, "learning_rate": 0.01, **fields},
    )


def test_labels_are_the_sorted_wordnet_ids(archive):
    (images, labels), (val_images, val_labels), classes = read_tiny_imagenet(archive)
    assert classes == sorted(CLASSES)
    assert images.shape == (24, 64, 64, 3) and val_images.shape == (9, 64, 64, 3)
    for pixels, label in zip([*images, *val_images], [*labels, *val_labels], strict=True):
        brightest = pixels.reshape(-1, 3).mean(0).argmax()
        assert CLASSES[brightest] == classes[label]


def test_interrupted_and_resumed_is_the_same_as_undisturbed(archive, tmp_path, monkeypatch):
    whole = pretrain(spec(), archive, tmp_path / "whole", checkpoint_steps=2)
    assert len(whole) == 3 and (tmp_path / "whole/resnet18half_64.safetensors").exists()

    save, calls = torch.save, []

    def kill_after_two(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", kill_after_two)
    with pytest.raises(KeyboardInterrupt):
        pretrain(spec(), archive, tmp_path / "killed", checkpoint_steps=2)
    monkeypatch.undo()
    resumed = pretrain(spec(), archive, tmp_path / "killed", checkpoint_steps=2)
    first, second = (load_file(tmp_path / run / "resnet18half_64.safetensors") for run in ("whole", "killed"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert resumed.drop(columns="seconds").equals(whole.drop(columns="seconds"))


def test_goes_on_from_weights_alone(archive, tmp_path):
    pretrain(spec(epochs=2), archive, tmp_path / "first")
    weights = tmp_path / "first/resnet18half_64.safetensors"
    curve = pretrain(spec(epochs=3), archive, tmp_path / "second", resume_from=weights)
    assert curve["epoch"].tolist() == [3.0]


def test_card_measures_the_weights(archive, tmp_path):
    pretrain(spec(), archive, tmp_path)
    card = write_card(spec(), archive, tmp_path)
    assert json.loads(json.dumps(card)) == json.loads((tmp_path / "resnet18half_64.json").read_text())
    assert set(card["top1_by_class"]) == set(CLASSES)
    assert set(card["top1_by_group"]) == {"animals", "food", "plants"}
    assert card["top1"] == pytest.approx(np.mean(list(card["top1_by_class"].values())), abs=0.01)
    assert {"data", "command", "spec", "seconds", "licence", "curve", "processor"} <= card.keys()
    with pytest.raises(UserError, match="another spec"):
        pretrain(spec(seed=1), archive, tmp_path)


def test_crops_stay_within_the_image_and_the_whole_image_is_one(archive):
    (images, _), _, _ = read_tiny_imagenet(archive)
    pixels = torch.from_numpy(images[:4])
    crops = random_resized_crops(pixels, 32, 0.25, torch.Generator().manual_seed(0))
    assert crops.shape == (4, 3, 32, 32)
    assert crops.min() >= pixels.min() and crops.max() <= pixels.max()
    constant = torch.full((2, 64, 64, 3), 77, dtype=torch.uint8)
    assert (
        random_resized_crops(constant, 48, 0.25, torch.Generator().manual_seed(1)) - 77
    ).abs().max() < 1e-3


def test_bad_archives_are_refused_with_one_sentence(archive, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        pretrain(spec(), tmp_path / "nothing.zip", tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"no val/val_annotations\.txt"):
        pretrain(spec(), tmp_path / "folder", tmp_path)
    with pytest.raises(UserError, match="Unknown network"):
        pretrain(spec().model_copy(update={"network": "alexnet"}), archive, tmp_path)


def test_groups_of_classes():
    groups = [class_group(i) for i in ("n01443537", "n02509815", "n02666196", "n06596364", "n07873807")]
    assert groups == ["animals", "animals", "things", "things", "food"]
    assert [class_group(i) for i in ("n09193705", "n12267677")] == ["places", "plants"]


@pytest.mark.parametrize("name", [name for name in RESNETS_64 if name in list_backbones()])
def test_shipped_weights_have_a_card_and_are_those_measured(name):
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    assert card["validation_images"] == 10_000 and card["training_images"] == 100_000
    assert abs(card["top1"] - card["top1_fp16"]) <= 0.001
    assert card["top1"] >= (0.45 if name == "resnet26_64" else 0.38)
    assert len(card["top1_by_class"]) == 200
    network = load_backbone(name)
    assert network.classifier.out_features == 200
    stored = load_file(WEIGHTS / f"{name}.safetensors")
    again = build_resnet_64(name)
    again.load_state_dict({**again.state_dict(), **{key: value.float() for key, value in stored.items()}})
    assert_same_state(again, network.state_dict())


def test_large_network_is_the_main_backbone_and_the_small_one_a_third_at_most():
    names = list_backbones()
    assert names[:2] == list(RESNETS_64)
    assert sum(file.stat().st_size for file in WEIGHTS.glob("*.safetensors")) <= 60 * 2**20
