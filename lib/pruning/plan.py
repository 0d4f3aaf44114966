"""Plan a pruning, apply it, save and load what came out."""

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from lib.backbones import Backbone, load_backbone
from lib.compute import count_macs
from lib.errors import UserError
from lib.files import atomic_path
from lib.pruning.allocate import allocate
from lib.pruning.repair import REPAIRS, check_repair
from lib.pruning.scores import score_filters
from lib.pruning.sites import Site, find_sites
from lib.pruning.surgery import keep_channels

GRANULARITIES = ("filter",)


@dataclass(frozen=True)
class SiteSize:
    """Filters and MACs of one site before and after."""

    before: int
    after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class PruningPlan:
    """Which filters of which network stay, and how the removal is repaired.

    `kept` maps a site's name to the ascending indices of the filters that stay.
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

    def table(self) -> pd.DataFrame:
        """A row a site: filters and MACs before and after.

        The MACs are those of one image at the backbone's own size, of every layer that the site's
        channels go through; two sites in a row share the layer between them.
        """
        rows = [{"site": name, **asdict(size)} for name, size in self.sites.items()]
        return pd.DataFrame(rows, columns=["site", "before", "after", "macs_before", "macs_after"])

    def apply(self, network: Backbone) -> Backbone:
        """A new, physically smaller network; `network` is untouched."""
        small = copy.deepcopy(network)
        _remove(small, self, self.repair)
        return small

    def save(self, small: Backbone, folder: Path | str) -> None:
        """Write `plan.json` and `weights.safetensors` of the network that `apply` gave."""
        folder = Path(folder)
        with atomic_path(folder / "weights.safetensors") as temporary:
            save_file({key: value.contiguous() for key, value in small.state_dict().items()}, temporary)
        digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
        with atomic_path(folder / "plan.json") as temporary:
            temporary.write_text(json.dumps({**asdict(self), "weights_sha256": digest}, indent=1))


def plan_pruning(
    network: Backbone,
    ratio: float,
    criterion: str = "l1",
    scope: str = "uniform",
    granularity: str = "filter",
    repair: str = "none",
    round_to: int = 8,
    images: torch.Tensor | None = None,
    seed: int = 0,
) -> PruningPlan:
    """Choose, without any training, which filters of `network` to remove.

    `ratio` is the share of filters removed at the sites; 0 gives the identity plan. `images`
    (normalised, (N, 3, H, W)) are for criteria and repairs that need data; none here does. `seed`
    matters to the criterion `random` only. Raises UserError for unknown names, a ratio out of range,
    an undeclared architecture, or a ratio above 0 that would remove nothing.
    """
    if granularity not in GRANULARITIES:
        raise UserError(f"Unknown granularity {granularity!r}: expected one of {', '.join(GRANULARITIES)}.")
    check_repair(repair)
    sites = find_sites(network)
    widths = [network.get_submodule(site.producer).out_channels for site in sites]
    counts = allocate(widths, ratio, scope, round_to)
    kept = {}
    for position, (site, count) in enumerate(zip(sites, counts, strict=True)):
        # A seed a site: `random` must not draw the same order everywhere.
        scores = score_filters(network, site, criterion, seed * 10_007 + position)
        kept[site.name] = torch.topk(scores, count).indices.sort().values.tolist()
    plan = PruningPlan(
        network.name, ratio, criterion, scope, granularity, repair, round_to, seed, kept, sites={}
    )
    small = copy.deepcopy(network)
    _remove(small, plan, repair="none")
    before, after = (_macs_of_sites(net, sites) for net in (network, small))
    sizes = {
        site.name: SiteSize(width, count, before[site.name], after[site.name])
        for site, width, count in zip(sites, widths, counts, strict=True)
    }
    return replace(plan, sites=sizes)


def _macs_of_sites(network: Backbone, sites: list[Site]) -> dict[str, int]:
    layers = count_macs(network, network.image_size)
    return {
        site.name: sum(
            layers[name].forward for name in (site.producer, *site.followers, site.consumer) if name in layers
        )
        for site in sites
    }


def _remove(network: Backbone, plan: PruningPlan, repair: str) -> None:
    """Remove, in place, what `plan` does not keep."""
    sites = {site.name: site for site in find_sites(network)}
    widths = {name: network.get_submodule(site.producer).out_channels for name, site in sites.items()}
    expected = {name: size.before for name, size in plan.sites.items()} or widths
    fits = (
        widths == expected
        and sites.keys() == plan.kept.keys()
        and all(
            kept and kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < widths[name]
            for name, kept in plan.kept.items()
        )
    )
    if not fits:
        raise UserError(
            f"The plan does not fit this {network.name}: expected the {len(sites)} sites and widths of "
            f"the dense {plan.backbone}. Plan again with plan_pruning for this network."
        )
    for name, site in sites.items():
        kept = torch.tensor(plan.kept[name])
        if len(kept) < widths[name]:
            removed = torch.ones(widths[name], dtype=torch.bool)
            removed[kept] = False
            REPAIRS[repair](network, site, removed.nonzero().flatten())
            keep_channels(network, site, kept)


def load_pruned(folder: Path | str) -> Backbone:
    """The network that `PruningPlan.save` wrote, rebuilt by its ordinary constructor.

    Raises UserError for files that are missing, damaged, or of another network.
    """
    folder = Path(folder)
    try:
        fields = json.loads((folder / "plan.json").read_text())
        digest = fields.pop("weights_sha256")
        plan = TypeAdapter(PruningPlan).validate_python(fields)
        weights = (folder / "weights.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != digest:
            raise ValueError("weights.safetensors is not the file that plan.json was written with")
        tensors = load(weights)
        small = load_backbone(plan.backbone, pretrained=False)
        _remove(small, plan, repair="none")
        small.load_state_dict(tensors)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no pruned network that can be loaded: expected plan.json and "
            f"weights.safetensors as written by PruningPlan.save ({error})."
        ) from error
    return small.eval()
