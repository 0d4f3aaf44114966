"""A task from a directory that Nevis'22's own tools prepared: `metadata`, and TFRecord shards of each part.

Written from the format alone: github.com/google-deepmind/dm_nevis, dm_nevis/datasets_storage.
"""

import base64
import io
import pickletools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lib.common.errors import UserError
from lib.streams.ingest import content_of
from lib.streams.nevis.tfrecord import features, records
from lib.streams.task import Example, Place

PARTS = {"train": "train", "dev": "dev", "dev_test": "dev-test", "test": "test"}  # and the folder of each
IMAGE, LABEL, TAGS = "png_encoded_image", "label", "multi_label"


class PreparedSource:
    """Images and labels of a prepared directory, in the benchmark's parts."""

    every_class_trains = False  # the benchmark numbers some classes that have no image

    def __init__(self, folder: Path):
        self.folder = folder
        metadata = folder / "metadata"
        if not metadata.is_file():
            raise UserError(
                f"{folder} has no file metadata: expected a directory that dm_nevis prepared, with metadata "
                "and the folders train, dev, dev-test and test."
            )
        status = folder / "status"
        if status.exists() and status.read_text().strip() != "ready":
            raise UserError(f"{folder} was not prepared to its end, says its file status: prepare it anew.")
        self.num_classes = _num_classes(metadata)
        _, first = next(records(self._shards("train")[0]))
        self.kind = "multi-label" if TAGS in features(first) else "classification"

    @classmethod
    def at(cls, folder: Path) -> Place:
        """The place of a prepared directory."""
        how = f"prepare {folder.name} with dm_nevis and put it at {folder}"
        return Place(how, folder.is_dir(), partial(cls, folder))

    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.num_classes)))

    def content(self) -> str:
        shards = [file for part in PARTS for file in self._shards(part)]
        return content_of([self.folder / "metadata", *shards], self.folder)

    def parts(self) -> Mapping[str, Sequence[Example]]:
        return {part: self._examples(part) for part in PARTS}

    def _examples(self, part: str) -> list[Example]:
        found = []
        for file in self._shards(part):
            for place, data in records(file):
                where = f"{file}, byte {place}"
                found.append(Example(where, self._label(data, where), partial(_image, file, place, len(data))))
        # Shards may have been written in the order of classes.
        return [found[i] for i in np.random.default_rng(0).permutation(len(found))]

    def _label(self, data: bytes, where: str) -> int | tuple[int, ...]:
        try:
            values = features(data)
            labels = values[TAGS if self.kind == "multi-label" else LABEL]
        except (ValueError, KeyError) as error:
            raise UserError(f"{where} has no label: {error}. Prepare the directory anew.") from error
        if self.folder.name == "biwi":
            labels = _mended_angles(labels)
        single = self.kind == "classification"
        if (single and len(labels) != 1) or any(not 0 <= label < self.num_classes for label in labels):
            raise UserError(
                f"{where} has the label {labels}: expected {'one' if single else 'some'} of 0 to "
                f"{self.num_classes - 1}. Prepare the directory anew."
            )
        return labels[0] if single else tuple(labels)

    def _shards(self, part: str) -> list[Path]:
        shards = sorted((self.folder / PARTS[part]).glob("data-*-of-*"))
        wanted = int(shards[0].name.rsplit("-", 1)[1]) if shards else None
        if len(shards) != wanted:
            raise UserError(
                f"{self.folder / PARTS[part]} holds {len(shards)} of {wanted or 'its'} shards "
                "(data-*-of-*): copy or prepare the directory anew."
            )
        return shards


def _image(file: Path, place: int, length: int) -> Image.Image:
    with file.open("rb") as opened:
        opened.seek(place)
        encoded = features(opened.read(length)).get(IMAGE)
    return Image.open(io.BytesIO(encoded[0] if encoded else b""))


def _mended_angles(labels: list[int]) -> list[int]:
    """Labels of BIWI, three angles of five buckets: the prepared ones lack the last bucket of an angle
    and have the first one of the next instead, which the benchmark mends when it reads them."""
    mended = []
    for first in range(0, 15, 5):
        buckets = [label for label in labels if first <= label < first + 5]
        if not buckets:
            buckets = [first + 4]
        elif len(buckets) == 2:
            buckets = [bucket for bucket in buckets if bucket != first]
        mended += buckets
    return mended


def _num_classes(metadata: Path) -> int:
    """The integer that follows the first "num_classes" in the pickle of a DatasetMetaData.

    The pickle is looked through and never run: it may come from anywhere.
    """
    try:
        pickled = base64.b64decode(metadata.read_bytes().replace(b"\n", b""), validate=True)
        steps = [(code.name, value) for code, value, _ in pickletools.genops(pickled)]
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(
            f"{metadata} cannot be read ({error}): expected what dm_nevis writes, base64 of a pickle."
        ) from error
    values = [value for name, value in steps if "PUT" not in name and name != "MEMOIZE"]
    is_metadata = any(str(value).endswith("DatasetMetaData") for value in values)
    found = values[values.index("num_classes") + 1] if is_metadata and "num_classes" in values else None
    if not isinstance(found, int):
        raise UserError(
            f"{metadata} cannot be read: expected the number of classes that dm_nevis writes; nothing of it was run."
        )
    return found
