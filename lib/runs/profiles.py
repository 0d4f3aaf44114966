"""The profiles of `make figures`: which arms each runs. Standard library only, so that make can ask often."""

import tomllib
from pathlib import Path

from lib.common.errors import UserError, choose
from lib.common.paths import BUILD, PAPER_RECORDS, ROOT
from lib.runs.stamps import spec_defaults

PROFILES = ROOT / "notebooks" / "profiles.toml"
_SPECIAL = "common", "extends", "seeds", "long"  # of a profile's tables; the others are groups of arms


def arms_of(profile: str, group: str | None = None) -> dict[str, dict]:
    """The fields of each arm's RunSpec by the arm's name, in order: of all groups, or of one.

    A profile has the groups of the one that it extends, and its own; `common` holds for all of them. What
    `seeds` lists is run with more seeds, under the names that `replicate` gives; what `long` lists, at more
    budgets. Paths are relative to the file. Raises UserError for an unknown profile, arm or field.
    """
    groups: dict[str, str] = {}
    arms: dict[str, dict] = {}
    common: dict[str, object] = {}
    seeds: dict[str, list] = {}
    long: dict[str, list] = {}
    for tables in _extended(profile):
        common |= tables.get("common", {})
        seeds |= tables.get("seeds", {})
        long |= tables.get("long", {})
        for name in (name for name in tables if name not in _SPECIAL):
            arms |= tables[name]
            groups |= dict.fromkeys(tables[name], name)
    arms = {arm: _checked(arm, {**common, **fields}) for arm, fields in arms.items()}
    for arm, numbers in seeds.items():
        choose(f"arm in {profile}.seeds", arm, arms)
        for seed in numbers:
            arms[replicate(arm, seed)] = {**arms[arm], "seed": seed}
            groups[replicate(arm, seed)] = groups[arm]
    for arm, budgets in long.items():
        choose(f"arm in {profile}.long", arm, arms)
        arms[arm] = {**arms[arm], "budgets": sorted({*arms[arm].get("budgets", ()), *budgets})}
    return {arm: fields for arm, fields in arms.items() if group in (None, groups[arm])}


def _extended(profile: str) -> list[dict]:
    """The tables of a profile, those of the profiles that it extends before its own."""
    try:
        profiles = tomllib.loads(PROFILES.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{PROFILES} cannot be read as TOML ({error}): mend it, or restore it.") from error
    found: list[dict] = []
    name: str | None = profile
    while name is not None:
        if name not in profiles or profiles[name] in found:
            raise UserError(f"Unknown PROFILE={name}: expected one of {', '.join(profiles)}, none through itself.")
        for table, rows in profiles[name].items():
            if not _is_well_formed(table, rows):
                raise UserError(f"{PROFILES.name}: {name}.{table}={rows!r} is not valid: see docs/extending.md.")
        found.insert(0, profiles[name])
        name = profiles[name].get("extends")
    return found


def _is_well_formed(table: str, rows: object) -> bool:
    if table == "extends" or not isinstance(rows, dict):
        return table == "extends" and isinstance(rows, str)
    kind = list if table in ("seeds", "long") else object if table == "common" else dict
    return all(isinstance(row, kind) for row in rows.values())


def _checked(arm: str, fields: dict) -> dict:
    """An arm's fields, its paths absolute. Raises UserError for one that a RunSpec does not have."""
    for name in fields:
        choose(f"field of the arm {arm}", name, spec_defaults())
    paths = {name: fields[name] for name in ("stream", "weights") if "." in str(fields.get(name, ""))}
    return fields | {name: str((PROFILES.parent / path).resolve()) for name, path in paths.items()}


def replicate(arm: str, seed: int) -> str:
    """The name of an arm that is run with another seed than its own."""
    return f"{arm}-seed{seed}"


def records_file(profile: str, arm: str) -> Path:
    """Where an arm's records lie: committed for the paper, under build/ for the others."""
    folder = PAPER_RECORDS if profile == "paper" else BUILD / profile / "arms"
    return folder / f"{arm}.parquet"
