"""Tell whoever waits what is being done: a line at a time to the file that PROGRESS_FILE names.

Notebooks keep their outputs free of progress; tools/execute.py follows the file and prints it.
"""

import os
from pathlib import Path


def report(line: str) -> None:
    """Append a line to the progress file, if there is one."""
    if target := os.environ.get("PROGRESS_FILE"):
        with Path(target).open("a") as file:
            file.write(line + "\n")
