"""The claims of the paper, each an estimator over records or over the code itself, with what must hold of it.

`paper/claims.yaml` lists them. An estimator gives a value and, where it comes from trained networks, a 95 %
interval over tasks; a claim is reproduced where its `holds` is true of a new estimate.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from torch import nn

from lib.common.errors import UserError, choose
from lib.common.paths import ROOT
from lib.evidence import adviser, scaling
from lib.evidence.analysis import Estimate, carried_on, estimate, leads, summarised
from lib.evidence.records import COMPARED, FAMILIES, PRUNED, MissingArms, of_families
from lib.evidence.reports import front_gain
from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.training import Recipe, TaskNetwork, fine_tune
from lib.networks.backbone import load_backbone
from lib.networks.macs import training_macs
from lib.pruning import plan_pruning
from lib.pruning.sites import find_sites
from lib.pruning.surgery import mask_channels
from lib.runs.profiles import COMMITTED, arms_of
from lib.streams import Split

CLAIMS = ROOT / "paper" / "claims.yaml"


class Lead(NamedTuple):
    """By how many points one leads another, and the interval; what both reach and is gained, in percent; tasks; and
    the p-value of the paired t test."""

    value: float
    low: float
    high: float
    reached: float
    over: float
    relative: float
    relative_low: float
    relative_high: float
    tasks: int
    p: float


@dataclass(frozen=True)
class Claim:
    """`says` is a sentence with places for what is found; `holds` a condition on value, low and high.

    `stream` names the records that it is about: pocket's, which every profile measures, or another of
    `paper.build.STREAMS`. `row` is a table of the paper that shows a lead, what is removed, and the rival.
    """

    id: str
    says: str
    estimator: str
    arguments: dict
    holds: str
    stream: str = "pocket"
    row: Sequence[str] = ()

    def sentence(self, found: Estimate | Lead) -> str:
        """What the claim says of an estimate."""
        return self.says.format(**found._asdict())

    def is_true_of(self, found: Estimate | Lead) -> bool:
        """Whether `holds` holds."""
        return bool(pd.DataFrame([found]).eval(self.holds).item())


class NotMeasured(UserError):
    """The profile's records do not have what a claim is about."""

    def __init__(self, claim: str = "a claim"):
        super().__init__(f"The records do not have what {claim} is about: run the arms and budgets that it names.")


ESTIMATORS: dict[str, Callable[..., Estimate]] = {}
OF_RECORDS: set[str] = set()  # the names of those that need records; the others look at the code


def estimator(of_records: bool):
    """Register the decorated function under its name."""

    def register(function: Callable[..., Estimate]) -> Callable[..., Estimate]:
        ESTIMATORS[function.__name__] = function
        if of_records:
            OF_RECORDS.add(function.__name__)
        return function

    return register


def load_claims() -> list[Claim]:
    """The claims of `paper/claims.yaml`. Raises UserError for one that names an unknown estimator."""
    claims = [Claim(**fields) for fields in yaml.safe_load(CLAIMS.read_text())]
    for claim in claims:
        choose(f"estimator of claim {claim.id} in {CLAIMS.name}", claim.estimator, ESTIMATORS)
    return claims


def evaluate(claim: Claim, records: Mapping[str, pd.DataFrame]) -> Estimate | Lead:
    """What a claim's estimator gives, of records by the name of their stream.

    Raises NotMeasured where that takes records that there are none of.
    """
    function = ESTIMATORS[claim.estimator]
    if claim.estimator not in OF_RECORDS:
        return function(**claim.arguments)
    if claim.stream not in records:
        raise NotMeasured(claim.id)
    try:
        return function(records[claim.stream], **claim.arguments)
    except (NotMeasured, MissingArms):
        raise NotMeasured(claim.id) from None


@cache
def _compared() -> frozenset[str]:
    """The arms that networks are chosen from, of the profiles whose records are committed."""
    return frozenset(arm for profile in COMMITTED for group in COMPARED for arm in arms_of(profile, group))


def _arms(records: pd.DataFrame, names: list[str]) -> list[str]:
    """Arms by their own names or those of families. Raises NotMeasured for one that was not run."""
    compared = records[records["arm"].isin(_compared())]
    found = [arm for name in names for arm in (of_families(compared, name) if name in FAMILIES else [name])]
    if not found or not set(found) <= set(records["arm"]):
        raise NotMeasured
    return found


@estimator(of_records=True)
def lead(records: pd.DataFrame, ours: list[str], theirs: list[str], budget: int) -> Lead:
    """What the best of the arms or families `ours` leads the best of `theirs` by, each chosen on the other tasks."""
    sides = [_arms(records, side) for side in (ours, theirs)]
    records = carried_on(records)
    asked = (records["budget"] == budget) & records["arm"].isin([*sides[0], *sides[1]])
    row = summarised(leads(records[asked], *sides)).iloc[0]
    reached = row[["low", "high", "accuracy", "over", "relative", "relative_low", "relative_high"]]
    return Lead(row["points"], *reached, int(row["tasks"]), row["p"])


@estimator(of_records=True)
def share_of_macs(records: pd.DataFrame, arm: str, over: str) -> Estimate:
    """The forward MACs of an arm's network over those of another's."""
    macs = records.groupby("arm")["forward_macs"].first()
    return _exactly(macs[_arms(records, [arm])[0]] / macs[_arms(records, [over])[0]])


@estimator(of_records=True)
def size_slope(records: pd.DataFrame, route: str) -> Estimate:
    """How the best forward MACs of the probed main network by a route move with the budget: slope of the logarithms."""
    compared = _chosen_from(records)
    best = scaling.best_sizes(compared[compared["learner"] == "probe"], route)
    return Estimate(*best[["slope", "slope_low", "slope_high"]].iloc[0])


@estimator(of_records=True)
def pruned_front_gain(records: pd.DataFrame) -> Estimate:
    """Points of error by which pruned networks lower the Pareto front over all events."""
    return front_gain(_chosen_from(records), *PRUNED)


@estimator(of_records=True)
def adviser_lead(records: pd.DataFrame) -> Estimate:
    """By how many points the adviser's mean regret is below that of the best fixed choice in hindsight."""
    table = adviser.regrets(_chosen_from(records)).pivot_table("regret", ["task", "event"], "policy")
    fixed = table.drop(columns="adviser")
    return estimate(np.mean, (fixed[fixed.mean().idxmin()] - table["adviser"]).to_numpy())


def _chosen_from(records: pd.DataFrame) -> pd.DataFrame:
    """The records of the arms that networks are chosen from. Raises NotMeasured for fewer than three."""
    compared = records[records["arm"].isin(_compared())]
    if compared["arm"].nunique() < 3:
        raise NotMeasured
    return compared


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


@estimator(of_records=False)
def masked_difference(backbone: str, ratio: float, image_size: int) -> Estimate:
    """The largest difference of the pruned network's representation from the masked one's, over its size."""
    dense = load_backbone(backbone).double()
    plan = plan_pruning(dense, ratio, "l1", scope="uniform", repair="none")
    masked = copy.deepcopy(dense)
    for site in find_sites(masked, plan.granularity):
        mask_channels(masked, site, torch.tensor(plan.kept[site.name]))
    shape = 4, 3, image_size, image_size
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = masked(images)
        difference = (plan.apply(dense)(images) - expected).abs().max() / expected.abs().max()
    return _exactly(difference.item())


@estimator(of_records=False)
def ledger_difference(backbone: str, images: int) -> Estimate:
    """Charged images over images that went through the first layer in training, minus 1."""
    network = TaskNetwork(load_backbone(backbone), 10)
    seen = []

    def see(_, inputs: tuple, __) -> None:
        if not inputs[0].is_meta:  # counting MACs runs on meta tensors
            seen.append(len(inputs[0]))

    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(see)
    each = training_macs(network, 64)
    split = Split(torch.zeros(64, 64, 64, 3, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    ledger = Ledger(math.ceil(images * each))
    fine_tune(network, split, ledger, Recipe(1e-4, 1e-2), Engine(), seed=0)
    return _exactly(ledger.total / (sum(seen) * each) - 1)
