"""The best size at each budget: isoFLOP curves.

Reads records only, like lib/evidence/records.py, and imports nothing that trains.
"""

import numpy as np
import pandas as pd

from lib.evidence.analysis import by_task, estimate, mean_accuracy
from lib.evidence.records import of_reference, reference_pixels, some

ROUTES = {"removing channels": "channels removed", "fewer pixels": "fewer pixels"}  # to a smaller network: its origin


def sizes(records: pd.DataFrame) -> pd.DataFrame:
    """Mean error of every arm at every budget against the network's own size.

    Columns: arm, budget, forward_macs (of one image), image_passes (mean over tasks), origin (what the network's size
    comes from), error (percent).
    """
    about = records.groupby(["arm", "budget"], sort=False)[["forward_macs", "image_passes"]].mean()
    first = records.drop_duplicates("arm").set_index("arm")
    own, pruned = of_reference(first), first["ratio"] > 0
    fewer = first["image_size"] < reference_pixels(first)
    origins = {
        "other network": ~own,
        "both": pruned & fewer,
        "channels removed": pruned & (first["granularity"] == "channel"),
        "inner filters removed": pruned,
        "fewer pixels": fewer,
    }
    origin = pd.Series(np.select([*origins.values()], [*origins], "dense"), first.index)
    found = about.join(mean_accuracy(records).set_index(["arm", "budget"])["accuracy"]).reset_index()
    found["origin"] = found["arm"].map(origin)
    return found.assign(error=100 - found["accuracy"]).drop(columns="accuracy")


def parabola(macs: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The quadratic in log10 of the MACs (N) with the least squared error: three coefficients, the square's first."""
    return np.polyfit(np.log10(macs), errors, 2)


def optimum(macs: np.ndarray, errors: np.ndarray) -> float:
    """The MACs (N) at the minimum of `parabola`; the better end where that lies outside of what was measured."""
    curve, low, high = parabola(macs, errors), *np.log10([macs.min(), macs.max()])
    inner = -curve[1] / (2 * curve[0]) if curve[0] > 0 else np.inf
    if low < inner < high:
        return float(10**inner)
    return float(10 ** min((low, high), key=lambda end: np.polyval(curve, end)))


def best_sizes(records: pd.DataFrame, route: str) -> pd.DataFrame:
    """The optimum at each budget that all sizes of the reference network by a route were run with, and how it moves.

    `route`: one of ROUTES. Columns: budget, macs, low, high (95 % over tasks), within (whether it is no end of what was
    measured); slope, slope_low, slope_high: of log MACs against log budget, in every row. Raises MissingArms for fewer
    than four sizes.
    """
    table = on_route(sizes(records), route)
    arms = table["arm"].unique()
    shared = table.pivot(index="arm", columns="budget", values="forward_macs").dropna(axis=1)
    some(shared if len(shared) > 3 and shared.shape[1] > 1 else shared[:0], "four sizes of one network, learnt alike")
    macs, budgets = shared.iloc[:, 0].to_numpy(), shared.columns.to_numpy(dtype=float)
    tasks = 100 - by_task(records[records["arm"].isin(arms)])
    errors = np.stack([tasks.xs(budget, level="budget").loc[shared.index].to_numpy() for budget in budgets])

    def places(of_tasks: np.ndarray) -> np.ndarray:
        return np.log10([optimum(macs, curve) for curve in of_tasks.mean(-1)])  # errors (budgets, sizes, tasks)

    def slope(of_tasks: np.ndarray) -> float:
        return float(np.polyfit(np.log10(budgets), places(of_tasks), 1)[0])

    rows = [
        (budget, *(10**end for end in estimate(lambda drawn, at=number: float(places(drawn)[at]), errors)))
        for number, budget in enumerate(budgets)
    ]
    found = pd.DataFrame(rows, columns=["budget", "macs", "low", "high"])
    found["within"] = (found["macs"] > 1.001 * macs.min()) & (found["macs"] < 0.999 * macs.max())
    return found.assign(**dict(zip(["slope", "slope_low", "slope_high"], estimate(slope, errors), strict=True)))


def on_route(table: pd.DataFrame, route: str) -> pd.DataFrame:
    """The rows of `sizes` that are the dense reference network, or made smaller by one of ROUTES alone."""
    return table[table["origin"].isin(["dense", ROUTES[route]])]
