"""The Nevis'22 benchmark (Bornschein et al., 2022; github.com/google-deepmind/dm_nevis): its streams, and its data.

"nevis/full", "nevis/short" and so on; with "/meta_train" after it, the years before 2020 alone, on which the
benchmark has everything chosen. A task is here when its data set lies in the folder `datasets_folder()`:
prepared by the benchmark's tools in nevis/KEY, for torchvision in torchvision/, by tools/datasets in
folders/NAME.zip, or as images in folders/NAME.

A prepared directory has a file `metadata`, and TFRecord shards of each part. It is read by its formats alone, without
TensorFlow: dm_nevis/datasets_storage, and tensorflow/core/lib/io/record_writer.h. A record is the length of its data
(uint64), a masked CRC-32C of these 8 bytes, the data, and a masked CRC-32C of the data, all little endian. The data is
a tf.train.Example; tf_example.json describes it as tensorflow/core/example/{feature,example}.proto do.
"""

import base64
import io
import json
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from lib.common.errors import UserError
from lib.common.paths import BUILD, folder_from
from lib.streams.ingest import content_of
from lib.streams.task import Example, Listed, Source

META_TEST_FROM = 2020  # the year from which tasks are kept for the final evaluation
TABLES = json.loads(Path(__file__).with_suffix(".json").read_bytes())
PARTS = {"train": "train", "dev": "dev", "dev_test": "dev-test", "test": "test"}  # and the folder of each
IMAGE, LABEL, TAGS = "png_encoded_image", "label", "multi_label"
LARGEST_RECORD = 1 << 30  # more in one record is a damaged length, not an image

Events = list[tuple[int, str]]  # years and names, in the benchmark's order


def datasets_folder() -> Path:
    """Where downloaded data sets are looked for: the environment's DATASETS, or build/datasets."""
    return folder_from("DATASETS", BUILD / "datasets")


def _tasks(variant: str, *arguments: str) -> list[Listed]:
    meta_train = arguments[-1:] == ("meta_train",)
    numbers = arguments[:-1] if meta_train else arguments
    years = TABLES["streams"].get(variant, TABLES["streams"]["full"])
    events = [(int(year), name) for year, names in years.items() for name in names]
    if variant == "random_dataset":
        events = _drawn(events, *numbers)
    elif numbers:
        raise UserError(
            f"nevis/{variant}/{'/'.join(numbers)} is unknown: expected nevis/{variant}, or with /meta_train."
        )
    return [_listed(*event) for event in events if event[0] < META_TEST_FROM or not meta_train]


def _drawn(events: Events, *numbers: str) -> Events:
    """All events from META_TEST_FROM on, and some of the earlier ones: `numbers` are how many in all, and a seed."""
    before = [event for event in events if event[0] < META_TEST_FROM]
    after = len(events) - len(before)
    sound = len(numbers) in (1, 2) and all(map(str.isdecimal, numbers))
    if not sound or not after < int(numbers[0]) <= len(events):
        raise UserError(
            f"nevis/random_dataset/{'/'.join(numbers)} is not valid: expected nevis/random_dataset/COUNT or "
            f"nevis/random_dataset/COUNT/SEED with {after + 1} to {len(events)} tasks."
        )
    np.random.default_rng(int((*numbers, "0")[1])).shuffle(before)
    return [event for event in events if event not in before[int(numbers[0]) - after :]]


STREAMS = {f"nevis/{variant}": partial(_tasks, variant) for variant in (*TABLES["streams"], "random_dataset")}


def _listed(year: int, name: str) -> Listed:
    row, root = TABLES["datasets"][name], datasets_folder()
    places: list[tuple] = [("nevis", root / "nevis" / row["key"])] if row["library"] == "nevis" else []
    places += [("torchvision", row["torchvision"], root / "torchvision")] if "torchvision" in row else []
    places += [("archive", root / "folders" / f"{name}.zip"), ("folder", root / "folders" / name)]
    return Listed(name, year, row["domain"], places, row["kind"], row["num_classes"])


class PreparedSource(Source):
    """Images and labels of a prepared directory, in the benchmark's parts."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / "metadata").is_file():
            raise _damaged(folder, "has no file metadata, as what dm_nevis prepares has")
        status = folder / "status"
        if status.exists() and status.read_text().strip() != "ready":
            raise _damaged(folder, "was not prepared to its end, says its file status")
        self.num_classes = _num_classes(folder / "metadata")
        shard = self._shards("train")[0]
        self.kind = "multi-label" if TAGS in features(next(records(shard))[1], str(shard)) else "classification"

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
        single = self.kind == "classification"
        labels = features(data, where).get(LABEL if single else TAGS)
        if labels is None:
            raise _damaged(where, "has no label")
        if self.folder.name == "biwi":
            labels = _mended_angles(labels)
        if (single and len(labels) != 1) or any(not 0 <= label < self.num_classes for label in labels):
            expected = f"expected {'one' if single else 'some'} of 0 to {self.num_classes - 1}"
            raise _damaged(where, f"has the label {labels}: {expected}")
        return labels[0] if single else tuple(labels)

    def _shards(self, part: str) -> list[Path]:
        shards = sorted((self.folder / PARTS[part]).glob("data-*-of-*"))
        wanted = int(shards[0].name.rsplit("-", 1)[1]) if shards else None
        if len(shards) != wanted:
            raise _damaged(self.folder / PARTS[part], f"holds {len(shards)} of {wanted or 'its'} shards (data-*-of-*)")
        return shards


def _damaged(what: Path | str, how: str) -> UserError:
    return UserError(f"{what} {how}: copy or prepare the directory anew.")


def _image(file: Path, place: int, length: int) -> Image.Image:
    with file.open("rb") as opened:
        opened.seek(place)
        return Image.open(io.BytesIO(features(opened.read(length))[IMAGE][0]))


def _mended_angles(labels: list[int]) -> list[int]:
    """Labels of BIWI, three angles of five buckets: the prepared ones lack the last bucket of an angle
    and have the first one of the next instead, which the benchmark mends when it reads them."""
    mended = []
    for first in range(0, 15, 5):
        buckets = [label for label in labels if first <= label < first + 5]
        mended += [label for label in buckets if len(buckets) != 2 or label != first] or [first + 4]
    return mended


def _num_classes(metadata: Path) -> int:
    """The integer that follows the first "num_classes" in the pickle of a DatasetMetaData.

    The pickle is looked through and never run: it may come from anywhere.
    """
    try:
        pickled = base64.b64decode(metadata.read_bytes().replace(b"\n", b""), validate=True)
        steps = [(code.name, value) for code, value, _ in pickletools.genops(pickled)]
        values = [value for name, value in steps if "PUT" not in name and name != "MEMOIZE"]
        found = values[values.index("num_classes") + 1]
        if not isinstance(found, int) or not any(str(value).endswith("DatasetMetaData") for value in values):
            raise ValueError("no DatasetMetaData that says num_classes")
        return found
    except Exception as error:  # a damaged pickle raises nearly anything
        raise _damaged(metadata, f"cannot be read ({error}): nothing of it was run") from error


def records(file: Path) -> Iterator[tuple[int, bytes]]:
    """Each record's place in `file` (where its data begins, in bytes) and its data.

    Raises UserError at a record that is cut short or has another checksum.
    """
    with file.open("rb") as opened:
        place = 0
        while header := opened.read(12):
            length = int.from_bytes(header[:8], "little")
            data, checksum = opened.read(min(length, LARGEST_RECORD)), opened.read(4)
            faults = {
                "ends within a header": len(header) < 12,
                "has a wrong checksum of its length": masked_crc(header[:8]) != header[8:] or length > LARGEST_RECORD,
                "is cut short": len(data) < length or len(checksum) < 4,
                "has a wrong checksum": masked_crc(data) != checksum,
            }
            if found := [fault for fault, is_so in faults.items() if is_so]:
                raise _damaged(f"{file}: the record at byte {place}", found[0])
            yield place + 12, data
            place += 16 + length


def masked_crc(data: bytes) -> bytes:
    """CRC-32C of `data`, rotated and shifted as TFRecord stores it."""
    crc = _packages()[0](data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def features(data: bytes, where: str = "The record") -> dict[str, list]:
    """The features of a serialized tf.train.Example: name -> bytes, floats or integers.

    Raises UserError for bytes that are none, which were found at `where`.
    """
    example = _packages()[1]()
    try:
        example.ParseFromString(data)
    except Exception as error:  # protobuf's own
        raise _damaged(where, f"is no tf.train.Example ({error})") from error
    found = example.features.feature.items()
    return {name: list(f.bytes_list.value or f.float_list.value or f.int64_list.value) for name, f in found}


@cache
def _packages() -> tuple[Callable[[bytes], int], type]:
    """CRC-32C and the class of tf.train.Example. Raises UserError where what they need is not installed."""
    try:
        from google.protobuf.descriptor_pb2 import FileDescriptorProto
        from google.protobuf.json_format import Parse
        from google.protobuf.message_factory import GetMessages
        from google_crc32c import value
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: get it with `make setup-nevis`, or with `pip install '.[nevis]'`."
        ) from error
    described = Parse(Path(__file__).with_name("tf_example.json").read_text("utf-8"), FileDescriptorProto())
    return value, GetMessages([described])["tensorflow.Example"]
