"""Every network of the declared families in timm and torchvision: pruned, or refused in a sentence."""

import pytest
import torch

from lib.common.errors import UserError
from lib.common.vision import timm, torchvision
from lib.networks.backbone import Backbone, load_backbone
from lib.networks.copies import meta_copy
from lib.networks.macs import forward_macs
from lib.pruning import plan_pruning
from lib.pruning.sites import GRANULARITIES, find_sites, width_of
from lib.pruning.surgery import keep_channels

_SHARED = ("resnet", "vgg", "efficientnet", "regnet", "convnext")
_TORCHVISION = (*_SHARED, "wide_resnet", "resnext", "mobilenet", "vit")
_TIMM_MODULES = (*_SHARED, "mobilenetv3", "vision_transformer", "deit")
NAMES = [
    *(
        f"torchvision:{name}"
        for name in torchvision.models.list_models(module=torchvision.models)
        if name.startswith(_TORCHVISION)
    ),
    *(f"timm:{name}" for module in _TIMM_MODULES for name in timm.list_models(module=module)),
]
SMALL = 6_000_000  # parameters up to which a network is also pruned with values, and not in shapes alone

pytestmark = [pytest.mark.sweep, pytest.mark.parametrize("granularity", GRANULARITIES)]


def on_meta(name: str) -> Backbone:
    try:
        with torch.device("meta"):
            return load_backbone(name, pretrained=False)
    except NotImplementedError:  # RegNets compute their widths in tensors
        return meta_copy(load_backbone(name, pretrained=False))


def images_for(network: Backbone, device: str) -> torch.Tensor:
    side = network.image_size if network.fixed_size else max(64, min(network.image_size, 96))
    return torch.zeros(2, 3, side, side, device=device)


def halved(name: str, granularity: str) -> tuple[int, int]:
    """MACs of a network's shapes before and after half of each site's units go. UserError if refused."""
    network = on_meta(name)
    inputs = images_for(network, "meta")
    before = forward_macs(network, inputs.shape[-1])
    for site in find_sites(network, granularity):
        units = width_of(network, site) // site.unit
        keep_channels(network, site, torch.arange(max(1, units // 2) * site.unit))
    assert network(inputs).shape == (2, network.feature_dim)
    return before, forward_macs(network, inputs.shape[-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_network_runs_with_half_of_its_channels_or_is_refused(name, granularity):
    try:
        before, after = halved(name, granularity)
    except UserError as refused:
        assert len(str(refused)) < 500 and (name in str(refused) or "body." in str(refused))
        return
    assert after < before


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_small_networks_are_planned_applied_and_run(name, granularity):
    try:
        halved(name, granularity)
    except UserError:
        return
    if sum(tensor.numel() for tensor in on_meta(name).parameters()) > SMALL:
        return
    network = load_backbone(name, pretrained=False)
    inputs = images_for(network, "cpu")
    how = {"scope": "uniform", "repair": "none", "round_to": 1}
    plan = plan_pruning(network, 0.5, "l1", granularity=granularity, image_size=inputs.shape[-1], **how)
    small = plan.apply(network)
    assert small(inputs).isfinite().all()
    assert forward_macs(small, inputs.shape[-1]) < forward_macs(network, inputs.shape[-1])
