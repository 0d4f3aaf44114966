"""Streams of transfer tasks."""

from lib.streams import nevis as _nevis  # noqa: F401  registers its streams
from lib.streams import pocket as _pocket  # noqa: F401
from lib.streams.base import Split, Stream, Task, TaskData
from lib.streams.loading import list_tasks, load_stream

__all__ = ["Split", "Stream", "Task", "TaskData", "list_tasks", "load_stream"]
