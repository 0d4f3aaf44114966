"""The pocket stream: small, real, openly licensed tasks that come with the repository.

Each task is one Parquet file (image: lossless WebP; label: a class or a list of tags; split), described
by an entry of cards.json. tools/pocket makes them.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image

from lib.common.errors import UserError
from lib.streams.task import Example, Listed

POCKET = Path(__file__).parent


def pocket(*arguments: str) -> list[Listed]:
    """The pocket stream in the order of its years."""
    if arguments:
        raise UserError(f"pocket/{'/'.join(arguments)} is unknown: expected pocket alone.")
    return [_listed(card) for card in json.loads((POCKET / "cards.json").read_bytes())]


def _listed(card: dict) -> Listed:
    file = POCKET / f"{card['name']}.parquet"
    described = {key: card[key] for key in ("name", "year", "domain", "kind", "num_classes")}
    return Listed(**described, how=f"lib/streams/pocket/{file.name}", open=partial(PocketSource, file, card))


class PocketSource:
    """The source of one task: its Parquet file and its card."""

    every_class_trains = True

    def __init__(self, file: Path, card: dict):
        self.file, self.card = file, card
        self.kind, self.num_classes = card["kind"], card["num_classes"]

    def classes(self) -> tuple[str, ...]:
        return tuple(self.card["classes"])

    def content(self) -> str:
        """The card's sha256, once the file is known to have it."""
        file, expected = self.file, self.card["sha256"]
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise UserError(
                f"{file} is missing or not the file that cards.json describes: expected sha256 "
                f"{expected[:12]}…. Restore it with `git checkout -- {file.name}` in its folder."
            )
        return expected

    def parts(self) -> Mapping[str, Sequence[Example]]:
        # On this thread: where memory is short, Arrow waits for ever for threads that could not start.
        table = pd.read_parquet(self.file, use_threads=False, pre_buffer=False)
        parts: dict[str, list[Example]] = {}
        for row, encoded, label, part in table[["image", "label", "split"]].itertuples():
            label = int(label) if self.kind == "classification" else tuple(label.tolist())
            example = Example(f"{self.file}, row {row}", label, partial(_image, encoded))
            parts.setdefault(part, []).append(example)
        return parts


def _image(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))
