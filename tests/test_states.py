"""Networks and images as users have them: in whatever mode, type, wrapper or state."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, mixing_layers, random_backbone, state_of
from torch import nn
from torch.nn.utils import parametrizations, prune

from lib.common.errors import UserError
from lib.common.vision import timm, torchvision
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.macs import forward_macs
from lib.networks.measure import distance_to_pretraining, fidelity, measure_latency
from lib.pruning import load_pruned, plan_pruning
from lib.pruning.criteria import CRITERIA, Evidence, score_filters
from lib.pruning.repairs import REPAIRS
from lib.pruning.sites import find_sites
from lib.pruning.statistics import reader_moments

RECIPES = [
    {"criterion": "activation", "repair": "least_squares_synthetic"},
    {"criterion": "activation_images", "repair": "bn", "granularity": "channel"},
    {"criterion": "fpgm", "repair": "fold", "scope": "uniform"},
]


def tiny() -> Backbone:
    """A residual network of a few filters with statistics, scales and shifts of its own, at 32 px."""
    torch.manual_seed(0)
    body = timm.models.ResNet(timm.models.resnet.BasicBlock, (1, 1, 2, 1), num_classes=0, channels=(16, 16, 24, 32))
    for norm in (module for module in body.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.5)
        nn.init.normal_(norm.running_mean, 0, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return Backbone("tiny", body, nn.Linear(32, 5), 32, (0.5,) * 3, (0.5,) * 3).eval()


def images(count: int = 4, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def every(kind, network, change):
    for module in list(network.modules()):
        if isinstance(module, kind):
            change(module)
    return network


def hooked(network: Backbone) -> Backbone:
    network.body.layer4.register_forward_hook(lambda *_: None)
    network.body.layer3.register_forward_pre_hook(lambda *_: None)
    network.body.layer2.register_full_backward_hook(lambda *_: None)
    return network


def with_gradients(network: Backbone) -> Backbone:
    with torch.enable_grad():
        network(images()).sum().backward()
    return network


def compiled_inside(network: Backbone) -> Backbone:
    network.body.layer1.compile()
    return network


def torchvision_frozen(network: Backbone) -> Backbone:
    for name, norm in list(network.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            frozen = torchvision.ops.FrozenBatchNorm2d(norm.num_features, norm.eps)
            frozen.load_state_dict({n: v for n, v in norm.state_dict().items() if "batches" not in n})
            parts = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
            network.set_submodule(name, nn.Sequential(frozen, *parts) if parts else frozen)
    return network


def masked(network: Backbone) -> Backbone:
    """Pruning masks of torch's own that keep everything."""
    return every(nn.Conv2d, network, lambda conv: prune.identity(conv, "weight"))


# Each leaves what the network computes as it was.
SAME = {
    "in training mode": lambda network: network.train(),
    "frozen": lambda network: network.requires_grad_(False),
    "channels last": lambda network: network.to(memory_format=torch.channels_last),
    "with gradients": with_gradients,
    "hooked": hooked,
    "masked": masked,
    "weight norm": lambda network: every(nn.Conv2d, network, nn.utils.weight_norm),
    "parametrised": lambda network: every(nn.Conv2d, network, parametrizations.weight_norm),
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled in DataParallel": lambda network: nn.DataParallel(torch.compile(network)),
    "a layer compiled": compiled_inside,
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "momentum None": lambda network: every(nn.BatchNorm2d, network, lambda norm: setattr(norm, "momentum", None)),
    "another classifier": lambda network: setattr(network, "classifier", nn.Linear(32, 7)) or network,
    "no classifier": lambda network: setattr(network, "classifier", None) or network,
}


def in_state(state: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm is deprecated, and still there
        return SAME[state](tiny())


@pytest.mark.parametrize("state", SAME)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["criterion"])
@torch.no_grad()
def test_a_plan_does_not_depend_on_the_state_and_leaves_it(state, recipe):
    expected = plan_pruning(tiny(), 0.5, images=images(), **recipe)
    network = in_state(state)
    before, modes = state_of(network), [module.training for module in network.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    plan = plan_pruning(network, 0.5, images=images(), **recipe)
    assert plan.kept == expected.kept
    small = plan.apply(network)
    assert_same_state(network, before)
    assert modes == [module.training for module in network.modules()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()]
    reference = expected.apply(tiny())(images())
    torch.testing.assert_close(small.eval()(images()), reference, rtol=1e-3, atol=1e-4)
    assert isinstance(small, Backbone) and forward_macs(small, 32) < forward_macs(network, 32)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["criterion"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_a_network_of_another_type_is_pruned_in_it(dtype, recipe):
    network = tiny().to(dtype)
    before = state_of(network)
    small = plan_pruning(network, 0.5, images=images(), **recipe).apply(network)
    assert_same_state(network, before)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    # As the same network in float32, and no further from it than the type allows.
    twin = network.to(torch.float32)
    expected = plan_pruning(twin, 0.5, images=images(), **recipe).apply(twin)(images())
    found = small(images().to(dtype)).float()
    assert (found - expected).norm() < {torch.float64: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.2}[
        dtype
    ] * expected.norm()


@torch.no_grad()
def test_norms_in_float32_within_a_network_in_bfloat16():
    network = every(nn.BatchNorm2d, tiny().bfloat16(), lambda norm: norm.float())
    small = plan_pruning(network, 0.5).apply(network)
    assert {parameter.dtype for parameter in small.body.layer1[0].parameters()} == {torch.float32, torch.bfloat16}


@torch.no_grad()
def test_masks_are_honoured():
    """A masked network is that whose weights are zero there."""
    network, zeroed = tiny(), tiny()
    every(nn.Conv2d, network, lambda conv: prune.l1_unstructured(conv, "weight", 0.4))
    for name, layer in mixing_layers(zeroed).items():
        if isinstance(layer, nn.Conv2d):
            layer.weight.mul_(network.get_submodule(name).weight_mask)
    plan, expected = (plan_pruning(each, 0.5, "l1", scope="uniform") for each in (network, zeroed))
    assert plan.kept == expected.kept != plan_pruning(tiny(), 0.5, "l1", scope="uniform").kept
    small = plan.apply(network)
    assert not any(name.endswith("_mask") for name in small.state_dict())
    torch.testing.assert_close(small(images()), expected.apply(zeroed)(images()))
    assert hasattr(network.body.conv1, "weight_orig")


def without(attribute: str):
    def change(norm: nn.BatchNorm2d) -> None:
        for name in attribute.split():
            setattr(norm, name, None)

    return lambda: every(nn.BatchNorm2d, tiny(), change)


REFUSED = {
    "no running statistics": (without("running_mean running_var"), "track_running_stats=True"),
    "no scale": (without("weight bias"), "affine=True"),
    "on the meta device": (lambda: tiny().to("meta"), "meta device"),
    "pruned already": (lambda: plan_pruning(tiny(), 0.5).apply(tiny()), "pruned already"),
    "torchvision's own": (torchvision.models.resnet18, "ResNet is no Backbone: expected load_backbone"),
    "timm's own": (lambda: timm.create_model("resnet18"), "ResNet is no Backbone: expected load_backbone"),
    "in a Sequential": (lambda: nn.Sequential(tiny()), "Sequential is no Backbone"),
    "a weight that is NaN": (
        lambda: every(nn.Conv2d, tiny(), lambda conv: conv.weight.data[0].fill_(torch.nan)),
        "not finite",
    ),
}


@pytest.mark.parametrize("state", REFUSED)
def test_states_that_cannot_be_pruned_are_refused_in_one_sentence(state):
    build, expected = REFUSED[state]
    network = build()
    for request in ({}, {"criterion": "activation", "repair": "none"}):
        with pytest.raises(UserError, match=expected):
            plan_pruning(network, 0.5, **request)


# --- images -----------------------------------------------------------------------------------------------

ACCEPTED = {
    "float64": lambda: images().double(),
    "numpy": lambda: images().numpy(),
    "numpy in float64": lambda: images().double().numpy(),
    "read-only numpy": lambda: np.frombuffer(images().numpy().tobytes(), np.float32).reshape(4, 3, 32, 32),
    "numpy backwards twice": lambda: images().numpy()[::-1].copy()[::-1],
    "channels last": lambda: images().contiguous(memory_format=torch.channels_last),
    "needing a gradient": lambda: images().requires_grad_(),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_images_are_taken_as_they_come(kind):
    how = {"criterion": "activation_images", "repair": "least_squares"}
    expected = plan_pruning(tiny(), 0.5, images=images(), **how)
    assert plan_pruning(tiny(), 0.5, images=ACCEPTED[kind](), **how).kept == expected.kept


@pytest.mark.parametrize("repair", ["none", "fold", "least_squares"])
@pytest.mark.parametrize("freeze", [timm.layers.freeze_batch_norm_2d, torchvision_frozen])
@torch.no_grad()
def test_frozen_batch_norms_are_pruned_as_others_and_stay_frozen(freeze, repair):
    plans = [
        plan_pruning(network, 0.5, "activation_images", repair=repair, images=images())
        for network in (tiny(), freeze(tiny()))
    ]
    assert plans[0].kept == plans[1].kept
    small = plans[1].apply(freeze(tiny()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in small.body.layer1.modules())
    torch.testing.assert_close(small(images()), plans[0].apply(tiny())(images()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("repair", [name for name, kind in REPAIRS.items() if kind.needs == "images"])
@pytest.mark.parametrize("kind", ["one image", "constant", "half precision", "of another size", "all zero"])
@torch.no_grad()
def test_images_that_say_little_still_give_a_finite_network(kind, repair):
    made = {
        "one image": images(1, 64),
        "constant": torch.full((4, 3, 32, 32), 0.7),
        "half precision": images().half(),
        "of another size": images(side=48),
        "all zero": torch.zeros(4, 3, 32, 32),
    }[kind]
    network = tiny()
    plan = plan_pruning(network, 0.5, "activation_images", repair=repair, images=made)
    assert plan.apply(network)(images()).isfinite().all()


def with_value(value: float) -> torch.Tensor:
    made = images()
    made[1, 2, 3, 4] = value
    return made


BAD_IMAGES = {
    "NaN": (lambda: torch.full((2, 3, 32, 32), torch.nan), "not finite"),
    "one NaN": (lambda: with_value(torch.nan), "not finite"),
    "one infinity": (lambda: with_value(torch.inf), "not finite"),
    "beyond float32": (lambda: images().double() * 1e300, "not finite"),
    "huge": (lambda: images() * 1e38, "not finite"),
    "uint8": (lambda: (images() * 9).to(torch.uint8), "normalised"),
    "numpy of uint8": (lambda: np.zeros((2, 3, 32, 32), np.uint8), "normalised"),
    "channels behind": (lambda: torch.zeros(2, 32, 32, 3), "normalised floats"),
    "grey": (lambda: torch.zeros(2, 1, 32, 32), "normalised floats"),
    "one without a batch": (lambda: torch.zeros(3, 32, 32), "normalised floats"),
    "none": (lambda: torch.zeros(0, 3, 32, 32), "normalised floats"),
    "not square": (lambda: torch.zeros(2, 3, 32, 48), "square"),
    "a list": (lambda: [torch.zeros(3, 32, 32)], "list"),
    "a path": (lambda: "photos/", "str"),
}


@pytest.mark.parametrize(
    ("criterion", "repair"),
    [("activation_images", "none"), *(("l1", name) for name, kind in REPAIRS.items() if kind.needs == "images")],
)
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_other_images_are_refused_in_one_sentence(kind, criterion, repair):
    build, expected = BAD_IMAGES[kind]
    with pytest.raises(UserError, match=expected):
        plan_pruning(tiny(), 0.5, criterion, repair=repair, images=build())


def test_too_few_values_for_batch_norms_are_refused():
    with pytest.raises(UserError, match="too few"):
        plan_pruning(tiny(), 0.5, "l1", repair="bn", images=images(1, 16))


# --- scores -----------------------------------------------------------------------------------------------


def scores_of(network: Backbone, criterion: str) -> dict[str, torch.Tensor]:
    sites = find_sites(network)
    inputs = reader_moments(network, sites, images())
    return {
        site.name: score_filters(Evidence(network, site, torch.Generator().manual_seed(0), inputs), criterion)
        for site in sites
    }


@pytest.mark.parametrize("criterion", CRITERIA)
@torch.no_grad()
def test_scores_are_finite_whatever_is_zero(criterion):
    dead_block, dead_layer, untrained, empty = (tiny() for _ in range(4))
    nn.init.zeros_(dead_block.body.layer3[1].bn2.weight)
    nn.init.zeros_(dead_layer.body.layer2[0].conv1.weight)
    for norm in (m for m in untrained.modules() if isinstance(m, timm.models.resnet.BasicBlock)):
        nn.init.zeros_(norm.bn2.weight)
    for parameter in empty.parameters():
        nn.init.zeros_(parameter)
    for network in (dead_block, dead_layer, untrained, empty):
        for name, scores in scores_of(network, criterion).items():
            assert scores.isfinite().all(), name


@pytest.mark.parametrize("criterion", [name for name, kind in CRITERIA.items() if kind.comparable])
@torch.no_grad()
def test_a_dead_block_and_dead_channels_rank_last(criterion):
    network = tiny()
    block = network.body.layer3[1]
    if criterion != "lamp":  # which looks at the filters alone
        nn.init.zeros_(block.bn2.weight)
        kept = plan_pruning(network, 0.4, criterion, scope="global", repair="none", round_to=1, images=images()).kept
        assert len(kept["body.layer3.1.conv1"]) == 3  # the tenth that every site keeps
    network = tiny()
    for tensor in (network.body.layer3[1].conv1.weight, network.body.layer3[1].bn1.weight):
        tensor[:8] = 0
    network.body.layer3[1].bn1.bias[:8] = 0
    scores = scores_of(network, criterion)["body.layer3.1.conv1"]
    assert scores.topk(12).indices.min() >= 8


@pytest.mark.parametrize("criterion", ["activation", "activation_images"])
def test_a_network_as_timm_makes_it_untrained_is_planned_for(criterion):
    network = load_backbone("timm:resnet18", pretrained=False)
    plan = plan_pruning(network, 0.5, criterion, repair="none", images=images(), image_size=32)
    assert plan.apply(network)(images()).isfinite().all()


# --- what is counted --------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A linear layer of one's own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, inputs):
        return F.linear(inputs.mean((2, 3)), self.weight)


class Weighted(nn.Module):
    """A layer whose weight is used though it is never called."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, inputs):
        return inputs.mean((2, 3)) @ self.inner.weight.T


class Products(nn.Module):
    """Activations times activations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, inputs):
        tokens = self.conv(inputs).flatten(2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).mean(2)


class LowRank(nn.Linear):
    """A linear layer that computes more than one."""

    def __init__(self):
        super().__init__(3, 4)
        self.down, self.up = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4, 2))

    def forward(self, inputs):
        inputs = inputs.mean((2, 3))
        return super().forward(inputs) + inputs @ self.down.T @ self.up.T


@pytest.mark.parametrize("layer", [Linear, Weighted, Products, LowRank])
def test_a_product_that_is_not_counted_is_an_error_that_names_the_layer(layer):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), layer())
    with pytest.raises(UserError, match=rf"^1 \({layer.__name__}\) computes MACs"):
        forward_macs(network, 16)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision:swin_t", "ShiftedWindowAttention"),
        ("timm:tf_efficientnet_cc_b0_4e", "CondConv2d"),
        ("timm:swin_tiny_patch4_window7_224", "WindowAttention"),
        ("timm:resnetblur50", "BlurPool2d"),
    ],
)
def test_networks_that_multiply_elsewhere_are_refused_by_the_layer(name, layer):
    network = load_backbone(name, pretrained=False)
    with pytest.raises(UserError, match=layer):
        forward_macs(network, network.image_size)


def test_one_dimensional_convolutions_are_counted():
    """timm's efficient channel attention: by hand, 3 taps over the pooled channels."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1), timm.layers.EcaModule(kernel_size=3))
    assert forward_macs(network, 16) == 16 * 16 * 3 * 8 + 3 * 8


@pytest.mark.parametrize("state", SAME)
def test_macs_do_not_depend_on_the_state(state):
    network = in_state(state)
    before, modes = state_of(network), [module.training for module in network.modules()]
    assert forward_macs(network, 32) == forward_macs(tiny(), 32)
    assert_same_state(network, before)
    assert modes == [module.training for module in network.modules()]


# --- blocks -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_network_of_which_some_blocks_are_declared_says_what_it_reaches():
    network = random_backbone("timm:mobilenetv4_conv_medium")
    with pytest.warns(UserWarning, match=r"no declared block.* reach \d+% of its MACs"):
        plan = plan_pruning(network, 0.5, repair="mean", image_size=64)
    assert 0 < plan.reach < 0.6 and f"{plan.reach:.0%}" in repr(plan)
    assert plan.apply(network)(images(2, 64)).shape == (2, network.feature_dim)
    with pytest.raises(UserError, match=r"body\.blocks\.\S+ of timm:mobilenetv4_conv_medium is in no declared"):
        plan_pruning(network, 0.5, granularity="channel", image_size=64)


def test_a_grouped_convolution_that_widens_carries_no_residual_stream():
    network = load_backbone("timm:mobilenet_edgetpu_v2_xs", pretrained=False)
    assert plan_pruning(network, 0.5, "l1", repair="none", image_size=64).kept
    with pytest.raises(UserError, match=r"body\.blocks\.\S+conv_exp is a Conv2d that mixes or multiplies"):
        plan_pruning(network, 0.5, granularity="channel", image_size=64)


@pytest.mark.parametrize("name", ["timm:ghostnet_100", "timm:lcnet_050", "timm:mobilenetv4_conv_small"])
def test_a_network_without_filters_in_reach_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"{name} has no filters that can be removed, 0 % of its MACs"):
        plan_pruning(load_backbone(name, pretrained=False), 0.5)


@pytest.mark.parametrize(
    ("criterion", "repair"), [*((name, "mean") for name in CRITERIA), *(("activation", name) for name in REPAIRS)]
)
@torch.no_grad()
def test_convnext_with_convolutions_in_its_mlp_is_pruned_by_every_recipe(criterion, repair):
    network = random_backbone("timm:convnext_atto")
    if criterion == "bn_scale":
        with pytest.raises(UserError, match="needs a batch norm"):
            plan_pruning(network, 0.5, criterion, images=images(), image_size=32)
        return
    plan = plan_pruning(network, 0.5, criterion, repair=repair, images=images(), image_size=32)
    assert plan.apply(network)(images()).isfinite().all()


# --- printed, saved, and left alone -----------------------------------------------------------------------


def test_a_plan_prints_as_a_few_lines():
    text = repr(plan_pruning(load_backbone("resnet26_64"), 0.5, "l1", repair="none"))
    assert len(text) < 1500 and len(text.splitlines()) <= 12
    assert "resnet26_64" in text and "body.layer1.0.conv1" in text and "macs_after" in text


CLASSIFIERS = {
    "of other classes": lambda: nn.Linear(256, 7),
    "without a bias": lambda: nn.Linear(256, 3, bias=False),
    "none": lambda: None,
}


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_network_with_a_classifier_of_its_own_is_saved_and_loaded(classifier, folder):
    network = load_backbone("resnet18half_64", pretrained=False)
    plan = plan_pruning(network, 0.5, "l1", repair="none")
    small = plan.apply(network)
    small.classifier = CLASSIFIERS[classifier]()
    plan.save(small, folder)
    assert_same_state(load_pruned(folder), state_of(small))


@pytest.mark.parametrize(
    "state",
    [
        lambda small: small.bfloat16(),
        lambda small: small.double().train(),
        lambda small: timm.layers.freeze_batch_norm_2d(small),
        lambda small: nn.DataParallel(small),
        lambda small: every(nn.Conv2d, small, parametrizations.weight_norm),
        lambda small: small.to(memory_format=torch.channels_last),
    ],
    ids=["bfloat16", "float64", "frozen batch norms", "DataParallel", "parametrised", "channels last"],
)
@torch.no_grad()
def test_a_network_in_any_state_is_saved_and_loaded(state, folder):
    network = load_backbone("resnet18half_64", pretrained=False)
    plan = plan_pruning(network, 0.5, "l1", repair="none")
    small = state(plan.apply(network))
    plan.save(small, folder)
    loaded = load_pruned(folder)
    dtype = next(small.parameters()).dtype
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    torch.testing.assert_close(loaded(images().to(dtype)), small.eval()(images().to(dtype)))


def another(small: Backbone) -> Backbone:
    small.classifier = nn.Sequential(nn.Linear(256, 9), nn.ReLU())
    return small


@pytest.mark.parametrize(
    "change",
    [another, lambda small: setattr(small.body, "extra", nn.Linear(2, 2)) or small, lambda small: small.body],
    ids=["classifier of two layers", "a layer more", "the body alone"],
)
def test_what_could_not_be_loaded_again_is_not_saved(change, folder):
    network = load_backbone("resnet18half_64", pretrained=False)
    plan = plan_pruning(network, 0.5, "l1", repair="none")
    with pytest.raises(UserError, match=r"cannot be saved|is no Backbone"):
        plan.save(change(plan.apply(network)), folder)
    assert not any(folder.iterdir())


def test_a_network_of_an_unknown_name_is_not_saved(folder):
    plan = plan_pruning(tiny(), 0.5, "l1", repair="none")
    with pytest.raises(UserError, match=r"cannot be saved.*Unknown backbone 'tiny'"):
        plan.save(plan.apply(tiny()), folder)
    assert not any(folder.iterdir())


@pytest.mark.parametrize("repair", REPAIRS)
def test_the_process_is_left_as_it_was(repair, folder):
    network = load_backbone("resnet18half_64", pretrained=False).train()
    torch.manual_seed(5)
    threads, filters, random = torch.get_num_threads(), list(warnings.filters), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    before, pixels = state_of(network), images(4, 64)
    plan = plan_pruning(network, 0.5, "activation_images", repair=repair, images=pixels)
    small = plan.apply(network)
    plan.save(small, folder)
    load_pruned(folder)
    fidelity(network, small, pixels)
    measure_latency(small, 64)
    distance_to_pretraining(network, torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert torch.get_num_threads() == threads and warnings.filters == filters
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    assert (np.random.get_state()[1] == numpy_state).all()
    assert_same_state(network, before)
    assert all(module.training for module in network.modules())


def test_fidelity_does_not_depend_on_the_mode_and_refuses_images_that_say_nothing():
    network = tiny()
    small = plan_pruning(network, 0.5).apply(network)
    expected = fidelity(network, small, images())
    assert fidelity(copy.deepcopy(network).train(), copy.deepcopy(small).train(), images()) == expected
    for bad in (images(1), torch.zeros(4, 3, 32, 32), torch.full((4, 3, 32, 32), torch.nan)):
        with pytest.raises(UserError, match="Fidelity cannot compare"):
            fidelity(network, small, bad)


NUMBERS = {
    "ratio in words": ({"ratio": "half"}, "ratio='half'"),
    "a list": ({"ratio": [0.5]}, "no number"),
    "round_to is a fraction": ({"round_to": 2.5}, "round_to=2.5 is out of range: expected a whole number"),
    "round_to is negative": ({"round_to": -8}, "round_to=-8"),
    "seed is None": ({"seed": None}, "seed=None is out of range"),
    "image_size is a fraction": ({"image_size": 32.5}, "image_size=32.5 is out of range"),
    "image_size is nothing": ({"image_size": 0}, "image_size=0"),
    "target is NaN": ({"ratio": None, "target_macs": float("nan")}, "target_macs=nan"),
    "target is negative": ({"ratio": None, "target_macs": -1}, "target_macs=-1"),
    "target is infinite": ({"ratio": None, "target_macs": float("inf")}, "target_macs=inf"),
    "latency of no image": ({"ratio": None, "target_latency_ms": 1, "batch_size": 0}, "batch_size=0"),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_other_numbers_are_refused_in_one_sentence(number):
    request, expected = NUMBERS[number]
    with pytest.raises(UserError, match=expected):
        plan_pruning(tiny(), **{"ratio": 0.5, "criterion": "l1", "repair": "none", **request})


def test_numbers_of_numpy_are_numbers(folder):
    network = load_backbone("resnet18half_64", pretrained=False)
    numbers = {"ratio": np.float32(0.5), "round_to": np.int64(8), "seed": np.int64(0)}
    plan = plan_pruning(network, **numbers, criterion="l1", repair="none", image_size=np.int64(64))
    assert plan == plan_pruning(network, 0.5, "l1", repair="none")
    plan.save(plan.apply(network), folder)
    load_pruned(folder)
