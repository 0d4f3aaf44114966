"""Import torchvision, and timm which needs it, on any build of torch.

PyPI's torchvision wheel is compiled for CUDA. Beside a CPU build of torch its import fails, because
it describes two operators (`torchvision::nms`, `torchvision::qnms`) that its library then does not
register. Declaring them first is enough for models, transforms and data sets, the only parts used here.
"""

import warnings

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    for _operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

with warnings.catch_warnings():
    # A dependency's progress bar complains on stderr where ipywidgets is missing; it is never shown.
    warnings.filterwarnings("ignore", message="IProgress not found")
    import timm

__all__ = ["timm", "torchvision"]
