"""Measure the paper's claims again: `python -m paper.verify PROFILE`.

First the committed records against the arms that the profile `paper` lists, and every committed number
against the records; then each claim that the profile can test, on its own records or on the code. Exits 1
when a number differs or a claim that was tested does not hold. Once `make rerun PROFILE=paper` has measured
the records anew, numbers differ as they must: with that profile the claims are tested on the new ones.
"""

import json
import sys
from collections.abc import Iterator

import pandas as pd

from lib.common.errors import UserError, exit_with_one_sentence
from lib.evidence.records import load_records
from lib.runs.profiles import COMMITTED, arms_of, records_file
from lib.runs.spec import RunSpec
from paper.build import (
    EVERY,
    GENERATED,
    PINNED,
    README,
    STREAMS,
    claimed_records,
    generated_files,
    published_claims,
    with_answer,
)
from paper.claims import OF_RECORDS, NotMeasured, evaluate, load_claims


def altered() -> list[str]:
    """The generated files, and the README, that are not what the committed records and claims give."""
    files = generated_files(published_claims())
    wrong = [
        name
        for name, text in files.items()
        if not (GENERATED / name).exists() or (GENERATED / name).read_text() != text
    ]
    readme = README.read_text()
    return wrong + [README.name] * (with_answer(readme, files["answer.md"]) != readme)


def _committed() -> Iterator[tuple[str, str, dict]]:
    """The profile, name and fields of every arm whose records are committed."""
    for profile in COMMITTED:
        for arm, fields in arms_of(profile).items():
            if records_file(profile, arm).exists():
                yield profile, arm, fields


def unlike_their_arms() -> list[str]:
    """The arms whose committed records were measured with other fields or budgets than are listed."""
    found = []
    for profile, arm, fields in _committed():
        records, spec = pd.read_parquet(records_file(profile, arm)), RunSpec(**fields).model_dump()
        same = set(records["budget"]) == set(spec["budgets"])
        for name in spec.keys() & set(records.columns):
            alike = records[name].isna() if spec[name] is None else records[name] == spec[name]
            same &= bool(alike.all())
        if not same:
            found.append(arm)
    return found


def from_changed_trees() -> list[str]:
    """The arms whose committed records were measured by code that no commit holds as it was."""
    files = {arm: records_file(profile, arm).with_suffix(".json") for profile, arm, _ in _committed()}
    return [arm for arm, file in files.items() if "with changes" in json.loads(file.read_text())["commit"]]


def verify(profile: str) -> tuple[pd.DataFrame, bool]:
    """One row per claim: what was published, what is measured now, and the verdict; and if all is well."""
    arms_of(profile)  # refuses an unknown one
    published = json.loads((GENERATED / "claims.json").read_text())
    if profile == "paper":
        records = claimed_records()
    else:  # what `smoke` measures says that everything works, and nothing about errors
        streams = {**STREAMS, "pocket": "pocket"}
        records = {stream: load_records(profile, *EVERY) for stream, of in streams.items() if of == profile}
    rows, well = [], True
    for claim in load_claims():
        before, now, verdict = _shown(published[claim.id]), "", "not measured here"
        try:
            found = evaluate(claim, records)
        except NotMeasured:
            pass
        else:
            now, verdict = _shown(found._asdict()), "reproduced" if claim.is_true_of(found) else "not reproduced"
            well &= claim.is_true_of(found)
        kind = "records" if claim.estimator in OF_RECORDS else "code"
        rows.append((claim.id, kind, claim.holds, before, now, verdict))
    return pd.DataFrame(rows, columns=["claim", "of", "holds", "published", "now", "verdict"]), well


def _shown(found: dict[str, float]) -> str:
    interval = "" if found["low"] == found["high"] else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
    return f"{found['value']:+.3f}{interval}"


def main(profile: str) -> None:
    if unlike := unlike_their_arms():
        raise UserError(
            f"The records of {', '.join(unlike)} were not measured with what profiles.toml lists: expected "
            "the same fields and budgets. Run `make rerun PROFILE=paper`, or restore them by `git checkout`."
        )
    wrong = altered()
    anew = profile == "paper" and PINNED in wrong
    if wrong and not anew:
        raise UserError(
            f"{', '.join(wrong)} in {GENERATED.name}/ are not what the committed records give: expected the "
            "files of `make numbers`. Restore them or the records with `git checkout`."
        )
    table, well = verify(profile)
    print(table.to_string(index=False))
    if not anew and (changed := from_changed_trees()):
        print(
            f"\nThe records of {', '.join(changed)} were measured by code with changes that no commit holds: "
            "their training_hash tells the code, and `make figures PROFILE=paper` whether it is today's."
        )
    counts = table["verdict"].value_counts()
    print(
        "\nThe records are not the published ones: the claims were tested on what was measured anew."
        if anew
        else f"\nEvery committed number follows from what {PINNED} pins: the records, and one figure's data."
    )
    print(f"{profile}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".")
    if not well:
        sys.exit(1)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(*sys.argv[1:])
