"""From records to statements: errors at matched compute, improvement over dense, and intervals.

Reads records only and imports nothing that trains. Accuracy here is 1 - error: for a multi-label task
that is the mean average precision.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.common.errors import UserError
from lib.runs.profiles import arms_of, records_file, replicate

RESAMPLES = 4000
COMPARED = "arms", "criteria", "shapes", "learners"  # the groups whose budgets are those of the main grid


def load_records(profile: str, *groups: str) -> pd.DataFrame:
    """The records of the arms of a profile's groups (of "arms" if none is named), in the profile's order.

    A group that the profile does not have adds nothing. A column `arm` names the arm of a record.
    The seeds of an arm have its name. A column `unit` names the dense network and resolution that the budget
    is counted in. Raises UserError naming the arms that have not been run.
    """
    arms = [arm for group in groups or ("arms",) for arm in arms_of(profile, group)]
    files = {arm: records_file(profile, arm) for arm in arms}
    missing = [arm for arm, file in files.items() if not file.exists()]
    if missing:
        # `figures` redraws the paper's records and measures none.
        command = "rerun" if profile == "paper" else "figures"
        raise UserError(
            f"No records of {', '.join(missing)} in {next(iter(files.values())).parent}: expected one "
            f"Parquet file an arm. Run `make {command} PROFILE={profile}`."
        )
    records = pd.concat(
        [pd.read_parquet(file).assign(arm=arm) for arm, file in files.items()], ignore_index=True
    )
    if "seed" in records:
        for seed in records["seed"].unique():
            records["arm"] = records["arm"].str.removesuffix(replicate("", seed))
    return records.assign(unit=records["reference"].fillna(network_of(records)))


def network_of(records: pd.DataFrame) -> pd.Series:
    """The network and resolution of each row, as a unit is written; its unit's own where they agree."""
    return records["backbone"] + "@" + records["image_size"].astype(str)


def errors_by_seed(records: pd.DataFrame) -> pd.DataFrame:
    """Test error of the arms of one unit, rows (arm, budget), columns (event, seed).

    All of them spend the same compute at the same budget, so a column compares at matched compute. A seed
    that an arm was not run with at a budget is NaN. Raises UserError where a seed of an arm lacks a task that
    another has.
    """
    tasks_differ = (records.groupby("event")["task"].nunique() > 1).any()
    compute_differs = (records.groupby(["event", "budget"])["limit_macs"].nunique() > 1).any()
    runs = records[["arm", "seed", "budget"]].drop_duplicates()
    whole = len(runs) * records["event"].nunique()
    table = records.pivot_table("error_test", ["arm", "budget"], ["event", "seed"], sort=False)
    if tasks_differ or compute_differs or table.count().sum() != whole:
        raise UserError(
            "The arms' records do not compare: expected the same tasks, and the same compute at the same "
            "budget, for all of them. Run the profile's arms again."
        )
    return table


def at_shared_budgets(records: pd.DataFrame) -> pd.DataFrame:
    """The records at the budgets that every arm of their unit was run with."""
    arms = records.groupby("unit")["arm"].transform("nunique")
    return records[records.groupby(["unit", "budget"])["arm"].transform("nunique") == arms]


def seeds_in_common(table: pd.DataFrame, *rows: tuple[str, float]) -> list[np.ndarray]:
    """The errors (T, S) of rows of `errors_by_seed`, with the seeds that all of them were run with.

    Raises UserError where they have none in common, or an arm was not run with that budget.
    """
    if missing := [f"{arm} at {budget:g}" for arm, budget in rows if (arm, budget) not in table.index]:
        raise UserError(
            f"No records of {' and '.join(missing)} dense epochs: expected the same budget of all arms that "
            "are compared. Run the profile's arms again."
        )
    chosen = table.loc[list(rows)].dropna(axis=1)
    if chosen.empty:
        raise UserError(
            f"{' and '.join(arm for arm, _ in rows)} have no seed in common: expected one. Run the profile's "
            "arms again."
        )
    tasks = chosen.columns.get_level_values("event").nunique()
    ordered = chosen.sort_index(axis=1)
    return [errors.to_numpy().reshape(tasks, -1) for _, errors in ordered.iterrows()]


def draws(*errors: np.ndarray) -> list[np.ndarray]:
    """Tasks drawn with replacement, and seeds within each: errors (T, S) -> means over seeds (R, T).

    The same draw is used for all of `errors`.
    """
    generator = np.random.default_rng(0)
    tasks, seeds = errors[0].shape
    drawn = generator.integers(tasks, size=(RESAMPLES, tasks, 1))
    within = generator.integers(seeds, size=(RESAMPLES, tasks, seeds))
    return [error[drawn, within].mean(-1) for error in errors]


def bootstrap(statistic: Callable[..., np.ndarray], *errors: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of `statistic` over `draws` of tasks and seeds.

    `statistic` maps arrays (R, T), the means over the drawn seeds, to (R,).
    """
    low, high = np.percentile(statistic(*draws(*errors)), [2.5, 97.5])
    return float(low), float(high)


def mean_errors(records: pd.DataFrame) -> pd.DataFrame:
    """Mean test error over tasks and seeds of every arm at every budget, with its interval over both."""
    rows = []
    for unit, of_unit in records.groupby("unit", sort=False):
        table = errors_by_seed(of_unit)
        for arm, budget in table.index:
            row = {"unit": unit, "arm": arm, "budget": budget}
            (errors,) = seeds_in_common(table, (arm, budget))
            rows.append(row | _with_interval("error", lambda drawn: drawn.mean(-1), errors))
    return pd.DataFrame(rows).rename(columns={"error_low": "low", "error_high": "high"})


def dense_arm(of_unit: pd.DataFrame, learner: str = "independent") -> str:
    """The arm of a unit's dense network with that learner. Raises UserError where there is none."""
    own = network_of(of_unit) == of_unit["unit"]
    alike = of_unit["learner"] == learner
    found = of_unit.loc[own & alike & (of_unit["ratio"] == 0), "arm"]
    if found.empty:
        raise UserError(
            f"No dense arm among {', '.join(of_unit['arm'].unique())}: expected one of "
            f"{of_unit['unit'].iloc[0]} with ratio 0 and learner {learner}."
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


def _with_interval(name: str, measure: Callable[..., np.ndarray], *errors: np.ndarray) -> dict[str, float]:
    """`measure` of errors (T, S) under `name`, and its interval under `name`_low and `name`_high."""
    low, high = bootstrap(measure, *errors)
    return {
        name: float(measure(*(error.mean(1) for error in errors))),
        f"{name}_low": low,
        f"{name}_high": high,
    }


def improvement_over_dense(records: pd.DataFrame, learner: str = "independent") -> pd.DataFrame:
    """Improvement of every other arm over its unit's dense arm of `learner` at the same budget.

    Columns: unit, arm, budget, and for each of MEASURES its value, `_low` and `_high`: 95 % intervals over
    tasks and seeds, paired: both arms see the same draw of the seeds that both were run with.
    """
    rows = []
    for unit, of_unit in records.groupby("unit", sort=False):
        table, dense = errors_by_seed(of_unit), dense_arm(of_unit, learner)
        for arm, budget in table.index:
            if arm == dense:
                continue
            pair = seeds_in_common(table, (arm, budget), (dense, budget))
            row = {"unit": unit, "arm": arm, "budget": budget}
            for name, measure in MEASURES.items():
                row |= _with_interval(name, measure, *pair)
            rows.append(row)
    measured = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["unit", "arm", "budget", *measured])


def granularities_compared(records: pd.DataFrame) -> pd.DataFrame:
    """By how many points `filter` is ahead of `channel`, a row a unit, task, ratio and budget.

    Compares arms of one unit that differ in the granularity alone, over the seeds that both were run with.
    """
    alike = ["backbone", "ratio", "criterion", "scope", "repair", "learner", "trials", "image_size"]
    rows = []
    for unit, of_unit in records.groupby("unit", sort=False):
        table, about = errors_by_seed(of_unit), of_unit.drop_duplicates("arm")
        thin, inner = (about[about["granularity"] == name] for name in ("channel", "filter"))
        pairs = thin.merge(inner, on=alike, suffixes=("_channel", "_filter"))
        tasks = of_unit.drop_duplicates("event").sort_values("event")["task"]
        for pair in pairs.itertuples():
            for budget in table.loc[pair.arm_channel].index.intersection(table.loc[pair.arm_filter].index):
                errors = seeds_in_common(table, (pair.arm_channel, budget), (pair.arm_filter, budget))
                about_it = {"unit": unit, "task": tasks, "ratio": pair.ratio, "budget": budget}
                rows.append(pd.DataFrame({**about_it, "points": 100 * (errors[0] - errors[1]).mean(1)}))
    return pd.concat(rows, ignore_index=True)


def learner_names(records: pd.DataFrame) -> pd.Series:
    """What a row was learnt with: the learner, and that its recipe was searched, if it was."""
    return records["learner"].where(records["trials"] == 1, records["learner"] + ", searched")


def learners_grid(records: pd.DataFrame) -> pd.DataFrame:
    """Of each unit that was probed pruned: its own network, dense and pruned like that.

    Every learner is run with these two networks, so what is left differs in how a stream is learnt; at the
    budgets and with the seeds that all were run with.
    """
    fields = ["ratio", "criterion", "scope", "granularity", "repair"]
    own = records[network_of(records) == records["unit"]]
    parts = []
    for _, of_unit in own.groupby("unit", sort=False):
        probed = of_unit[(of_unit["learner"] == "probe") & (of_unit["ratio"] > 0)]
        if len(probed):
            alike = (of_unit[fields] == probed.iloc[0][fields]).all(axis=1)
            networks = of_unit[alike | (of_unit["ratio"] == 0)]
            arms = networks["arm"].nunique()
            parts.append(networks[networks.groupby("seed")["arm"].transform("nunique") == arms])
    return at_shared_budgets(pd.concat(parts))


def learners_compared(records: pd.DataFrame) -> pd.DataFrame:
    """Every learner on each network (one a unit and ratio), a row a budget, with 95 % intervals.

    Intervals are over tasks and seeds. Columns: unit, ratio, learner, budget, error (mean over tasks), low,
    high, tera_macs (of the whole stream), and forward_transfer: by how many points the mean error is below
    that of `independent` on the same network at the same budget, paired, with `_low` and `_high`.
    """
    records = records.assign(learner=learner_names(records))
    rows = []
    for (unit, ratio), of_network in records.groupby(["unit", "ratio"], sort=False):
        of_network = of_network.assign(arm=of_network["learner"])
        table = errors_by_seed(of_network)
        by_event = of_network.groupby(["learner", "budget", "event"])["total_macs"].mean()
        spent = by_event.groupby(level=["learner", "budget"]).sum()
        for mean in mean_errors(of_network).itertuples():
            pair = seeds_in_common(table, (mean.arm, mean.budget), ("independent", mean.budget))
            gained = _with_interval("forward_transfer", points_gained, *pair)
            rows.append(
                {
                    "unit": unit,
                    "ratio": ratio,
                    "learner": mean.arm,
                    "budget": mean.budget,
                    "error": mean.error,
                    "low": mean.low,
                    "high": mean.high,
                    "tera_macs": spent[(mean.arm, mean.budget)] / 1e12,
                    **gained,
                }
            )
    return pd.DataFrame(rows)


def along_the_stream(records: pd.DataFrame) -> pd.DataFrame:
    """After each event of an arm at a budget: the compute spent so far, and the mean error so far.

    Adds the columns cumulative_macs and mean_error_so_far; expects one seed an arm.
    """
    ordered = records.sort_values("event", kind="stable")
    groups = ordered.groupby(["arm", "budget"], sort=False)
    return ordered.assign(
        cumulative_macs=groups["total_macs"].cumsum(),
        mean_error_so_far=groups["error_test"].transform(lambda errors: errors.expanding().mean()),
    )
