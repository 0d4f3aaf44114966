"""Tell whoever waits what is being done: a line at a time to the file that PROGRESS_FILE names.

Notebooks keep their outputs free of progress; tools/execute.py follows the file and prints it.
"""

import os
from contextlib import suppress
from pathlib import Path


def report(line: str) -> None:
    """Append a line to the progress file, if there is one. No run fails because nobody can be told of it."""
    if target := os.environ.get("PROGRESS_FILE"):
        with suppress(OSError), Path(target).open("a", encoding="utf-8", errors="replace") as file:
            file.write(line + "\n")
