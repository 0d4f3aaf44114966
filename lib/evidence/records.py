"""From records to statements: errors at matched compute, improvement over dense, and intervals.

Reads records only and imports nothing that trains. Accuracy here is 1 - error: for a multi-label task
that is the mean average precision.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.common.errors import UserError
from lib.runs.profiles import arms_of, records_file, replicate

RESAMPLES = 4000
COMPARED = "arms", "criteria", "shapes", "learners"  # the groups whose budgets are those of the main grid
# What tells one arm from another; `unit` and `own` are those of `described`.
NETWORK = ["unit", "own", "backbone", "image_size"]
PRUNING = ["ratio", "criterion", "scope", "granularity", "repair"]
LEARNING = ["learner", "trials"]


class Estimate(NamedTuple):
    """A value and its 95 % interval, which is the value itself where nothing was sampled."""

    value: float
    low: float
    high: float


class MissingArms(UserError):
    """The records lack the arms that a table or figure is about: it is left out, and the rest goes on."""


def load_records(profile: str, *groups: str) -> pd.DataFrame:
    """The records of the arms of a profile's groups (of "arms" if none is named), in the profile's order.

    A group that the profile does not have adds nothing. A column `arm` names the arm of a record; the seeds
    of an arm have its name. Further columns are those of `described`. Raises UserError naming the arms that
    have not been run.
    """
    arms = [arm for group in groups or ("arms",) for arm in arms_of(profile, group)]
    files = {arm: records_file(profile, arm) for arm in arms}
    if missing := [arm for arm, file in files.items() if not file.exists()]:
        # `figures` redraws the paper's records and measures none.
        command = "rerun" if profile == "paper" else "figures"
        raise UserError(
            f"No records of {', '.join(missing)} in {next(iter(files.values())).parent}: expected one "
            f"Parquet file per arm. Run `make {command} PROFILE={profile}`."
        )
    tables = [pd.read_parquet(file).assign(arm=arm) for arm, file in files.items()]
    records = pd.concat(tables, ignore_index=True)
    for seed in records["seed"].unique():
        records["arm"] = records["arm"].str.removesuffix(replicate("", seed))
    return described(records)


def described(records: pd.DataFrame) -> pd.DataFrame:
    """Records, such as those of `run_stream`, with the columns that all readers here go by.

    `unit` is the dense network and resolution that the budget is counted in, `own` whether a row is of that
    network and resolution, `arm` the name of what the row was run with: what it is called, if it has none.
    Raises UserError where there are no records, or an error is no number.
    """
    if records.empty:
        raise UserError("There are no records: expected at least one row. Run an arm first.")
    if (unknown := records["error_test"].isna()).any():
        raise UserError(
            f"error_test is no number in {unknown.sum()} records, of "
            f"{', '.join(records.loc[unknown, 'task'].unique())}: expected 0 to 1. Run them again."
        )
    network = records["backbone"] + "@" + records["image_size"].astype(str)
    unit = records["reference"].fillna(network)
    records = records.assign(unit=unit, own=network == unit)
    if "arm" not in records:
        number = records.groupby(NETWORK + PRUNING + LEARNING, sort=False, dropna=False).ngroup()
        called = arms(records.assign(arm=number))
        twice = called["label"].duplicated(keep=False)
        records["arm"] = number.map(called["label"].mask(twice, called["label"] + " in " + called["unit"]))
    return records


def arms(records: pd.DataFrame) -> pd.DataFrame:
    """What tells the arms apart, one row per arm, and its `label`: dense first, alternatives last."""
    table = records.drop_duplicates("arm").set_index("arm")[NETWORK + PRUNING + LEARNING]
    pruned, channel = table["ratio"] > 0, table["granularity"] == "channel"
    unusual = pruned & (table["criterion"] != "activation")
    ranks = [table["learner"] != "independent", ~table["own"], pruned, unusual, channel, table["ratio"]]
    table = table.iloc[np.lexsort(ranks[::-1])].assign(learnt=learner_names(table))
    return table.assign(label=[_label(arm) for _, arm in table.iterrows()])


def _label(arm: pd.Series) -> str:
    """What a row of `arms` is called in a legend."""
    network, pixels = arm.unit.split("@")
    removed = "dense"
    if arm.ratio:
        repair = "" if arm.repair == "none" else f" + {arm.repair}"
        parts = f"{100 * arm.ratio:.0f} %", arm.criterion, arm.scope, arm.granularity + repair
        removed = ", ".join(parts).replace("_", " ")
        removed = removed.replace(", uniform", "").replace(", filter", "")  # as usual
    words = [arm.backbone, removed, f"{arm.image_size} px", arm.learnt]
    return ", ".join(word for word in words if word not in (network, f"{pixels} px", "independent"))


def learner_names(records: pd.DataFrame) -> pd.Series:
    """What a row was learnt with: the learner, and that its recipe was searched, if it was."""
    return records["learner"].where(records["trials"] == 1, records["learner"] + ", searched")


def errors_by_seed(records: pd.DataFrame) -> pd.DataFrame:
    """Test error of the arms of one unit, rows (arm, budget), columns (event, seed).

    All of them spend the same compute at the same budget, so a column compares at matched compute. A seed
    that an arm was not run with at a budget is NaN. Raises UserError where a seed of an arm lacks a task that
    another has.
    """
    if records["unit"].nunique() > 1:
        raise UserError(
            f"The budgets of these records are in units of {' and '.join(records['unit'].unique())}: "
            "expected one. Compare the arms of each by themselves."
        )
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
    number = records.groupby("unit")["arm"].transform("nunique")
    return records[records.groupby(["unit", "budget"])["arm"].transform("nunique") == number]


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


def stacked(tables: Iterable[pd.DataFrame], expected: str) -> pd.DataFrame:
    """Tables, one below the other. Raises MissingArms where there are none, with what was expected."""
    if not (tables := list(tables)):
        raise MissingArms(f"The records have no arms to compare: expected {expected}.")
    return pd.concat(tables, ignore_index=True)


def draws(*errors: np.ndarray) -> list[np.ndarray]:
    """Tasks drawn with replacement, and seeds within each: errors (T, S) -> means over seeds (R, T).

    The same draw is used for all of `errors`.
    """
    generator = np.random.default_rng(0)
    tasks, seeds = errors[0].shape
    drawn = generator.integers(tasks, size=(RESAMPLES, tasks, 1))
    within = generator.integers(seeds, size=(RESAMPLES, tasks, seeds))
    return [error[drawn, within].mean(-1) for error in errors]


def estimate(statistic: Callable[..., np.ndarray], *errors: np.ndarray) -> Estimate:
    """A statistic of errors (T, S), with the 95 % percentile interval over `draws` of tasks and seeds.

    `statistic` maps arrays (..., T), the errors' means over seeds, to (...).
    """
    low, high = np.percentile(statistic(*draws(*errors)), [2.5, 97.5])
    return Estimate(float(statistic(*(error.mean(1) for error in errors))), float(low), float(high))


def mean_errors(records: pd.DataFrame) -> pd.DataFrame:
    """Mean test error over tasks and seeds of every arm at every budget, with its interval over both."""
    rows = []
    for unit, of_unit in records.groupby("unit", sort=False):
        table = errors_by_seed(of_unit)
        for arm, budget in table.index:
            error = estimate(lambda drawn: drawn.mean(-1), *seeds_in_common(table, (arm, budget)))
            rows.append((unit, arm, budget, *error))
    return pd.DataFrame(rows, columns=["unit", "arm", "budget", "error", "low", "high"])


def dense_arm(of_unit: pd.DataFrame, learner: str = "independent") -> str:
    """The arm of a unit's dense network with that learner. Raises MissingArms where there is none."""
    alike = of_unit["own"] & (of_unit["learner"] == learner) & (of_unit["ratio"] == 0)
    if not alike.any():
        raise MissingArms(
            f"No dense arm among {', '.join(of_unit['arm'].unique())}: expected one of "
            f"{of_unit['unit'].iloc[0]} with ratio 0 and learner {learner}."
        )
    return of_unit.loc[alike, "arm"].iloc[0]


def unlimited_table(records: pd.DataFrame) -> pd.DataFrame:
    """Mean test error over tasks, with its interval, one row per network: each has a budget of its own."""
    means = mean_errors(records.assign(unit=records["arm"])).set_index("arm").drop(columns="unit")
    about = records.drop_duplicates("arm").set_index("arm")[["backbone", "pretrained", "forward_macs"]]
    about = about.assign(forward_macs=(about["forward_macs"] / 1e6).round(1))
    return about.rename(columns={"forward_macs": "forward (million MACs)"}).join(means.round(3))


def accuracy_gain(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Relative gain of the mean accuracy over the dense network's: errors (..., T) -> (...)."""
    return (1 - pruned).mean(-1) / (1 - dense).mean(-1) - 1


def error_cut(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Share of the dense network's mean error that is gone: errors (..., T) -> (...)."""
    return 1 - pruned.mean(-1) / dense.mean(-1)


def points_gained(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Mean accuracy minus the dense network's, in percentage points: errors (..., T) -> (...)."""
    return 100 * (dense - pruned).mean(-1)


GAINS = {"accuracy_gain": accuracy_gain, "error_cut": error_cut, "points_gained": points_gained}


def gains_over(baseline: str, of_unit: pd.DataFrame) -> pd.DataFrame:
    """What every other arm of a unit gains over the arm `baseline` at the same budget.

    Columns: unit, arm, budget, and for each of GAINS its value, `_low` and `_high`: 95 % intervals over
    tasks and seeds, paired: both arms see the same draw of the seeds that both were run with.
    """
    table = errors_by_seed(of_unit)
    rows = []
    for arm, budget in table.index.drop(baseline, level="arm"):
        pair = seeds_in_common(table, (arm, budget), (baseline, budget))
        found = [estimate(gain, *pair) for gain in GAINS.values()]
        rows.append((of_unit["unit"].iloc[0], arm, budget, *np.ravel(found)))
    measured = [f"{name}{end}" for name in GAINS for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["unit", "arm", "budget", *measured])


def improvement_over_dense(records: pd.DataFrame, learner: str = "independent") -> pd.DataFrame:
    """`gains_over` its unit's dense arm of `learner`, for every other arm."""
    units = [of_unit for _, of_unit in records.groupby("unit", sort=False)]
    return stacked((gains_over(dense_arm(unit, learner), unit) for unit in units), "a dense arm and others")


def granularities_compared(records: pd.DataFrame) -> pd.DataFrame:
    """By how many points `filter` is ahead of `channel`, one row per unit, task, ratio and budget.

    Compares arms of one unit that differ in the granularity alone, over the seeds that both were run with.
    """
    alike = [name for name in NETWORK + PRUNING + LEARNING if name != "granularity"]
    rows = []
    for unit, of_unit in records.groupby("unit", sort=False):
        table, about = errors_by_seed(of_unit), of_unit.drop_duplicates("arm")
        thin, inner = (about[about["granularity"] == name] for name in ("channel", "filter"))
        tasks = of_unit.drop_duplicates("event").sort_values("event")[["event", "task"]]
        for pair in thin.merge(inner, on=alike, suffixes=("_channel", "_filter")).itertuples():
            for budget in table.loc[pair.arm_channel].index.intersection(table.loc[pair.arm_filter].index):
                errors = seeds_in_common(table, (pair.arm_channel, budget), (pair.arm_filter, budget))
                points = 100 * (errors[0] - errors[1]).mean(1)
                rows.append(tasks.assign(unit=unit, ratio=pair.ratio, budget=budget, points=points))
    found = stacked(rows, "two that differ in the granularity alone")
    return found[["unit", "event", "task", "ratio", "budget", "points"]]


def learners_grid(records: pd.DataFrame) -> pd.DataFrame:
    """Of each unit that was probed pruned: its own network, dense and pruned like that.

    Every learner is run with these two networks, so what is left differs in how a stream is learnt; at the
    budgets and with the seeds that all were run with.
    """
    parts = []
    for _, of_unit in records[records["own"]].groupby("unit", sort=False):
        probed = of_unit[(of_unit["learner"] == "probe") & (of_unit["ratio"] > 0)]
        if len(probed):
            alike = (of_unit[PRUNING] == probed.iloc[0][PRUNING]).all(axis=1)
            networks = of_unit[alike | (of_unit["ratio"] == 0)]
            number = networks["arm"].nunique()
            parts.append(networks[networks.groupby("seed")["arm"].transform("nunique") == number])
    return at_shared_budgets(stacked(parts, "a probe of a pruned network, and other learners on it"))


def learners_compared(records: pd.DataFrame) -> pd.DataFrame:
    """Every learner on each network (one per unit and ratio), one row per budget, with 95 % intervals.

    Intervals are over tasks and seeds. Columns: unit, ratio, learner, budget, error (mean over tasks), low,
    high, tera_macs (of the whole stream), and forward_transfer: by how many points the mean error is below
    that of `independent` on the same network at the same budget, paired, with `_low` and `_high`.
    """
    tables = []
    records = records.assign(arm=learner_names(records))
    for (_, ratio), of_network in records.groupby(["unit", "ratio"], sort=False):
        spent = of_network.groupby(["arm", "budget", "event"])["total_macs"].mean() / 1e12
        spent = spent.groupby(level=["arm", "budget"]).sum().rename("tera_macs").reset_index()
        gains = gains_over("independent", of_network).filter(regex="arm|budget|points_gained")
        gains.columns = gains.columns.str.replace("points_gained", "forward_transfer")
        table = mean_errors(of_network).merge(spent).merge(gains, how="left")
        table.insert(1, "ratio", ratio)
        tables.append(table.rename(columns={"arm": "learner"}).fillna(0))  # independent's own transfer
    return stacked(tables, "learners at budgets in common")


def along_the_stream(records: pd.DataFrame) -> pd.DataFrame:
    """After each event of an arm at a budget: the compute spent so far, and the mean error so far.

    Adds the columns cumulative_macs and mean_error_so_far; expects one seed per arm.
    """
    ordered = records.sort_values("event", kind="stable")
    groups = ordered.groupby(["arm", "budget"], sort=False)
    return ordered.assign(
        cumulative_macs=groups["total_macs"].cumsum(),
        mean_error_so_far=groups["error_test"].transform(lambda errors: errors.expanding().mean()),
    )
