"""One function a figure. Every function takes tables and returns a matplotlib figure."""

from lib.evidence.figures.curves import (
    error_against_compute,
    error_by_task,
    improvement,
    large_or_small,
    points_gained,
)
from lib.evidence.figures.learners import along_the_stream, learners
from lib.evidence.figures.networks import fidelity_against_ratio, filters_and_macs, time_against_macs
from lib.evidence.figures.scaling import asymptotes, best_ratio, granularity_by_distance, regret
from lib.evidence.figures.streams import contact_sheet, stream_overview
from lib.evidence.figures.style import save_figure, use_style

__all__ = [
    "along_the_stream",
    "asymptotes",
    "best_ratio",
    "contact_sheet",
    "error_against_compute",
    "error_by_task",
    "fidelity_against_ratio",
    "filters_and_macs",
    "granularity_by_distance",
    "improvement",
    "large_or_small",
    "learners",
    "points_gained",
    "regret",
    "save_figure",
    "stream_overview",
    "time_against_macs",
    "use_style",
]
