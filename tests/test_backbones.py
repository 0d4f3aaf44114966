"""Backbones: names, shapes, pretrained weights that recognise photographs, errors without a network."""

import re
from pathlib import Path

import pytest
import torch
from helpers import state_of
from sklearn.datasets import load_sample_image

from lib.common.errors import UserError
from lib.common.vision import timm, torchvision
from lib.networks import backbone as backbones
from lib.networks.backbone import list_backbones, load_backbone

OFFLINE = list_backbones(offline_only=True)


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> Path:
    """Nothing can be downloaded. Returns where torch would keep downloaded weights."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def normalised(network, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (3, H, W) in 0..255 as the network wants them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))
    return (pixels / 255 - mean) / std


def test_names_are_unique_and_the_main_one_is_first_and_offline():
    names = list_backbones()
    assert len(names) == len(set(names)) >= 5
    assert names[0] == OFFLINE[0]
    assert [name for name in names if name in OFFLINE] == OFFLINE


@pytest.mark.parametrize("name", list_backbones())
def test_random_weights_need_no_file_and_no_network(name, no_network, monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"read {arguments}")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(backbones.importlib.util, "find_spec", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    torch.manual_seed(1)
    network = load_backbone(name, pretrained=False)
    assert not network.training and network.name == name
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", list_backbones())
@torch.inference_mode()
def test_backbone_maps_images_to_representations(name):
    network = load_backbone(name, pretrained=False)
    side = network.image_size if network.fixed_size else 64
    representation = network(torch.randn(2, 3, side, side))
    assert representation.shape == (2, network.feature_dim)
    if network.classifier is not None:
        assert network.classifier(representation).shape == (2, network.classifier.out_features)
        assert network.classifier.out_features >= 100
    if network.fixed_size:
        with pytest.raises(UserError, match=f"takes images of {side} px only"):
            network(torch.randn(2, 3, 64, 64))
    assert len(network.mean) == len(network.std) == 3
    assert all(0 < mean < 1 for mean in network.mean) and all(0 < std < 1 for std in network.std)
    assert isinstance(network.image_size, int) and 32 <= network.image_size <= 512


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_backbones_load_their_weights_without_a_network(name, no_network):
    first, again = load_backbone(name), load_backbone(name)
    random = load_backbone(name, pretrained=False)
    for key, tensor in state_of(first).items():
        assert torch.equal(tensor, again.state_dict()[key])
        assert tensor.isfinite().all()
    assert not torch.equal(first.classifier.weight, random.classifier.weight)
    assert not no_network.exists()


@pytest.mark.parametrize(("photograph", "content"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
@torch.inference_mode()
def test_pretrained_network_recognises_photographs(lite0, photograph, content):
    """A Chinese palace and a flower, by ImageNet's own list of classes."""
    pixels = torch.tensor(load_sample_image(photograph)).permute(2, 0, 1)[None].float()
    height, width = pixels.shape[2:]
    square = pixels[..., (width - height) // 2 : (width + height) // 2]
    size = (lite0.image_size, lite0.image_size)
    square = torch.nn.functional.interpolate(square, size, mode="bilinear", antialias=True)
    best = lite0.classifier(lite0(normalised(lite0, square)))[0].topk(5).indices.tolist()
    names = [timm.data.ImageNetInfo().index_to_description(index) for index in best]
    assert any(content in name for name in names), names


def test_unknown_name_is_refused_with_the_others():
    with pytest.raises(UserError, match="'alexnet'") as error:
        load_backbone("alexnet")
    assert all(name in str(error.value) for name in list_backbones())


HUB = [name for name in list_backbones() if name.startswith("deit")]


@pytest.mark.parametrize("name", HUB)
def test_without_a_network_the_error_names_the_hub_and_what_needs_none(name, no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read at its import
    with pytest.raises(UserError, match="Hugging Face hub") as error:
        load_backbone(name)
    assert all(offline in str(error.value) for offline in OFFLINE)


@pytest.mark.parametrize("name", [name for name in list_backbones() if name not in (*OFFLINE, *HUB)])
def test_without_a_network_the_error_says_which_file_goes_where(name, no_network):
    with pytest.raises(UserError) as error:
        load_backbone(name)
    message = str(error.value)
    assert re.search(rf"{no_network / name}[-_][\w-]+\.pth", message)
    assert "https://" in message
    assert all(offline in message for offline in OFFLINE)


def _other_network(file: Path) -> None:
    torch.save(torchvision.models.resnet34().state_dict(), file)


def _other_weights(file: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), file)


def _cut_off(file: Path) -> None:
    _other_network(file)
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize(
    "write",
    [
        _other_network,
        _other_weights,
        _cut_off,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("<html>"),
    ],
    ids=["other network", "other weights", "cut off", "empty", "a web page"],
)
def test_wrong_weights_file_is_refused(no_network, write):
    no_network.mkdir(parents=True)
    file = no_network / "resnet18-f37072fd.pth"
    write(file)
    with pytest.raises(UserError, match=file.name):
        load_backbone("resnet18")
