"""The profiles of `make figures`: which arms each runs. Standard library only, so that make can ask often."""

import tomllib
from pathlib import Path

from lib.common.errors import UserError, choose
from lib.common.paths import BUILD, PAPER_RECORDS, ROOT
from lib.runs.stamps import spec_defaults

PROFILES = ROOT / "notebooks" / "profiles.toml"
# The profiles whose records are committed, and their folders below paper/records.
COMMITTED = {"paper": ".", "nevis": "nevis", "sizes": "sizes", "further": "further"}
_SPECIAL = "common", "seeds", "long"  # of a profile's tables; the others are groups of arms


def arms_of(profile: str, group: str | None = None) -> dict[str, dict]:
    """The fields of each arm's RunSpec by the arm's name, in order: of all groups, or of one.

    A profile has the groups of the one that it extends, and its own; `common` holds for all of them. What
    `seeds` lists is run with more seeds, under the names that `replicate` gives; what `long` lists, at more
    budgets. Paths are relative to the file. Raises UserError for an unknown profile, arm or field.
    """
    merged: dict[str, dict] = {special: {} for special in _SPECIAL}
    groups: dict[str, str] = {}
    arms: dict[str, dict] = {}
    for name, rows in _tables(profile):
        if name in _SPECIAL:
            merged[name] |= rows
        else:
            arms |= rows
            groups |= dict.fromkeys(rows, name)
    arms = {arm: _checked(arm, {**merged["common"], **fields}) for arm, fields in arms.items()}
    for arm, seeds in merged["seeds"].items():
        choose(f"arm in {profile}.seeds", arm, arms)
        arms |= {replicate(arm, seed): {**arms[arm], "seed": seed} for seed in seeds}
        groups |= {replicate(arm, seed): groups[arm] for seed in seeds}
    for arm, budgets in merged["long"].items():
        choose(f"arm in {profile}.long", arm, arms)
        arms[arm] = {**arms[arm], "budgets": sorted({*arms[arm].get("budgets", ()), *budgets})}
    return {arm: fields for arm, fields in arms.items() if group in (None, groups[arm])}


def _tables(profile: str) -> list[tuple[str, dict]]:
    """The tables of a profile by name, those of the profiles that it extends before its own."""
    try:
        profiles = tomllib.loads(PROFILES.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{PROFILES} cannot be read as TOML ({error}): mend it, or restore it.") from error
    found: list[tuple[str, dict]] = []
    seen: list[str] = []
    name: str | None = profile
    while name is not None:
        if name not in list(profiles) or name in seen:
            raise UserError(f"Unknown PROFILE={name}: expected one of {', '.join(profiles)}, none through itself.")
        seen.append(name)
        base = profiles[name].pop("extends", None)
        for table, rows in profiles[name].items():
            kind = {"common": object, "seeds": list, "long": list}.get(table, dict)
            if not isinstance(rows, dict) or not all(isinstance(row, kind) for row in rows.values()):
                raise UserError(f"{PROFILES.name}: {name}.{table}={rows!r} is not valid: see docs/extending.md.")
        found = [*profiles[name].items(), *found]
        name = base
    return found


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
    """Where an arm's records lie: under paper/records where those of its profile are committed, else under build/."""
    committed = profile in COMMITTED
    return (PAPER_RECORDS / COMMITTED[profile] if committed else BUILD / profile / "arms") / f"{arm}.parquet"
