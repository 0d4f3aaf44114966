"""Where the pocket stream's images come from: one module a domain, one function a task."""

import importlib

from tools.pocket.common import TASKS, Sources, Task, split_samples

# Importing a module registers its tasks.
for _module in ("characters", "drawings", "photographs", "products", "textures"):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["TASKS", "Sources", "Task", "split_samples"]
