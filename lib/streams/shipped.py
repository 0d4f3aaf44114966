"""The images that come with the repository: the pocket stream, and photographs for a repair to look at.

The pocket stream is small, real, openly licensed tasks. Each is one Parquet file (image: WebP of up to 160 px; label: a
class or a list of tags; split), described by an entry of cards.json; tools/pocket/build.py makes them. The photographs
have no labels and are in none of the pocket tasks: images.parquet holds 512 of them at 160 px (lossy WebP) with the
origin, author and licence of each; tools/pocket/calibration.py makes it.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from lib.common.errors import UserError
from lib.streams.images import decode
from lib.streams.task import Example, Listed, Source

POCKET = Path(__file__).parent / "pocket"
CALIBRATION = Path(__file__).parent / "calibration" / "images.parquet"


def calibration_images(count: int = 512, image_size: int = 160) -> Tensor:
    """The first `count` shipped photographs at `image_size`: uint8 (count, image_size, image_size, 3).

    They lie in a random order, so that any number of the first is as varied as all. Raises UserError for
    more than there are.
    """
    encoded = pd.read_parquet(CALIBRATION, columns=["image"])["image"]
    if not 1 <= count <= len(encoded):
        raise UserError(f"count={count} is not possible: expected 1 to {len(encoded)} shipped images.")
    opened = (partial(Image.open, io.BytesIO(image)) for image in encoded[:count])
    return torch.from_numpy(np.stack([decode(image, image_size) for image in opened]))


def pocket(*arguments: str) -> list[Listed]:
    """The pocket stream in the order of its years."""
    if arguments:
        raise UserError(f"pocket/{'/'.join(arguments)} is unknown: expected pocket alone.")
    cards = json.loads((POCKET / "cards.json").read_bytes())
    return [Listed(card["name"], card["year"], card["domain"], [("pocket", card)]) for card in cards]


class PocketSource(Source):
    """One task of the pocket stream: its card, and the Parquet file that this describes."""

    every_class_trains = True

    def __init__(self, card: dict):
        self.card, self.file = card, POCKET / f"{card['name']}.parquet"
        self.kind, self.num_classes = card["kind"], card["num_classes"]

    def classes(self) -> tuple[str, ...]:
        return tuple(self.card["classes"])

    def content(self) -> str:
        """The card's sha256, once the file is known to have it."""
        file, expected = self.file, self.card["sha256"]
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise UserError(
                f"{file} is missing or not what cards.json describes: get it back, `git checkout -- {file.name}` there."
            )
        return expected

    def parts(self) -> Mapping[str, Sequence[Example]]:
        # On this thread: where memory is short, Arrow waits for ever for threads that could not start.
        table = pd.read_parquet(self.file, use_threads=False, pre_buffer=False)
        parts: dict[str, list[Example]] = {}
        for row, encoded, label, part in table[["image", "label", "split"]].itertuples():
            label = int(label) if self.kind == "classification" else tuple(label.tolist())
            image = partial(Image.open, io.BytesIO(encoded))
            parts.setdefault(part, []).append(Example(f"{self.file}, row {row}", label, image))
        return parts
