"""What `plan_pruning` is asked, checked: each wrong value is one sentence."""

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from lib.common.errors import UserError, choose
from lib.pruning.allocation import SCOPES
from lib.pruning.criteria import CRITERIA
from lib.pruning.repairs import REPAIRS
from lib.pruning.sites import GRANULARITIES


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to prune, with the defaults that hold everywhere. Raises UserError for what is unknown."""

    criterion: str = "activation"
    scope: str = "global"
    granularity: str = "filter"
    repair: str = "least_squares_synthetic"
    round_to: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        choose("criterion", self.criterion, CRITERIA)
        choose("scope", self.scope, SCOPES)
        choose("granularity", self.granularity, GRANULARITIES)
        choose("repair", self.repair, REPAIRS)

    @property
    def looks_at(self) -> list[str]:
        """What of it works on images of one's own."""
        criterion = [f"criterion={self.criterion!r}"] * CRITERIA[self.criterion].needs_images
        return criterion + [f"repair={self.repair!r}"] * (REPAIRS[self.repair].needs == "images")


def one_amount(**amounts: float | None) -> tuple[str, float]:
    """The one amount that is given."""
    given = {name: value for name, value in amounts.items() if value is not None}
    if len(given) != 1:
        raise UserError(
            f"plan_pruning was given {' and '.join(given) or 'no amount'}: expected exactly one of "
            f"{', '.join(amounts)}."
        )
    ((name, value),) = given.items()
    if not isinstance(value, Real):
        raise UserError(f"{name}={value!r} is no number: expected one, such as ratio=0.5.")
    if name == "ratio" and not 0 <= value < 1:
        raise UserError(f"ratio={value} is out of range: expected a share in 0 <= ratio < 1, such as 0.5.")
    return name, float(value)


def whole_number(name: str, value: int, least: int) -> int:
    if not isinstance(value, Integral) or value < least:
        raise UserError(f"{name}={value!r} is out of range: expected a whole number of {least} or more.")
    return int(value)


def checked_images(images: Tensor | np.ndarray | None, hungry: list[str], dtype: torch.dtype) -> Tensor | None:
    """The images as the network takes them, for what of a request is `hungry` for some."""
    if images is None:
        if hungry:
            raise UserError(
                f"{' and '.join(hungry)} works on images and none were given: give images= (normalised, "
                "(N, 3, H, W)), or choose one that is data-free."
            )
        return None
    taken = torch.tensor(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
    if not isinstance(taken, Tensor):
        raise UserError(f"images are a {type(images).__name__}: expected a tensor or an array (N, 3, H, W).")
    shape = tuple(taken.shape)
    square = len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and shape[2] == shape[3] > 0
    if not square or not taken.is_floating_point():
        raise UserError(
            f"images are {taken.dtype} of shape {shape}: expected normalised floats (N, 3, H, W), square, as "
            "lib.networks.backbone.normalised(images, network) gives them."
        )
    taken = taken.detach().to("cpu", dtype)
    if not taken.isfinite().all():
        raise UserError("images hold values that are not finite: expected normalised photographs.")
    return taken
