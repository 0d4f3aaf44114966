"""The claims of the paper, each an estimator over records or over the code itself, with what must hold of it.

`paper/claims.yaml` lists them. An estimator gives a value and, where it comes from trained networks, a 95 %
interval; a claim is reproduced where its `holds` is true of a new estimate.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import yaml
from scipy.stats import spearmanr
from torch import nn

from lib.common.errors import UserError, choose
from lib.common.paths import FIGURES, ROOT
from lib.evidence import adviser, scaling
from lib.evidence.analysis import (
    GAINS,
    RESAMPLES,
    Estimate,
    errors_by_seed,
    estimate,
    granularities_compared,
    points_gained,
    seeds_in_common,
)
from lib.evidence.records import at_shared_budgets
from lib.learning.engine import Engine
from lib.learning.ledger import Ledger
from lib.learning.training import Recipe, TaskNetwork, fine_tune
from lib.networks.backbone import load_backbone
from lib.networks.macs import forward_macs, training_macs
from lib.pruning import plan_pruning
from lib.pruning.sites import find_sites
from lib.pruning.surgery import mask_channels
from lib.streams import Split

CLAIMS = ROOT / "paper" / "claims.yaml"
DISTANCES = FIGURES / "paper" / "11_filter_or_channel.csv"  # a column of its source data


@dataclass(frozen=True)
class Claim:
    """`says` is a sentence with places for value, low and high; `holds` a condition on the three."""

    id: str
    says: str
    estimator: str
    arguments: dict
    holds: str

    def sentence(self, found: Estimate) -> str:
        """What the claim says of an estimate."""
        return self.says.format(**found._asdict())

    def is_true_of(self, found: Estimate) -> bool:
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


def evaluate(claim: Claim, records: pd.DataFrame | None) -> Estimate:
    """What a claim's estimator gives. Raises NotMeasured where that takes records that there are none of."""
    function = ESTIMATORS[claim.estimator]
    if claim.estimator not in OF_RECORDS:
        return function(**claim.arguments)
    if records is None:
        raise NotMeasured(claim.id)
    try:
        return function(records, **claim.arguments)
    except NotMeasured:
        raise NotMeasured(claim.id) from None


def _pair(records: pd.DataFrame, *points: tuple[str, float]) -> list[np.ndarray]:
    """The errors (T, S) of two arms, each at a budget, over the seeds in common."""
    table = errors_by_seed(records[records["arm"].isin([arm for arm, _ in points])])
    if not set(points) <= set(table.index):
        raise NotMeasured
    return seeds_in_common(table, *points)


@estimator(of_records=True)
def improvement(
    records: pd.DataFrame, arm: str, over: str, budget: float, of: str, over_budget: float | None = None
) -> Estimate:
    """What an arm gains over another at the same budget, or at another: one of records.GAINS."""
    return estimate(GAINS[of], *_pair(records, (arm, budget), (over, over_budget or budget)))


@estimator(of_records=True)
def ahead_until(records: pd.DataFrame, arm: str, over: str) -> Estimate:
    """The largest budget up to which an arm has the lower mean error at every budget that both have.

    `low`: up to which chance alone does not explain that; `high`: up to which it is at least not excluded.
    0 where the smallest budget already does not show it.
    """
    of_arms = records[records["arm"].isin([arm, over])]
    if of_arms["arm"].nunique() < 2:
        raise NotMeasured
    budgets = np.sort(at_shared_budgets(of_arms)["budget"].unique())
    gained = [improvement(of_arms, arm, over, budget, "points_gained") for budget in budgets]

    def until(end: str) -> float:
        ahead = [getattr(found, end) > 0 for found in gained]
        return float([0, *budgets][[*ahead, False].index(False)])

    return Estimate(until("value"), until("low"), until("high"))


@estimator(of_records=True)
def best_share(records: pd.DataFrame, unit: str, granularity: str, budget: float) -> Estimate:
    """The share of filters whose removal gives the lowest error at a budget, of those that were run."""
    grid = scaling.main_grid(records[records["unit"] == unit], granularity)
    if grid["ratio"].nunique() < 3:
        raise NotMeasured
    best = scaling.best_ratio(grid)
    row = best[best["budget"] == budget]
    if row.empty:
        raise NotMeasured
    return Estimate(*row[["ratio", "low", "high"]].iloc[0].astype(float))


@estimator(of_records=True)
def adviser_lead(records: pd.DataFrame, unit: str, granularity: str | None = None) -> Estimate:
    """By how many points of error the adviser's mean regret is below that of the best fixed choice.

    Of all networks and learners of a unit, or of the main grid of a granularity alone.
    """
    of_unit = records[records["unit"] == unit]
    if granularity:
        of_unit = at_shared_budgets(scaling.main_grid(of_unit, granularity))
    if of_unit["arm"].nunique() < 3:
        raise NotMeasured
    table = adviser.regrets(of_unit).pivot_table("regret", ["task", "event"], "policy")
    fixed = table.drop(columns="adviser")
    pair = [table[["adviser"]].to_numpy(), fixed[[fixed.mean().idxmin()]].to_numpy()]
    return estimate(points_gained, *pair)


@estimator(of_records=True)
def distance_correlation(records: pd.DataFrame, unit: str) -> Estimate:
    """Spearman's correlation of a task's distance with the lead of `filter` over `channel`, over tasks.

    A task's lead is averaged over ratios and budgets first. Distances are those that notebook 11 measured.
    """
    of_unit = records[records["unit"] == unit]
    if of_unit["granularity"].nunique() < 2:
        raise NotMeasured
    leads = granularities_compared(of_unit).groupby(["event", "task"])["points"].mean()
    distances = pd.read_csv(DISTANCES).query("unit == @unit").groupby(["event", "task"])["distance"].first()
    if not leads.index.isin(distances.index).all():
        raise NotMeasured
    pairs = np.column_stack([distances[leads.index], leads])
    drawn = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES // 4, len(pairs)))
    found = [spearmanr(*pairs[draw].T).statistic for draw in drawn if len(set(draw)) > 2]
    return Estimate(float(spearmanr(*pairs.T).statistic), *map(float, np.percentile(found, [2.5, 97.5])))


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


@estimator(of_records=False)
def share_of_macs(backbone: str, ratio: float, granularity: str, image_size: int) -> Estimate:
    """The forward MACs of a pruned network over those of the dense one."""
    dense = load_backbone(backbone)
    plan = plan_pruning(dense, ratio, "l1", scope="uniform", granularity=granularity, repair="none")
    pruned = plan.apply(dense)
    return _exactly(forward_macs(pruned, image_size) / forward_macs(dense, image_size))


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
