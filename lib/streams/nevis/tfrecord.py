"""Read TFRecord files of tf.train.Example without TensorFlow.

A record is the length of its data (uint64), a masked CRC-32C of these 8 bytes, the data, and a masked CRC-32C
of the data, all little endian, as tensorflow/core/lib/io/record_writer.h describes.
"""

import struct
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from lib.common.errors import UserError

# More in one record is a damaged length, not an image.
LARGEST_RECORD = 1 << 30
# tensorflow/core/example/{feature,example}.proto: message -> its fields, number by number: label, type, name.
# A map is repeated entries and a oneof are optional fields: on the wire they are the same.
MESSAGES = {
    "BytesList": ["repeated bytes value"],
    "FloatList": ["repeated float value"],
    "Int64List": ["repeated int64 value"],
    "Feature": ["optional BytesList bytes", "optional FloatList floats", "optional Int64List integers"],
    "Entry": ["optional string key", "optional Feature value"],
    "Features": ["repeated Entry entries"],
    "Example": ["optional Features features"],
}


def masked_crc(data: bytes) -> int:
    """CRC-32C of `data`, rotated and shifted as TFRecord stores it."""
    crc = _package("google_crc32c").value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(file: Path) -> Iterator[tuple[int, bytes]]:
    """Each record's place in `file` (where its data begins, in bytes) and its data.

    Raises UserError at a record that is cut short or has another checksum.
    """
    with file.open("rb") as opened:
        place = 0
        while header := opened.read(12):
            if len(header) < 12:
                raise _broken(file, place, "ends within a header")
            length, length_crc = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != length_crc or length > LARGEST_RECORD:
                raise _broken(file, place, "has a wrong checksum of its length")
            data, footer = opened.read(length), opened.read(4)
            if len(data) < length or len(footer) < 4:
                raise _broken(file, place, "is cut short")
            if masked_crc(data) != struct.unpack("<I", footer)[0]:
                raise _broken(file, place, "has a wrong checksum")
            yield place + 12, data
            place += 16 + length


def features(data: bytes) -> dict[str, list]:
    """The features of a serialized tf.train.Example: name -> bytes, floats or integers.

    Raises ValueError for bytes that are none.
    """
    example = _example_class()()
    try:
        example.ParseFromString(data)
    except _package("google.protobuf.message").DecodeError as error:
        raise ValueError(f"is no tf.train.Example: {error}") from error
    return {
        entry.key: list(entry.value.bytes.value or entry.value.floats.value or entry.value.integers.value)
        for entry in example.features.entries
    }


def _broken(file: Path, place: int, what: str) -> UserError:
    return UserError(f"{file}: the record at byte {place} {what}: copy or prepare the file anew.")


def _package(name: str) -> Any:
    """A package that is needed only here. Raises UserError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: expected protobuf and google-crc32c, which read prepared "
            "directories of Nevis'22. Get them with `make setup-nevis`, or `pip install '.[nevis]'`."
        ) from error


@cache
def _example_class() -> type:
    descriptors = _package("google.protobuf.descriptor_pb2")
    proto = descriptors.FileDescriptorProto(name="example.proto", syntax="proto3")
    field = descriptors.FieldDescriptorProto
    for message, fields in MESSAGES.items():
        added = proto.message_type.add(name=message)
        for number, (label, kind, name) in enumerate(map(str.split, fields), 1):
            described = {"name": name, "number": number, "label": field.Label.Value(f"LABEL_{label.upper()}")}
            if kind in MESSAGES:
                added.field.add(**described, type=field.TYPE_MESSAGE, type_name=kind)
            else:
                added.field.add(**described, type=field.Type.Value(f"TYPE_{kind.upper()}"))
    pool = _package("google.protobuf.descriptor_pool").DescriptorPool()
    pool.Add(proto)
    factory = _package("google.protobuf.message_factory")
    return factory.GetMessageClass(pool.FindMessageTypeByName("Example"))
