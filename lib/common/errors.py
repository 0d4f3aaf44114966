"""The one exception for bad input, and what a command does with it."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input. Its message names the value, what was expected and what to do."""


def choose(kind: str, name: object, known: Iterable[str]) -> str:
    """`name`, one of the `known` names of this `kind` of thing. Raises UserError for another."""
    names = list(known)
    if name not in names:
        raise UserError(f"Unknown {kind} {name!r}: expected one of {', '.join(names)}.")
    return str(name)


@contextmanager
def exit_with_one_sentence() -> Iterator[None]:
    """End the program with exit status 1 and a UserError's message instead of a traceback."""
    try:
        yield
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
