"""RunSpec: everything that changes the numbers of one run, validated."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic import field_validator as check
from pydantic import model_validator as check_all

from lib.common.errors import UserError, choose
from lib.learning.engine import PRECISIONS, Engine
from lib.learning.learners import LEARNERS
from lib.learning.rates import rates
from lib.learning.training import Recipe, TaskNetwork
from lib.networks.backbone import find_backbone, load_backbone
from lib.networks.macs import training_macs
from lib.pruning.plan import NAMES
from lib.streams.load import list_tasks
from lib.streams.task import Task, TaskData

SIZES = 32, 512  # pixels
MANY = 10**9
# What changes no number: the list of budgets, and how the same tasks and weights are had.
_NOT_IN_KEY = {"budgets", "missing", "stream", "tasks", "weights"}

_NAMES = {**NAMES, "learner": LEARNERS, "precision": PRECISIONS}


@cache
def best_image_size(backbone: str) -> int:
    """The side in pixels that a backbone is best used at, for its compute."""
    if backbone.startswith("efficientnet_lite"):
        return 128
    with torch.device("meta"):
        return load_backbone(backbone, pretrained=False).image_size


@cache
def _training_macs(backbone: str, num_classes: int, image_size: int) -> int:
    return training_macs(TaskNetwork(load_backbone(backbone, pretrained=False), num_classes), image_size)


# --- what each field is checked by: with the fields before it, where they matter ----------------------


def _known_backbone(name: object) -> object:
    find_backbone(str(name))
    return name


def _dense_images(budgets: object) -> list[int]:
    given = budgets if isinstance(budgets, list) else []
    whole = all(isinstance(one, (int, float)) and float(one).is_integer() for one in given)
    if not whole or not 2 <= min(given, default=0) <= max(given) <= MANY or given != sorted(set(given)):
        raise ValueError(
            "expected whole numbers of dense images, 2 or more, in ascending order, such as [64, 256]. A budget used "
            "to be in dense epochs: one epoch of a task of 400 images is 400 dense images"
        )
    return [int(one) for one in given]


def _best_size(size: object, info: ValidationInfo) -> object:
    return best_image_size(info.data["backbone"]) if size is None and "backbone" in info.data else size


def _known_reference(reference: str) -> str:
    name, _, size = reference.partition("@")
    try:
        if not size.isdigit() or not SIZES[0] <= int(size) <= SIZES[1]:
            raise UserError(f"The size {size!r} is none.")
        find_backbone(name)
    except UserError as error:
        wanted = f"expected network@pixels with {SIZES[0]}..{SIZES[1]} pixels, such as resnet50@64"
        raise ValueError(f"{wanted}. {error}") from error
    return reference


def _existing_file(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError("expected the path of a checkpoint, and there is no such file")
    return path


class RunSpec(BaseModel):
    """One arm: everything that changes its numbers. Raises UserError, one sentence, when invalid."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    backbone: Annotated[str, BeforeValidator(_known_backbone)]
    ratio: float = Field(ge=0, lt=1)  # share of filters removed; 0 is the dense network
    criterion: str = "activation"
    scope: str = "global"
    granularity: str = "filter"
    repair: str = "least_squares_synthetic"
    round_to: int = Field(8, ge=1, le=4096)
    learner: str = "independent"
    stream: str = "pocket"  # a name, or the path of a stream.yaml
    missing: Literal["error", "skip"] = "error"  # what to do about tasks of the stream that are not here
    budgets: Annotated[list[int], Field(min_length=1), BeforeValidator(_dense_images)]
    # Where the images come from that criteria and repairs look at: a task's own, charged to it, or the shipped ones
    calibration: Literal["task", "shipped"] = "task"
    calibration_images: int = Field(64, ge=2, le=MANY)
    trials: int = Field(1, ge=1, le=64)  # of a search of the recipe, on each task; 1: the rule's
    # None: what the backbone is best used at
    image_size: Annotated[int, BeforeValidator(_best_size)] = Field(
        None, ge=SIZES[0], le=SIZES[1], validate_default=True
    )
    reference: Annotated[str, AfterValidator(_known_reference)] = "efficientnet_lite0@128"  # sets the unit
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    precision: str = "fp32"
    threads: int = Field(1, ge=1, le=1024)
    pretrained: bool = True
    # the path of a checkpoint of one's own, in place of the pretrained weights
    weights: Annotated[str, AfterValidator(_existing_file)] | None = None
    body_rate: float | None = Field(None, ge=0)  # None: the committed rule's; of AdamW
    head_rate: float | None = Field(None, ge=0)
    train_images: int | None = Field(None, ge=2, le=MANY)  # a cap on the training images of a task
    evaluation_images: int | None = Field(None, ge=1, le=MANY)  # a cap on its dev and its test images
    tasks: list[str] | None = Field(None, min_length=1)  # a part of the stream, by name
    seed: int = Field(0, ge=0, le=MANY)

    def __init__(self, **fields: object):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise UserError(_sentence(error)) from error

    @property
    def engine(self) -> Engine:
        """What this run computes with."""
        return Engine(self.precision, self.device, self.threads)

    def unit_macs(self, num_classes: int) -> int:
        """MACs of one dense image: forward and backward through the reference network, all of it trained."""
        name, size = self.reference.split("@")
        return _training_macs(name, num_classes, int(size))

    def data_of(self, task: Task) -> TaskData:
        """The images of a task that this run uses, at its size."""
        return task.read(self.image_size).first(self.train_images, self.evaluation_images)

    def recipe(self, task: str) -> Recipe:
        """How a task is trained where nothing is searched: at the rates given, or at the committed ones."""
        if self.body_rate is not None and self.head_rate is not None:
            return Recipe(self.body_rate, self.head_rate)
        if not LEARNERS[self.learner].fine_tunes:
            return Recipe(0, 0)
        return Recipe(*rates(self.learner, self.backbone, task))

    def key(self, *contents: str) -> str:
        """The name of the run's folder: a hash of all that changes a number.

        `contents` are of what its names and paths lead to: stream, loaded tensors, the user's own code.
        """
        canonical = json.dumps(self.model_dump(exclude=_NOT_IN_KEY), sort_keys=True)
        return hashlib.sha256("\n".join([canonical, *contents]).encode()).hexdigest()[:16]

    @check("*", mode="before")
    @classmethod
    def _as_python(cls, value: object, info: ValidationInfo) -> object:
        """Numbers and arrays of numpy, pandas and torch, tuples and paths as what JSON has for them."""
        name = str(info.field_name)
        if isinstance(value, Path):
            value = str(value)
        elif isinstance(value, (list, tuple, range)):
            value = [one.item() if isinstance(one, np.generic) else one for one in value]
        elif hasattr(value, "tolist"):
            value = value.tolist()
        if "int" in str(cls.model_fields[name].annotation) and isinstance(value, float) and value.is_integer():
            value = int(value)
        return choose(name, value, _NAMES[name]) if name in _NAMES else value

    @check_all(mode="after")
    def _fits_together(self) -> "RunSpec":
        known = list_tasks(self.stream)["name"]
        for task in self.tasks or ():
            choose(f"task of the stream {self.stream!r}", task, known)
        given = [name for name in ("body_rate", "head_rate") if getattr(self, name) is not None]
        if given and (self.trials > 1 or len(given) == 1):
            raise ValueError(
                f"{' and '.join(given)} with trials={self.trials} leaves open what is meant: expected both rates and "
                "trials=1, or neither"
            )
        if self.trials > 1 and not LEARNERS[self.learner].fine_tunes:
            raise ValueError(f"learner={self.learner!r} has no recipe to search: expected trials=1")
        return self


def _sentence(error: ValidationError) -> str:
    """What is wrong first."""
    first = error.errors()[0]
    where, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ").removesuffix(".")
    otherwise = f"{where}={first['input']!r} is not valid in RunSpec: {reason}." if where else f"RunSpec: {reason}."
    return {
        "extra_forbidden": f"Unknown field {where!r} in RunSpec: expected one of {', '.join(RunSpec.model_fields)}.",
        "missing": f"RunSpec needs {where}, and none was given: give it, as in RunSpec({where}=...).",
    }.get(first["type"], otherwise)
