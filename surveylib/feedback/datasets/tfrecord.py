"""TFRecord files and the tf.train.Example messages in them, read without TensorFlow.

A record is: length (uint64), masked CRC-32C of the length (uint32), data, masked CRC-32C of the data (uint32), all
little-endian. An Example is a protobuf map from feature name to a list of bytes, floats or integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from surveylib.feedback.pictures import RecordError

Feature = list[bytes] | list[float] | list[int]
_CASTAGNOLI = 0x82F63B78
_MASK = 0xA282EAD8


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`, rotated right by 15 bits and shifted by a constant, as TFRecord stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def read_tfrecords(path: str | Path) -> Iterator[bytes | RecordError]:
    """The data of each record; a record whose data do not fit their checksum is given as an error.

    Raises:
        ValueError: the file is cut off or is no TFRecord file; nothing after that place can be read.
    """
    path, number = Path(path), 0
    with open(path, "rb") as file:
        while head := file.read(12):
            if len(head) < 12:
                raise ValueError(f"{path} is cut off in the head of record {number}; download it again")
            length, check = struct.unpack("<QI", head)
            if masked_crc32c(head[:8]) != check:
                raise ValueError(f"{path}: record {number} has a wrong length checksum: damaged, or no TFRecord file")
            body = file.read(length + 4)
            if len(body) < length + 4:
                raise ValueError(f"{path} is cut off in record {number}; download it again")
            data = body[:length]
            if masked_crc32c(data) != struct.unpack("<I", body[length:])[0]:
                yield RecordError("corrupt record", f"record {number}: the data do not fit their checksum")
            else:
                yield data
            number += 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """(field number, wire type, value) of one protobuf message; wire types 0, 1, 2 and 5."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                size, at = _varint(data, at)
            if size is None or at + size > len(data):
                raise IndexError(f"field {number} of wire type {wire} does not fit")
            value, at = data[at : at + size], at + size
        yield number, wire, value


def _integers(value: bytes | int, wire: int) -> list[int]:
    """int64 values, packed or single; negative ones are stored as 64-bit two's complement."""
    values, at = [], 0
    if wire == 0:
        values = [value]
    else:
        while at < len(value):
            number, at = _varint(value, at)
            values.append(number)
    return [v - (1 << 64) if v >> 63 else v for v in values]


def _feature(data: bytes) -> Feature:
    """A Feature: bytes_list = 1, float_list = 2, int64_list = 3; each holds repeated values in field 1."""
    values: list = []
    for kind, _, message in _fields(data):
        for number, wire, value in _fields(message):
            if number != 1:
                continue
            if kind == 1:
                values.append(value)
            elif kind == 2:
                values.extend(struct.unpack(f"<{len(value) // 4}f", value))
            elif kind == 3:
                values.extend(_integers(value, wire))
    return values


def parse_example(data: bytes) -> dict[str, Feature]:
    """Feature name -> its values, of a serialised tf.train.Example.

    Raises:
        RecordError: the bytes are no such message.
    """
    features: dict[str, Feature] = {}
    try:
        for number, _, message in _fields(data):
            if number != 1:  # features
                continue
            for _, _, entry in _fields(message):
                pair = {key: value for key, _, value in _fields(entry)}
                features[pair[1].decode("utf-8")] = _feature(pair.get(2, b""))
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError, struct.error) as error:
        raise RecordError("corrupt record", f"not a tf.train.Example ({error})") from error
    return features
