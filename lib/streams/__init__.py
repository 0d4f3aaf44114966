"""Streams of transfer tasks."""

from lib.streams.load import list_tasks, load_stream
from lib.streams.shipped import calibration_images
from lib.streams.task import Split, Stream, Task, TaskData

__all__ = ["Split", "Stream", "Task", "TaskData", "calibration_images", "list_tasks", "load_stream"]
