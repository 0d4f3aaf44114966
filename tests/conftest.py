"""Shared fixtures: pinned threads, a pretrained network, a small real task."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import few_images

from lib.networks.backbone import Backbone, load_backbone
from lib.streams import TaskData


@pytest.fixture(autouse=True)
def one_thread():
    """Results differ between numbers of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lite0() -> Backbone:
    """The pretrained EfficientNet-Lite0. Do not change it: all tests share it."""
    return load_backbone("efficientnet_lite0")


@pytest.fixture(scope="session")
def digits() -> TaskData:
    """A few real images of ten classes."""
    return few_images("mnist", 80, 80, 80)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is gone after the test: networks are too large to be kept like tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
