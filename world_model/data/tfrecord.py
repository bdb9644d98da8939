"""TFRecord files of tf.train.Example messages, read without TensorFlow.

A record is its length (8 bytes), a checksum of that, the message, and a checksum of the message. An Example is a map
from names to lists of bytes, floats or integers. Formats: tensorflow/core/lib/io/record_writer.h and
tensorflow/core/example/feature.proto.
"""

import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

Feature = list[bytes] | np.ndarray
Example = dict[str, Feature]

LENGTH_DELIMITED = 2  # the wire type of bytes and messages in protocol buffers


def examples(path: Path) -> Iterator[tuple[str, Callable[[], Example]]]:
    """Every record of a file, with a name of its own, to be parsed when it is wanted.

    Where the file is cut off or the lengths make no sense, nothing behind that place can be found: the last one then
    raises ValueError instead.
    """
    if not path.is_file():
        yield path.name, partial(_fail, "it is no file")
        return
    number, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while head := file.read(12):
            name = f"{path.name}:{number}"
            record = _record(head, file.read, size)
            if record is None:
                yield f"{name} and all behind it", partial(_fail, "the file is cut off or damaged here")
                return
            yield name, lambda record=record: parse(record)  # type: ignore[misc]
            number += 1


def _record(head: bytes, read: Callable[[int], bytes], size: int) -> bytes | None:
    if len(head) < 12:
        return None
    length, check = struct.unpack("<QI", head)
    # The message's own checksum is left alone: a table-driven CRC of every image in Python would take longer than
    # reading it, and a damaged message shows when it is parsed or its images are decoded.
    if check != masked_crc32c(head[:8]) or length > size:
        return None
    record = read(length)
    return record if len(record) == length and len(read(4)) == 4 else None


def _fail(why: str) -> Example:
    raise ValueError(why)


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord: CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def parse(message: bytes) -> Example:
    """A serialized Example: names to lists of bytes, float32 (n,) or int64 (n,). Raises ValueError."""
    features: Example = {}
    for features_message in _chunks(message, 1):
        for entry in _chunks(features_message, 1):
            names, values = list(_chunks(entry, 1)), list(_chunks(entry, 2))
            features[names[-1].decode()] = _feature(values[-1]) if values else []
    return features


def _feature(message: bytes) -> Feature:
    """Exactly one of three lists; numbers are packed into one field, as feature.proto demands."""
    for kind, payload in _fields(message):
        if kind == 1:
            return list(_chunks(payload, 1))
        numbers = b"".join(_chunks(payload, 1))
        if kind == 2:
            return np.frombuffer(numbers, "<f4")
        if kind == 3:
            return np.array(list(_varints(numbers)), np.int64)
    return []


def _varints(message: bytes) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value - (1 << 64) if value >> 63 else value


def _chunks(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of all fields of one number."""
    return (content for number, content in _fields(message) if number == wanted)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(field number, content) of a message whose fields all are bytes or messages, as those of an Example are."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        size, at = _varint(message, at)
        if tag & 7 != LENGTH_DELIMITED or at + size > len(message):
            raise ValueError("the record is no tf.train.Example, or damaged")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("the record is damaged")
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
