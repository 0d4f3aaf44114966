"""Where numbers come from: commit, packages, hardware, time and memory."""

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from lib.common.paths import LIB

_PER_MB = 1 << 20 if sys.platform == "darwin" else 1 << 10  # of memory used: bytes there, kilobytes elsewhere


def provenance() -> dict:
    """Where numbers come from: commit, packages, hardware and this process's peak memory."""
    packages = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn")
    return {
        "commit": _commit(),
        "packages": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _PER_MB,
    }


def _commit() -> str:
    # A prefix: the folder lies within someone else's checkout, whose commit says nothing about this code.
    if _git("rev-parse", "--show-prefix") or not (commit := _git("rev-parse", "HEAD")):
        return "not a git checkout"
    return commit + (" with changes" if _git("status", "--porcelain", "--", LIB.name) else "")


def _git(*arguments: str) -> str:
    """What git prints about the folder that holds lib; nothing where there is no git or no checkout.

    The checkout may be another owner's, as in a container, and a git hook may name another repository.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        return subprocess.run(
            command, cwd=LIB.parent, env=environment, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        return ""


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
