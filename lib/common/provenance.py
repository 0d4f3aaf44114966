"""Where numbers come from: commit, packages, hardware, time and memory."""

import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path

from lib.common.paths import ROOT


def provenance() -> dict:
    """Where numbers come from: commit, packages, hardware and this process's peak memory."""
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", "lib")
    packages = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn")
    return {
        "commit": (commit or "not a git checkout") + (" with changes" if changed else ""),
        "packages": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _git(*arguments: str) -> str:
    """What a git command prints; nothing where there is no git or no checkout."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
    except FileNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
