"""Where everything lies, for notebooks and scripts in any folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
FIGURES = ROOT / "figures"
PAPER_RECORDS = ROOT / "paper" / "records"
