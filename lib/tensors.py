"""Write tensors so that nobody ever sees half of them."""

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lib.files import atomic_path


def save_tensors(tensors: dict[str, Tensor], path: Path | str, about: dict[str, str] | None = None) -> None:
    """Write `tensors` as safetensors, all or nothing, `about` as metadata. Errors as of `atomic_path`."""
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, about)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))  # nothing else of it says which it was
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
