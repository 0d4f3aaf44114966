"""Records as they are read here: what tells their arms apart, and what an arm is called.

Imports nothing that trains.
"""

from collections.abc import Callable
from functools import wraps

import numpy as np
import pandas as pd

from lib.common.errors import UserError
from lib.runs.profiles import arms_of, records_file, replicate

COMPARED = "arms", "criteria", "shapes", "learners"  # the groups whose budgets are those of the main grid
# What tells one arm from another; `unit` and `own` are those of `described`.
NETWORK = ["unit", "own", "backbone", "image_size"]
PRUNING = ["ratio", "criterion", "scope", "granularity", "repair"]
LEARNING = ["learner", "trials"]


class MissingArms(UserError):
    """The records lack the arms that a table or figure is about: it is left out, and the rest goes on."""


def load_records(profile: str, *groups: str) -> pd.DataFrame:
    """The records of the arms of a profile's groups (of "arms" if none is named), in the profile's order.

    A group that the profile does not have adds nothing. A column `arm` names the arm of a record; the seeds
    of an arm have its name. Further columns are those of `described`. Raises UserError naming the arms that
    have not been run.
    """
    files = {arm: records_file(profile, arm) for group in groups or ("arms",) for arm in arms_of(profile, group)}
    if missing := [arm for arm, file in files.items() if not file.exists()]:
        command = "rerun" if profile == "paper" else "figures"  # which draws the paper's records, and measures none
        raise UserError(
            f"No records of {', '.join(missing)} in {files[missing[0]].parent}: expected one Parquet file per arm. "
            f"Run `make {command} PROFILE={profile}`."
        )
    records = pd.concat([pd.read_parquet(file).assign(arm=arm) for arm, file in files.items()], ignore_index=True)
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
        tasks = ", ".join(records.loc[unknown, "task"].unique())
        raise UserError(f"error_test is no number in {unknown.sum()} records, of {tasks}: expected 0 to 1. Rerun them.")
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
    repair = "" if arm.repair == "none" else f" + {arm.repair}"
    pruned = f"{100 * arm.ratio:.0f} %, {arm.criterion}, {arm.scope}, {arm.granularity}{repair}".replace("_", " ")
    pruned = pruned.replace(", uniform", "").replace(", filter", "")  # as usual
    words = [arm.backbone, pruned if arm.ratio else "dense", f"{arm.image_size} px", arm.learnt]
    return ", ".join(word for word in words if word not in (network, f"{pixels} px", "independent"))


def learner_names(records: pd.DataFrame) -> pd.Series:
    """What a row was learnt with: the learner, and that its recipe was searched, if it was."""
    return records["learner"].where(records["trials"] == 1, records["learner"] + ", searched")


def some(table: pd.DataFrame, expected: str) -> pd.DataFrame:
    """The table. Raises MissingArms where it has no rows, with what was expected."""
    if table.empty:
        raise MissingArms(f"The records have no arms to compare: expected {expected}.")
    return table


def per(*columns: str) -> Callable[[Callable[..., pd.DataFrame]], Callable[..., pd.DataFrame]]:
    """Let a function see the records of a unit, or of what else `columns` tell apart, at a time.

    Its tables lie one below the other, after columns that say what they are of.
    """

    def decorate(table_of: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
        @wraps(table_of)
        def of_all(records: pd.DataFrame, *arguments: object) -> pd.DataFrame:
            parts = some(records, "records at budgets in common").groupby(list(columns), sort=False)
            tables = {key: table_of(part, *arguments) for key, part in parts}
            return pd.concat(tables, names=columns).infer_objects().reset_index(columns).reset_index(drop=True)

        return of_all

    return decorate


def at_shared_budgets(records: pd.DataFrame) -> pd.DataFrame:
    """The records at the budgets that every arm of their unit was run with."""
    number = records.groupby("unit")["arm"].transform("nunique")
    return records[records.groupby(["unit", "budget"])["arm"].transform("nunique") == number]


def learners_grid(records: pd.DataFrame) -> pd.DataFrame:
    """Of each unit that was probed pruned: its own network, dense and pruned like that.

    Every learner is run with these two networks, so what is left differs in how a stream is learnt; at the
    budgets and with the seeds that all were run with.
    """
    own = records[records["own"]].set_index(["unit", *PRUNING], drop=False)
    probed = own[(own["learner"] == "probe") & (own["ratio"] > 0)].drop_duplicates("unit")
    dense = (own["ratio"] == 0) & own["unit"].isin(probed["unit"])
    networks = own[own.index.isin(probed.index) | dense].reset_index(drop=True)
    number = networks.groupby("unit")["arm"].transform("nunique")
    every = networks.groupby(["unit", "seed"])["arm"].transform("nunique") == number
    return some(at_shared_budgets(networks[every]), "a probe of a pruned network, and other learners on it")
