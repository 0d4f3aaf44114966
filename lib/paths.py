"""Where everything lies, for notebooks and scripts in any folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "lib" / "data"
WEIGHTS = ROOT / "lib" / "weights"
BUILD = ROOT / "build"
FIGURES = ROOT / "figures"
PAPER_RECORDS = ROOT / "paper" / "records"
