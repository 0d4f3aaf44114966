"""Backbones: names, shapes, pretrained weights that recognise photographs, errors without a network."""

import re
import urllib.request
from pathlib import Path

import pytest
import torch
from helpers import state_of
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from lib.common.errors import UserError
from lib.common.vision import timm, torchvision
from lib.networks import catalogue
from lib.networks.backbone import list_backbones, load_backbone, weights_hash

OFFLINE = list_backbones(offline_only=True)


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> Path:
    """Nothing can be downloaded. Returns where torch would keep downloaded weights."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urllib keeps the proxies of its first call for the whole process: these are not to outlive the test.
    monkeypatch.setattr(urllib.request, "_opener", None)
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
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", refuse)
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


# --- one's own weights ----------------------------------------------------------------------------------

OWN = {
    "timm:resnet18": (lambda: timm.create_model("resnet18"), "fc"),
    "timm:mobilenetv3_small_100": (lambda: timm.create_model("mobilenetv3_small_100"), "classifier"),
    "torchvision:resnet18": (torchvision.models.resnet18, "fc"),
    "torchvision:mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, "classifier.3"),
    "resnet18": (torchvision.models.resnet18, "fc"),
    "efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), "classifier"),
}
WRITTEN = {
    "plain": lambda state: state,
    "under state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "under model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled, in lightning": lambda state: {
        "state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}
    },
    "without counters": lambda state: {n: v for n, v in state.items() if not n.endswith("batches_tracked")},
    "in half precision": lambda state: {n: v.half().float() if v.is_floating_point() else v for n, v in state.items()},
}


def _trained(name: str) -> tuple[torch.nn.Module, str]:
    """A library's own network with other weights than any other, and what it calls its classifier."""
    torch.manual_seed(7)
    build, head = OWN[name]
    return build().eval(), head


def _assert_is(network, trained, head: str) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = trained(images)
        classifier = trained.get_submodule(head)
        torch.testing.assert_close(network.classifier(network(images)), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(network.classifier.weight, classifier.weight) and not network.training


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_own_weights_are_loaded(name, suffix, folder):
    trained, head = _trained(name)
    file = folder / f"mine.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(trained.state_dict(), file)
    _assert_is(load_backbone(name, weights=file), trained, head)
    _assert_is(load_backbone(name, pretrained=False, weights=str(file)), trained, head)


@pytest.mark.parametrize("written", WRITTEN)
def test_own_weights_are_loaded_however_they_were_written(written, folder):
    trained, head = _trained("timm:resnet18")
    if written == "in half precision":
        trained = trained.half().float()
    torch.save(WRITTEN[written](trained.state_dict()), folder / "mine.pth")
    _assert_is(load_backbone("timm:resnet18", weights=folder / "mine.pth"), trained, head)


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "efficientnet_lite0"])
def test_own_weights_bring_their_own_classifier_or_none(name, classes, folder):
    trained, head = _trained(name)
    width = trained.get_submodule(head).in_features
    trained.set_submodule(head, torch.nn.Linear(width, classes) if classes else torch.nn.Identity())
    torch.save(trained.state_dict(), folder / "mine.pth")
    network = load_backbone(name, weights=folder / "mine.pth")
    if classes:
        _assert_is(network, trained, head)
    else:
        assert network.classifier is None and network(torch.zeros(1, 3, 64, 64)).shape == (1, width)


def test_a_backbones_own_state_dict_and_vgg_without_its_linear_layers_load(folder):
    torch.manual_seed(3)
    for name in ("timm:regnety_002", "torchvision:vgg11_bn", "torchvision:vit_b_32"):
        first = load_backbone(name, pretrained=False)
        torch.save(first.state_dict(), folder / "mine.pth")
        assert weights_hash(load_backbone(name, weights=folder / "mine.pth")) == weights_hash(first)
    trained = torchvision.models.vgg11_bn()
    torch.save(trained.state_dict(), folder / "vgg.pth")
    network = load_backbone("torchvision:vgg11_bn", weights=folder / "vgg.pth")
    assert torch.equal(network.body.features[0].weight, trained.features[0].weight)


def _without(state, name):
    return {key: value for key, value in state.items() if key != name}


class Unsafe:
    pass


MISFITS = {
    "another network": (lambda state: timm.create_model("resnet34").state_dict(), "unexpected body.layer1.2"),
    "a tensor missing": (lambda state: _without(state, "layer2.0.conv1.weight"), "without body.layer2.0.conv1"),
    "one too many": (lambda state: {**state, "extra.weight": torch.ones(1)}, "unexpected body.extra.weight"),
    "another shape": (lambda state: {**state, "conv1.weight": torch.ones(64, 3, 3, 3)}, "shape of body.conv1"),
    "a classifier of other inputs": (lambda state: {**state, "fc.weight": torch.ones(5, 9)}, "classifier.weight"),
    "nothing": (lambda state: {}, "without body.bn1"),
    "a list": (lambda state: [1, 2], "holds no state dict"),
    "numbers": (lambda state: {"conv1.weight": 3}, "holds no state dict"),
    "a pickled object": (lambda state: Unsafe(), "nothing else"),
    "a pickled network": (lambda state: torch.nn.Linear(2, 2), "nothing else"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_weights_that_do_not_fit_are_refused_in_a_sentence_that_says_where(misfit, folder):
    change, expected = MISFITS[misfit]
    torch.save(change(timm.create_model("resnet18").state_dict()), folder / "mine.pth")
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        load_backbone("timm:resnet18", weights=folder / "mine.pth")
    assert "mine.pth" in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["missing.pth", "empty.pth", "text.pth", "empty.safetensors"])
def test_unreadable_weights_are_refused(name, folder):
    if name != "missing.pth":
        (folder / name).write_text("hello" if name == "text.pth" else "")
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        load_backbone("timm:resnet18", weights=folder / name)


@pytest.mark.parametrize(
    ("name", "close"),
    [("timm:resnet_18", "resnet18"), ("torchvision:resnet19", "resnet18"), ("timm:resnet18.mine", "resnet18")],
)
def test_unknown_networks_of_a_library_are_refused_with_the_nearest_names(name, close):
    with pytest.raises(UserError, match=re.escape(repr(name))) as error:
        load_backbone(name, pretrained=False)
    assert close in str(error.value)


def test_networks_of_a_library_know_the_images_that_their_weights_want():
    efficientnet, inception = (
        load_backbone(name, pretrained=False)
        for name in ("torchvision:efficientnet_b3", "timm:mobilenetv3_large_100.miil_in21k_ft_in1k")
    )
    assert efficientnet.image_size == 300 and efficientnet.mean == (0.485, 0.456, 0.406)
    assert inception.mean == (0.0, 0.0, 0.0) and inception.std == (1.0, 1.0, 1.0)


def test_weights_hash_tells_values_types_shapes_and_names_apart():
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    twin = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    assert weights_hash(first) != weights_hash(twin)
    twin.load_state_dict(first.state_dict())
    assert weights_hash(first) == weights_hash(twin) == weights_hash(twin.train())
    found = {weights_hash(first)}
    found.add(weights_hash(torch.nn.Sequential(*first, torch.nn.ReLU(), torch.nn.Linear(1, 1))))
    found.add(weights_hash(torch.nn.Sequential(torch.nn.ReLU(), *first)))
    found.add(weights_hash(twin.bfloat16()))
    twin.load_state_dict(first.state_dict())
    first[0].weight.data = first[0].weight.data.reshape(2, 8)
    found.add(weights_hash(first))
    assert len(found) == 5
