"""Named pretrained networks, what they cost, and how near a pruned one stays to them."""

import lib.networks.catalogue  # noqa: F401  lists the named networks
from lib.networks.backbone import Backbone, list_backbones, load_backbone

__all__ = ["Backbone", "list_backbones", "load_backbone"]
