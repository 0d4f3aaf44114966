"""Compute-optimal transfer by zero-shot structured pruning: pruning and stream training."""
