"""Read TFRecord files of tf.train.Example without TensorFlow.

A record is the length of its data (uint64), a masked CRC-32C of these 8 bytes, the data, and a masked CRC-32C
of the data, all little endian, as tensorflow/core/lib/io/record_writer.h describes.
"""

import functools
import importlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.common.errors import UserError

# More in one record is a damaged length, not an image.
LARGEST_RECORD = 1 << 30


def masked_crc(data: bytes) -> int:
    """CRC-32C of `data`, rotated and shifted as TFRecord stores it."""
    crc = _installed("google_crc32c").value(data)
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
    except _installed("google.protobuf.message").DecodeError as error:
        raise ValueError(f"is no tf.train.Example: {error}") from error
    return {
        name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
        for name, feature in example.features.feature.items()
    }


def _broken(file: Path, place: int, what: str) -> UserError:
    return UserError(f"{file}: the record at byte {place} {what}: copy or prepare the file anew.")


def _installed(module: str) -> Any:
    """A module of the packages that only prepared directories need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Directories prepared by the tools of Nevis'22 are read with {error.name}, which is not here: "
            "install it with `make setup-nevis`, or `pip install '.[nevis]'`."
        ) from error


@functools.cache
def _example_class() -> type:
    """The message class of tensorflow/core/example/example.proto, declared here instead of compiled."""
    names = "descriptor_pb2", "descriptor_pool", "message_factory"
    descriptor_pb2, descriptor_pool, message_factory = (
        _installed(f"google.protobuf.{name}") for name in names
    )
    proto = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def message(name: str, parent: Any = proto.message_type) -> Any:
        return parent.add(name=name)

    def add(
        owner: Any, name: str, number: int, kind: int, type_name: str = "", repeated: bool = False
    ) -> Any:
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        added = owner.field.add(name=name, number=number, type=kind, label=label)
        if type_name:
            added.type_name = f".tensorflow.{type_name}"
        return added

    kinds = {"BytesList": field.TYPE_BYTES, "FloatList": field.TYPE_FLOAT, "Int64List": field.TYPE_INT64}
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(kinds.items(), 1):
        add(message(name), "value", 1, kind, repeated=True)
        member = f"{name.removesuffix('List').lower()}_list"
        add(feature, member, number, field.TYPE_MESSAGE, name).oneof_index = 0
    all_features = message("Features")
    entry = message("FeatureEntry", all_features.nested_type)
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, "Feature")
    add(all_features, "feature", 1, field.TYPE_MESSAGE, "Features.FeatureEntry", repeated=True)
    add(message("Example"), "features", 1, field.TYPE_MESSAGE, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
