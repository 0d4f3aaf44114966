"""Write the table of what differs from the benchmark into docs/nevis.md: `python -m tools.datasets.table`."""

import sys

import pandas as pd

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.files import atomic_path
from lib.common.paths import ROOT
from lib.streams import list_tasks
from tools.datasets.prepare import RECIPES, copies

PAGE = ROOT / "docs" / "nevis.md"
BEGIN, END = "<!-- from tools/datasets/table.py -->", "<!-- to here -->"
PARTS = ("train", "dev", "test")


def events(stream: str) -> pd.DataFrame:
    """A row per data set of a Nevis'22 stream that has a public copy, in the order of the stream.

    Columns: name, years, classes, train, dev, test (images of the copy), images, official (images of the
    copy and of the benchmark's), differs.
    """
    tasks = list_tasks(stream)
    rows = []
    for name, years in tasks.groupby("name", sort=False)["year"]:
        if name in copies():
            copy, recipe = copies()[name], RECIPES[name]
            rows.append(
                {
                    "name": name,
                    "years": ", ".join(map(str, years)),
                    "classes": copy["classes"],
                    **{part: copy["parts"][part] for part in PARTS},
                    "images": sum(copy["parts"].values()),
                    "official": recipe.official,
                    "differs": recipe.differs,
                }
            )
    return pd.DataFrame(rows)


def absent(stream: str) -> list[str]:
    """The data sets of a stream without a public copy."""
    return [name for name in list_tasks(stream)["name"].drop_duplicates() if name not in copies()]


def markdown(rows: pd.DataFrame) -> str:
    """The rows as a table of Markdown."""
    lines = ["| data set (years) | images, of | classes | train, dev, test | what differs |", "|---|---|---|---|---|"]
    for row in rows.itertuples():
        parts = ", ".join(f"{getattr(row, part):,}" for part in PARTS)
        lines.append(
            f"| {row.name} ({row.years}) | {row.images:,} of {row.official:,} | {row.classes} | {parts} "
            f"| {row.differs} |"
        )
    return "\n".join(lines)


def generated() -> str:
    """What stands in docs/nevis.md between the two marks."""
    short, full = events("nevis/short"), events("nevis/full")
    besides = full[~full["name"].isin(short["name"])]
    run = int(list_tasks("nevis/short")["name"].isin(short["name"]).sum())
    total = len(list_tasks("nevis/short"))
    return f"""
### The short stream: {run} of {total} events

{markdown(short)}

Not run, for no copy could be had where the records were measured: {", ".join(absent("nevis/short"))}.

### Further data sets of the full stream

{markdown(besides)}
"""


def page() -> str:
    """docs/nevis.md with its table made anew."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE} lacks the mark {BEGIN} or {END}: restore it.")
    return f"{before}{BEGIN}\n{generated()}\n{END}{after}"


if __name__ == "__main__":
    with exit_with_one_sentence():
        if len(sys.argv) > 1:
            raise UserError("Usage: python -m tools.datasets.table, without arguments.")
        text = page()
        with atomic_path(PAGE) as temporary:
            temporary.write_text(text)
