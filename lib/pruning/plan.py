"""A plan of what to remove: apply it, save and load what came out."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load

from lib.backbones import Backbone, load_backbone
from lib.errors import UserError
from lib.files import write_json
from lib.pruning.sites import find_sites
from lib.pruning.surgery import copy_of_structure, keep_channels, own_tensors, width_of
from lib.pruning.targets import Target
from lib.tensors import save_tensors

_PACKAGES = ("torch", "torchvision", "timm")


@dataclass(frozen=True)
class SiteSize:
    """Filters and MACs of one site before and after; `wanted` is the count before it was rounded."""

    before: int
    wanted: float
    after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class PruningPlan:
    """Which filters of which network stay, and how the removal is repaired.

    `kept` maps a site's name to the ascending indices of the filters that stay. `calibration_macs` is what
    criterion and repair computed on images, to be charged to a budget; `seconds` is how long planning
    took. `corrections` holds the tensors of the pruned network that the repair changed.
    """

    backbone: str
    ratio: float
    criterion: str
    scope: str
    granularity: str
    repair: str
    round_to: int
    seed: int
    kept: dict[str, list[int]]
    sites: dict[str, SiteSize]
    target: Target | None = None
    calibration_macs: int = 0
    seconds: float = field(default=0.0, compare=False)
    corrections: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def table(self) -> pd.DataFrame:
        """A row a site: filters and MACs before and after, and the count `wanted` before rounding.

        The MACs are those of one image, of every layer that the site's channels go through; two sites in
        a row share the layer between them.
        """
        rows = [{"site": name, **asdict(size)} for name, size in self.sites.items()]
        return pd.DataFrame(rows, columns=["site", *(column.name for column in fields(SiteSize))])

    def apply(self, network: Backbone) -> Backbone:
        """A new, physically smaller network; `network` is untouched.

        Raises UserError for another network than the dense one that was planned for.
        """
        small = copy_of_structure(network)
        remove(small, self)
        own_tensors(small, shared_with=network)
        tensors = small.state_dict()
        with torch.no_grad():
            for name, value in self.corrections.items():
                tensors[name].copy_(value)
        return small

    def save(self, small: Backbone, folder: Path | str) -> None:
        """Write `plan.json` and `weights.safetensors` of the network that `apply` gave."""
        folder = Path(folder)
        save_tensors(small.state_dict(), folder / "weights.safetensors")
        digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
        stored = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "corrections"}
        stored["sites"] = {name: asdict(size) for name, size in self.sites.items()}
        stored["target"] = asdict(self.target) if self.target else None
        versions = {name: version(name) for name in _PACKAGES}
        write_json(folder / "plan.json", {**stored, "versions": versions, "weights_sha256": digest})


def remove(network: Backbone, plan: PruningPlan) -> None:
    """Remove, in place, what `plan` does not keep. Raises UserError where the plan does not fit."""
    sites = {site.name: site for site in find_sites(network, plan.granularity)}
    widths = {name: width_of(network, site) for name, site in sites.items()}
    fits = (
        widths == {name: size.before for name, size in plan.sites.items()}
        and sites.keys() == plan.kept.keys()
        and all(
            kept and kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < widths[name]
            for name, kept in plan.kept.items()
        )
    )
    if not fits:
        raise UserError(
            f"The plan does not fit this {network.name}: expected the {len(plan.sites)} sites and widths of "
            f"the dense {plan.backbone}. Plan again with plan_pruning for this network."
        )
    for name, site in sites.items():
        if len(plan.kept[name]) < widths[name]:
            keep_channels(network, site, torch.tensor(plan.kept[name]))
            network.pruned = True


def load_pruned(folder: Path | str) -> Backbone:
    """The network that `PruningPlan.save` wrote, rebuilt by its ordinary constructor.

    Raises UserError for files that are missing, damaged, or of another network.
    """
    folder = Path(folder)
    try:
        stored = json.loads((folder / "plan.json").read_text())
        digest = stored.pop("weights_sha256")
        stored.pop("versions")
        plan = TypeAdapter(PruningPlan).validate_python(stored)
        weights = (folder / "weights.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != digest:
            raise ValueError("weights.safetensors is not the file that plan.json was written with")
        tensors = load(weights)
        small = load_backbone(plan.backbone, pretrained=False)
        remove(small, plan)
        small.load_state_dict(tensors)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no pruned network that can be loaded: expected plan.json and "
            f"weights.safetensors as written by PruningPlan.save ({error})."
        ) from error
    return small.eval()
