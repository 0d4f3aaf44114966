"""From records to statements: errors at matched compute, improvement over dense, and intervals.

Reads records only and imports nothing that trains. Accuracy here is 1 - error: for a multi-label task
that is the mean average precision.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.errors import UserError
from lib.profiles import arms_of, records_file

RESAMPLES = 4000


def load_records(profile: str, group: str = "arms") -> pd.DataFrame:
    """The records of the arms of a profile's group with a column `arm`, in the profile's order.

    A column `unit` names the dense network and resolution that the budget is counted in. Raises UserError
    naming the arms that have not been run.
    """
    files = {arm: records_file(profile, arm) for arm in arms_of(profile, group)}
    missing = [arm for arm, file in files.items() if not file.exists()]
    if missing:
        raise UserError(
            f"No records of {', '.join(missing)} in {next(iter(files.values())).parent}: expected one "
            f"Parquet file an arm. Run `make figures PROFILE={profile}`."
        )
    records = pd.concat(
        [pd.read_parquet(file).assign(arm=arm) for arm, file in files.items()], ignore_index=True
    )
    own = records["backbone"] + "@" + records["image_size"].astype(str)
    return records.assign(unit=records["reference"].fillna(own))


def errors_by_task(records: pd.DataFrame) -> pd.DataFrame:
    """Test error of the arms of one unit, rows (arm, budget), columns tasks; the mean over seeds.

    All of them spend the same compute at the same budget, so a column compares at matched
    compute. Raises UserError where an arm lacks a task or budget that another has.
    """
    tasks_differ = (records.groupby("event")["task"].nunique() > 1).any()
    compute_differs = (records.groupby(["event", "budget"])["limit_macs"].nunique() > 1).any()
    table = records.pivot_table("error_test", ["arm", "budget"], "event", sort=False)
    complete = len(table) == records["arm"].nunique() * records["budget"].nunique()
    if tasks_differ or compute_differs or not complete or table.isna().any().any():
        raise UserError(
            "The arms' records do not compare: expected the same tasks, budgets and compute for all of "
            "them. Run `make figures` again."
        )
    return table


def bootstrap_over_tasks(statistic: Callable[..., np.ndarray], *errors: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of `statistic` over tasks drawn with replacement.

    Each of `errors` holds one error a task (T,); the same draw of tasks is used for all of them.
    `statistic` maps arrays (R, T) to (R,).
    """
    draws = np.random.default_rng(0).integers(len(errors[0]), size=(RESAMPLES, len(errors[0])))
    low, high = np.percentile(statistic(*(error[draws] for error in errors)), [2.5, 97.5])
    return float(low), float(high)


def mean_errors(records: pd.DataFrame) -> pd.DataFrame:
    """Mean test error over tasks of every arm at every budget, with its interval over tasks."""
    rows = []
    for unit, of_unit in records.groupby("unit", sort=False):
        for (arm, budget), errors in errors_by_task(of_unit).iterrows():
            low, high = bootstrap_over_tasks(lambda e: e.mean(-1), errors.to_numpy())
            row = {"unit": unit, "arm": arm, "budget": budget, "error": errors.mean()}
            rows.append({**row, "low": low, "high": high})
    return pd.DataFrame(rows)


def dense_arm(of_unit: pd.DataFrame) -> str:
    """The arm of a unit's dense network. Raises UserError where there is none."""
    own = of_unit["backbone"] + "@" + of_unit["image_size"].astype(str) == of_unit["unit"]
    found = of_unit.loc[own & (of_unit["ratio"] == 0), "arm"]
    if found.empty:
        raise UserError(
            f"No dense arm among {', '.join(of_unit['arm'].unique())}: expected one of "
            f"{of_unit['unit'].iloc[0]} with ratio 0."
        )
    return found.iloc[0]


def unlimited_table(records: pd.DataFrame) -> pd.DataFrame:
    """Mean test error over tasks, with its interval, a row a network: each arm has a budget of its own."""
    table = mean_errors(records.assign(unit=records["arm"])).set_index("arm")
    about = records.drop_duplicates("arm").set_index("arm")[["backbone", "pretrained", "forward_macs"]]
    about = about.assign(forward_macs=(about["forward_macs"] / 1e6).round(1))
    about = about.rename(columns={"forward_macs": "forward (million MACs)"})
    return about.join(table[["budget", "error", "low", "high"]].round(3))


def accuracy_gain(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Relative gain of the mean accuracy over the dense network's: errors (..., T) -> (...)."""
    return (1 - pruned).mean(-1) / (1 - dense).mean(-1) - 1


def error_cut(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Share of the dense network's mean error that is gone: errors (..., T) -> (...)."""
    return 1 - pruned.mean(-1) / dense.mean(-1)


def points_gained(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Mean accuracy minus the dense network's, in percentage points: errors (..., T) -> (...)."""
    return 100 * (dense - pruned).mean(-1)


MEASURES = {"accuracy_gain": accuracy_gain, "error_cut": error_cut, "points_gained": points_gained}


def improvement_over_dense(records: pd.DataFrame) -> pd.DataFrame:
    """Improvement of every other arm over its unit's dense arm at the same budget, with 95 % intervals.

    Columns: unit, arm, budget, and for each of MEASURES its value, `_low` and `_high`. The intervals are
    over tasks, paired: both arms see the same draw.
    """
    rows = []
    for unit, of_unit in records.groupby("unit", sort=False):
        table, dense = errors_by_task(of_unit), dense_arm(of_unit)
        for (arm, budget), errors in table.iterrows():
            if arm == dense:
                continue
            pair = errors.to_numpy(), table.loc[(dense, budget)].to_numpy()
            row = {"unit": unit, "arm": arm, "budget": budget}
            for name, measure in MEASURES.items():
                row[name] = float(measure(*pair))
                row[f"{name}_low"], row[f"{name}_high"] = bootstrap_over_tasks(measure, *pair)
            rows.append(row)
    return pd.DataFrame(rows)
