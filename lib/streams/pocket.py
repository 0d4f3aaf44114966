"""The pocket stream: small, real, openly licensed tasks that come with the repository.

Each task is one Parquet file (image: lossless WebP; label: a class or a list of tags; split), described
by an entry of cards.json. lib/streams/build_pocket.py makes them.
"""

import hashlib
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from lib.errors import UserError
from lib.paths import DATA
from lib.streams.base import Split, Stream, Task, TaskData, stream

POCKET = DATA / "pocket"


def _cards() -> list[dict]:
    return json.loads((POCKET / "cards.json").read_text())


def _list_pocket() -> pd.DataFrame:
    columns = ["name", "year", "domain", "kind", "num_classes"]
    table = pd.DataFrame(_cards())[columns]
    files = [POCKET / f"{name}.parquet" for name in table["name"]]
    table["available"] = [file.exists() for file in files]
    table["how"] = [str(file.relative_to(DATA.parent.parent)) for file in files]
    return table


@stream("pocket", _list_pocket)
def load_pocket() -> Stream:
    """The pocket stream in the order of its years."""
    tasks = [
        Task(
            **{key: card[key] for key in ("name", "year", "domain", "kind", "num_classes")},
            content=card["sha256"],
            read=partial(_read, POCKET / f"{card['name']}.parquet", card),
        )
        for card in _cards()
    ]
    return Stream("pocket", tuple(tasks))


def _read(file: Path, card: dict, image_size: int) -> TaskData:
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != card["sha256"]:
        raise UserError(
            f"{file} is missing or not the file that cards.json describes: expected sha256 "
            f"{card['sha256'][:12]}…. Restore it with `git checkout -- {file.name}` in its folder."
        )
    table = pd.read_parquet(file)

    def split(name: str) -> Split:
        rows = table[table["split"] == name]
        images = np.stack(
            [decode(image, image_size, f"{file}, row {row}") for row, image in rows["image"].items()]
        )
        if card["kind"] == "classification":
            labels = torch.tensor(rows["label"].to_numpy(np.int64))
        else:
            labels = torch.zeros(len(rows), card["num_classes"])
            for row, tags in enumerate(rows["label"]):
                labels[row, tags.tolist()] = 1
        return Split(torch.from_numpy(images), labels)

    return TaskData(split("train"), split("dev"), split("test"))


def decode(encoded: bytes, image_size: int, where: str) -> np.ndarray:
    """An encoded image as uint8 (image_size, image_size, 3). Raises UserError naming `where`."""
    try:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"Cannot read the image at {where}: {error}. Expected a PNG, JPEG or WebP image; "
            "restore or remove it."
        ) from error
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image)
