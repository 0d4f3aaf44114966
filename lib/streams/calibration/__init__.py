"""512 photographs without labels that a repair may look at before any task; in none of the pocket tasks.

images.parquet holds them at 160 px (lossy WebP) with the origin, author and licence of each;
tools/pocket/calibration.py makes it.
"""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from lib.common.errors import UserError
from lib.streams.ingest import decode

FILE = Path(__file__).parent / "images.parquet"


def calibration_images(count: int = 512, image_size: int = 160) -> Tensor:
    """The first `count` shipped photographs at `image_size`: uint8 (count, image_size, image_size, 3).

    They lie in a random order, so that any number of the first is as varied as all. Raises UserError for
    more than there are.
    """
    encoded = pd.read_parquet(FILE, columns=["image"])["image"]
    if not 1 <= count <= len(encoded):
        raise UserError(f"count={count} is not possible: expected 1 to {len(encoded)} shipped images.")
    opened = (partial(Image.open, io.BytesIO(image)) for image in encoded[:count])
    return torch.from_numpy(np.stack([decode(image, image_size) for image in opened]))
