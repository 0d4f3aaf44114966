"""Zero-shot structured pruning: choose filters without training, remove them, repair, save."""

from lib.pruning import sequential as _sequential  # noqa: F401  registers its repairs
from lib.pruning.plan import PruningPlan, load_pruned, plan_pruning

__all__ = ["PruningPlan", "load_pruned", "plan_pruning"]
