"""Zero-shot structured pruning: choose filters from the weights, remove them, repair, save."""

from lib.pruning.plan import PruningPlan, load_pruned, plan_pruning

__all__ = ["PruningPlan", "load_pruned", "plan_pruning"]
