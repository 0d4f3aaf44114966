"""Records as they are read here: which arms there are, of which family, and what they are called in words.

Imports nothing that trains.
"""

import numpy as np
import pandas as pd

from lib.common.errors import UserError
from lib.runs.profiles import COMMITTED, arms_of, records_file, replicate

COMPARED = "arms", "shares", "learners", "ladder"  # the groups that networks are chosen from; the others are controls
NETWORK = ["backbone", "image_size", "pretrained"]
PRUNING = ["ratio", "criterion", "scope", "granularity", "repair", "calibration", "calibration_images"]
LEARNING = ["learner", "trials"]
# A probe solves a head on a frozen network, and may go on from there; what is called fine-tuned starts by training.
DENSE = "dense, probe", "dense, fine-tuned"
PRUNED = "pruned, probe", "pruned, fine-tuned"
ELSE = "fewer pixels", "other network"
CONTROLS = "raw pixels", "majority class"
FAMILIES = *PRUNED, *DENSE, *ELSE

# --- words for what a label says; a name that is not here is said as it is ------------------------------
_WORDS = {
    "efficientnet_lite0": "EfficientNet-Lite0",
    "efficientnet_lite1": "EfficientNet-Lite1",
    "efficientnet_lite2": "EfficientNet-Lite2",
    "resnet50_64": "ResNet-50",
    "resnet26_64": "ResNet-26",
    "resnet18half_64": "half ResNet-18",
    "resnet18quarter_64": "quarter ResNet-18",
    "resnet18eighth_64": "eighth ResNet-18",
    "independent": "fine-tuned",
    "probe_finetune": "probe, then fine-tuned",
    "previous": "from the last task",
    "dynamic": "from the nearest task",
    "activation_images": "activations",
    "activation": "activations, data-free",
    "l1": "weight norms",
    "random": "drawn at random",
    "filter": "inner filters",
    "channel": "channels",
    "none": "no repair",
    "least_squares": "least squares",
    "least_squares_synthetic": "synthetic images",
    "sequential": "layer by layer",
    "sequential_synthetic": "layer by layer, synthetic images",
    "task": "a task's own images",
    "shipped": "shipped images",
}


class MissingArms(UserError):
    """The records lack the arms that a table or figure is about: it is left out, and the rest goes on."""


def load_records(profile: str, *groups: str) -> pd.DataFrame:
    """The records of the arms of a profile's groups (of "arms" if none is named), in the profile's order.

    A group that the profile does not have adds nothing. A column `arm` names the arm of a record; the seeds
    of an arm have its name. Further columns are those of `described`. Raises UserError naming the arms that
    have not been run.
    """
    files = {arm: records_file(profile, arm) for group in groups or ("arms",) for arm in arms_of(profile, group)}
    if not files:
        raise MissingArms(f"The profile {profile} has no arms in {' or '.join(groups)}.")
    if missing := [arm for arm, file in files.items() if not file.exists()]:
        command = "rerun" if profile in COMMITTED else "figures"  # which only draws what is committed
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

    `family` is one of FAMILIES or CONTROLS, `arm` the name of what the row was run with: its label, if it has none.
    Raises UserError where there are no records, or an error is no number.
    """
    if records.empty:
        raise UserError("There are no records: expected at least one row. Run an arm first.")
    if (unknown := records["error_test"].isna()).any():
        tasks = ", ".join(records.loc[unknown, "task"].unique())
        raise UserError(f"error_test is no number in {unknown.sum()} records, of {tasks}: expected 0 to 1. Rerun them.")
    records = records.assign(family=_families(records))
    if "arm" not in records:
        number = records.groupby([*NETWORK, *PRUNING, *LEARNING], sort=False, dropna=False).ngroup()
        records["arm"] = number.map(arms(records.assign(arm=number))["label"])
    return records


def of_reference(table: pd.DataFrame) -> pd.Series:
    """Whether the network of each row is the reference, whatever is left of it and at however many pixels."""
    return table["backbone"] == table["reference"].str.split("@").str[0]


def reference_pixels(table: pd.DataFrame) -> pd.Series:
    """The side in pixels of the reference network's images, of each row."""
    return table["reference"].str.split("@").str[1].astype(int)


def _families(records: pd.DataFrame) -> np.ndarray:
    """What each record's network is, and where networks are compared by it, whether it is probed or fine-tuned."""
    kinds = {
        "majority class": records["learner"] == "majority",
        "raw pixels": records["learner"] == "pixels",
        "pruned": records["ratio"] > 0,
        "other network": ~of_reference(records),
        "fewer pixels": records["image_size"] < reference_pixels(records),
    }
    kind = np.select([*kinds.values()], [*kinds], "dense")
    learnt = np.where(records["learner"].isin(["probe", "probe_finetune"]), ", probe", ", fine-tuned")
    return np.where(np.isin(kind, ["pruned", "dense"]), np.char.add(kind, learnt), kind)


def arms(records: pd.DataFrame) -> pd.DataFrame:
    """What tells the arms apart, one row per arm in the records' order, with its `family` and its `label` in words.

    `how` says what about its pruning, or its weights, differs from how most arms are pruned: "" if nothing does.
    """
    table = records.drop_duplicates("arm").set_index("arm")[[*NETWORK, *PRUNING, *LEARNING, "family", "reference"]]
    pruned = table[table["ratio"] > 0]
    usual = pruned[PRUNING].mode().iloc[0] if len(pruned) else table[PRUNING].iloc[0]
    table["how"] = [_how(arm, usual) for _, arm in table.iterrows()]
    usual_size = (
        table.groupby("backbone")["image_size"].transform("max").where(~of_reference(table), reference_pixels(table))
    )
    return table.assign(label=[_label(arm, size) for (_, arm), size in zip(table.iterrows(), usual_size, strict=True)])


def _how(arm: pd.Series, usual: pd.Series) -> str:
    words = [] if arm["pretrained"] else ["random weights"]
    looked_at = ("criterion", "granularity", "repair", "calibration") if arm["ratio"] and arm["pretrained"] else ()
    return ", ".join(words + [said(arm[name]) for name in looked_at if arm[name] != usual[name]])


def _label(arm: pd.Series, usual_size: int) -> str:
    if arm["family"] in CONTROLS:
        return arm["family"]
    words = [said(arm["backbone"])] if arm["backbone"] != arm["reference"].split("@")[0] else []
    words += [f"{arm['image_size']} px"] if arm["image_size"] != usual_size else []
    words += [f"{arm['ratio']:.0%} removed"] if arm["ratio"] else []
    return ", ".join(filter(None, [*(words or ["dense"]), arm["how"], learner_said(arm)]))


def said(name: str) -> str:
    """A name of the code in words."""
    return _WORDS.get(name, name.partition(":")[2].replace("_", " ") or name.replace("_", " "))


def learner_said(arm: pd.Series) -> str:
    """How an arm learns, in words."""
    return said(arm["learner"]) + (", rates searched" if arm["trials"] > 1 else "")


def some(table: pd.DataFrame, expected: str) -> pd.DataFrame:
    """The table. Raises MissingArms where it has no rows, with what was expected."""
    if table.empty:
        raise MissingArms(f"The records have no arms to compare: expected {expected}.")
    return table


def of_families(records: pd.DataFrame, *families: str) -> list[str]:
    """The arms of families, in the records' order."""
    return list(records.loc[records["family"].isin(families), "arm"].unique())


def at_budgets_of_all_families(records: pd.DataFrame) -> pd.DataFrame:
    """The records at the budgets at which some arm of every family was run, so that no alternative is missing."""
    every = records.groupby("budget")["family"].transform("nunique") == records["family"].nunique()
    return records[every]


def at_shared_budgets(records: pd.DataFrame) -> pd.DataFrame:
    """The records at the budgets that every arm was run with."""
    every = records.groupby("budget")["arm"].transform("nunique") == records["arm"].nunique()
    return records[every]
