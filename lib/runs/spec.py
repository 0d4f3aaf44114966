"""RunSpec: everything that changes the numbers of one run, validated."""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lib.common.errors import UserError
from lib.common.paths import ROOT
from lib.learning.learners import LEARNERS
from lib.networks.backbone import list_backbones
from lib.pruning.allocation import SCOPES
from lib.pruning.criteria import CRITERIA
from lib.pruning.repairs import REPAIRS
from lib.pruning.sites import GRANULARITIES

SIZES = 32, 512  # pixels


class RunSpec(BaseModel):
    """One arm: everything that changes its numbers. Raises UserError, one sentence, when invalid."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: str
    ratio: float = Field(ge=0, lt=1)  # share of filters removed; 0 is the dense network
    criterion: str = "l1"
    scope: str = "uniform"
    granularity: str = "filter"
    repair: str = "none"
    round_to: int = Field(8, ge=1)
    learner: str = "independent"
    stream: str = "pocket"
    missing: Literal["error", "skip"] = "error"  # what to do about tasks of the stream that are not here
    budgets: list[float] = Field(min_length=1)  # in dense epochs
    calibration_images: int = Field(64, ge=2)  # of a task's own, for criteria and repairs that need some
    trials: int = Field(1, ge=1, le=64)  # of a search of the recipe, on each task; 1: the rule's
    image_size: int = Field(64, ge=SIZES[0], le=SIZES[1])
    reference: str | None = None  # "network@pixels" that sets the unit; the run's own, dense, when None
    precision: str | None = Field(None, pattern="^(fp32|bf16)( compiled)?$")  # None: the table's
    threads: int = Field(1, ge=1)
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    pretrained: bool = True
    learning_rate: float | None = Field(None, gt=0)  # None: the committed rule's
    train_images: int | None = Field(None, ge=2)  # a cap on the training images of a task
    evaluation_images: int | None = Field(None, ge=1)  # a cap on its dev and its test images
    tasks: list[str] | None = Field(None, min_length=1)  # a part of the stream, by name
    seed: int = Field(0, ge=0)

    def __init__(self, **fields):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise UserError(_first_sentence(error)) from error

    @field_validator("reference")
    @classmethod
    def _reference_is_known(cls, reference: str | None) -> str | None:
        if reference is not None:
            name, _, size = reference.partition("@")
            if name not in list_backbones() or not size.isdigit() or not SIZES[0] <= int(size) <= SIZES[1]:
                raise ValueError(
                    f"expected network@pixels with {SIZES[0]}..{SIZES[1]} pixels, such as resnet50@64"
                )
        return reference

    @field_validator("budgets")
    @classmethod
    def _budgets_in_order(cls, budgets: list[float]) -> list[float]:
        if min(budgets) <= 0 or budgets != sorted(set(budgets)):
            raise ValueError("expected dense epochs above 0 in ascending order, such as [0.25, 1]")
        return budgets

    @model_validator(mode="after")
    def _search_makes_sense(self) -> "RunSpec":
        if self.trials > 1 and self.learning_rate is not None:
            raise ValueError(
                f"trials={self.trials} and learning_rate={self.learning_rate:g} exclude each other: expected "
                "a search or a given rate"
            )
        if self.trials > 1 and not LEARNERS[self.learner].fine_tunes:
            raise ValueError(f"learner={self.learner!r} has no recipe to search: expected trials=1")
        return self

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, fields: dict) -> dict:
        known = {
            "backbone": list_backbones(),
            "criterion": CRITERIA,
            "repair": REPAIRS,
            "scope": SCOPES,
            "granularity": GRANULARITIES,
            "learner": LEARNERS,
        }
        for key, names in known.items():
            if key in fields and not (isinstance(fields[key], str) and fields[key] in names):
                raise ValueError(f"{key}={fields[key]!r} is unknown: expected one of {', '.join(names)}")
        return fields

    @model_validator(mode="before")
    @classmethod
    def _precision_from_table(cls, fields: dict) -> dict:
        if fields.get("precision") is None and isinstance(fields.get("backbone"), str):
            table = json.loads((ROOT / "lib" / "learning" / "precision.json").read_text())
            kind = str(fields.get("device", "cpu")).split(":")[0]
            fields = {**fields, "precision": table.get(kind, {}).get(fields.get("backbone"), "fp32")}
        return fields

    def key(self, content: str) -> str:
        """Hash of the canonical JSON of the spec and of a stream's `content`: the run's folder."""
        canonical = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(f"{canonical}\n{content}".encode()).hexdigest()[:16]


def _first_sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = ", ".join(RunSpec.model_fields)
        return f"Unknown field {where!r} in RunSpec: expected one of {fields}."
    reason = first["msg"].removeprefix("Value error, ")
    if not where:
        return f"RunSpec: {reason}."
    if first["type"] == "missing":
        return f"RunSpec needs {where}, and none was given: give it, as in RunSpec({where}=...)."
    return f"{where}={first['input']!r} is not valid in RunSpec: {reason}."
