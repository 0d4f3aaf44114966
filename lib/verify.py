"""Measure the paper's claims again: `python -m lib.verify PROFILE`.

First every committed number against the committed records; then each claim that the profile can test against
its own records, or against the code. Exits 1 when a number differs or a claim that was tested does not hold.
"""

import json
import sys

import pandas as pd

from lib.analysis import COMPARED, load_records
from lib.claims import MEASURES, Measured, NotMeasured, load_claims, measured
from lib.errors import UserError, exit_with_one_sentence
from lib.paper import GENERATED, generated_files
from lib.profiles import arms_of

TOO_SMALL = ("smoke",)  # its records say that everything works, and nothing about errors


def altered() -> list[str]:
    """The generated files that are not what the committed records and claims give."""
    return [
        name for name, text in generated_files().items()
        if not (GENERATED / name).exists() or (GENERATED / name).read_text() != text
    ]  # fmt: skip


def verify(profile: str) -> tuple[pd.DataFrame, bool]:
    """A row a claim: what was published, what is measured now, and the verdict; and whether all is well."""
    arms_of(profile)  # refuses an unknown one
    published = json.loads((GENERATED / "claims.json").read_text())
    records = None if profile in TOO_SMALL else load_records(profile, *COMPARED)
    rows, well = [], True
    for claim in load_claims():
        before, now, verdict = Measured(**published[claim.id]), None, "not measured here"
        try:
            now = measured(claim, records)
        except NotMeasured:
            pass
        else:
            verdict = "reproduced" if claim.is_true_of(now) else "not reproduced"
            well &= claim.is_true_of(now)
        kind = "records" if MEASURES[claim.measure].needs_records else "code"
        rows.append({
            "claim": claim.id, "of": kind, "holds": claim.holds, "published": _shown(before),
            "now": "" if now is None else _shown(now), "verdict": verdict,
        })  # fmt: skip
    return pd.DataFrame(rows), well


def _shown(measured: Measured) -> str:
    interval = "" if measured.low == measured.high else f" [{measured.low:+.3f}, {measured.high:+.3f}]"
    return f"{measured.value:+.3f}{interval}"


def main(profile: str) -> None:
    if wrong := altered():
        raise UserError(
            f"{', '.join(wrong)} in {GENERATED.name}/ are not what the committed records give: expected the "
            "files of `make numbers`. Restore them or the records with `git checkout`."
        )
    table, well = verify(profile)
    print(table.to_string(index=False))
    counts = table["verdict"].value_counts()
    print("\nEvery committed number follows from the committed records.")
    print(f"{profile}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".")
    if not well:
        sys.exit(1)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(*sys.argv[1:])
