"""The pocket stream: small, real, openly licensed tasks that come with the repository.

Each task is one Parquet file (image: lossless WebP; label: a class or a list of tags; split), described
by an entry of cards.json. lib/streams/build_pocket.py makes them.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
from PIL import Image

from lib.common.errors import UserError
from lib.streams.task import Example, Listed, stream

POCKET = Path(__file__).parent


@stream("pocket")
def pocket(*arguments: str) -> list[Listed]:
    """The pocket stream in the order of its years."""
    if arguments:
        raise UserError(f"pocket/{'/'.join(arguments)} is unknown: expected pocket alone.")
    return [_listed(card) for card in json.loads((POCKET / "cards.json").read_text())]


def _listed(card: dict) -> Listed:
    file = POCKET / f"{card['name']}.parquet"
    described = (card[key] for key in ("name", "year", "domain", "kind", "num_classes"))
    return Listed(*described, how=f"lib/streams/pocket/{file.name}", open=partial(PocketSource, file, card))


class PocketSource:
    """The source of one task: its Parquet file and its card."""

    every_class_trains = True

    def __init__(self, file: Path, card: dict):
        self.file, self.card = file, card
        self.kind, self.num_classes = card["kind"], card["num_classes"]

    def content(self) -> str:
        """The card's sha256, once the file is known to have it."""
        return self._checked

    @cached_property
    def _checked(self) -> str:
        file, expected = self.file, self.card["sha256"]
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise UserError(
                f"{file} is missing or not the file that cards.json describes: expected sha256 "
                f"{expected[:12]}…. Restore it with `git checkout -- {file.name}` in its folder."
            )
        return expected

    def parts(self) -> dict[str, Sequence[Example]]:
        table = pd.read_parquet(self.file)
        single = self.kind == "classification"
        parts: dict[str, list[Example]] = {}
        for row, (encoded, label, part) in enumerate(
            zip(table["image"], table["label"], table["split"], strict=True)
        ):
            where, label = f"{self.file}, row {row}", int(label) if single else tuple(label.tolist())
            parts.setdefault(part, []).append(Example(where, label, partial(_open, encoded)))
        return parts


def _open(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))
