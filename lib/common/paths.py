"""Where everything lies, for notebooks and scripts in any folder."""

import os
from pathlib import Path

LIB = Path(__file__).resolve().parents[1]
# The checkout; for a library that was installed without one, the folder that Python was started in.
ROOT = LIB.parent if (LIB.parent / "pyproject.toml").exists() else Path.cwd()
BUILD = ROOT / "build"
FIGURES = ROOT / "figures"
PAPER_RECORDS = ROOT / "paper" / "records"


def folder_from(variable: str, default: Path) -> Path:
    """The folder that an environment variable names (a relative one is below ROOT), or else `default`."""
    return ROOT / Path(os.environ.get(variable) or default).expanduser()
