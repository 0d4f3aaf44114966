"""Prepare data sets of Nevis'22, or list them: `python -m tools.datasets [--list | FOLDER NAME...]`."""

import argparse
import inspect
from pathlib import Path

from lib.common.errors import exit_with_one_sentence
from tools.datasets.prepare import RECIPES, archive_of, copies, prepare


def listing() -> str:
    """A block per data set: whether it is prepared, its counts, its public copy and that copy's layout."""
    blocks = []
    for name, recipe in RECIPES.items():
        parts = copies().get(name, {}).get("parts", {"all": recipe.official})
        counts = ", ".join(f"{part} {count:,}" for part, count in parts.items())
        here = f"is here: {archive_of(name)}" if archive_of(name).exists() else "is not here"
        layout = " ".join(inspect.getdoc(recipe.parts).split())
        blocks.append(f"{name} {here}\n  {recipe.source}: {counts}\n  {layout}")
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.datasets", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where a copy was unpacked or checked out to")
    parser.add_argument("name", nargs="*", help="the data sets to make of it, such as 'MNIST'")
    parser.add_argument("--list", action="store_true", help="list the data sets and the copies they come from")
    arguments = parser.parse_args()
    if arguments.list:
        print(listing())
    elif not arguments.name:
        parser.error("give a folder and the name of a data set, or --list")
    for name in arguments.name:
        print(prepare(name, arguments.folder), flush=True)


if __name__ == "__main__":
    with exit_with_one_sentence():
        import tools.datasets  # noqa: F401  registers the data sets

        main()
