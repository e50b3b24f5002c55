"""Records as JSON Lines: a header line with schema and version, then one record a line.

Picture bytes stand as {"base64": ...}, heatmaps as zlib-compressed little-endian float32 (exact). Fields that hold
their default are left out.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from surveylib.feedback.pictures import RecordError
from surveylib.feedback.record import Record

SCHEMA, VERSION = "surveylib.feedback.record", 1
TORN = "torn last line"


def check_header(header: Any, path: str | Path) -> None:
    """Raise ValueError unless `header` names this schema in a version that can be read."""
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a file of feedback records: its header does not name the schema {SCHEMA!r}")
    if header.get("version") != VERSION:
        raise ValueError(f"{path} has schema version {header.get('version')!r}; this library reads version {VERSION}")


def header_line() -> bytes:
    """The first line of every file."""
    return json.dumps({"schema": SCHEMA, "version": VERSION}).encode() + b"\n"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def line_of(record: Record) -> bytes:
    """One record as one line."""
    row: dict[str, Any] = {}
    for entry in fields(record):
        value = getattr(record, entry.name)
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        if value is None or (default is not MISSING and entry.name != "heatmaps" and value == default):
            continue
        row[entry.name] = value
    row["images"] = [i if isinstance(i, str) else {"base64": _base64(i)} for i in record.images]
    if record.heatmaps is not None:
        row["heatmaps"] = {
            name: {"shape": list(h.shape), "zlib": _base64(zlib.compress(h.astype("<f4").tobytes()))}
            for name, h in record.heatmaps.items()
        }
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def fields_of(line: bytes) -> dict[str, Any]:
    """The fields of a record from its line.

    Raises:
        RecordError: the line is no JSON object, or a picture or heatmap in it cannot be read.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError("malformed line", f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise RecordError("malformed line", f"a record is a JSON object, got a {type(row).__name__}")
    try:
        images = row.get("images")
        if isinstance(images, list):
            row["images"] = tuple(
                base64.b64decode(i["base64"], validate=True) if isinstance(i, dict) else i for i in images
            )
    except (KeyError, TypeError, binascii.Error) as error:
        raise RecordError("corrupt picture", f"images of the line cannot be read ({error})") from error
    try:
        if row.get("heatmaps") is not None:
            row["heatmaps"] = {
                name: np.frombuffer(zlib.decompress(base64.b64decode(h["zlib"])), "<f4").reshape(h["shape"])
                for name, h in row["heatmaps"].items()
            }
    except (KeyError, TypeError, AttributeError, ValueError, zlib.error) as error:
        raise RecordError("wrong heatmap", f"heatmaps of the line cannot be read ({error})") from error
    return row


def write(records: Iterable[Record], path: Path) -> None:
    """Write a whole file."""
    with open(path, "wb") as file:
        file.write(header_line())
        for record in records:
            file.write(line_of(record))
        file.flush()
        os.fsync(file.fileno())


def _is_whole(line: bytes) -> bool:
    """Whether a last line without its newline is complete all the same: a part of a JSON object never parses."""
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except (UnicodeDecodeError, json.JSONDecodeError):
        return False


def read(path: Path) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
    """Yield (place, fields) for every record, or (place, error) for a line that cannot be read.

    Raises:
        ValueError: the first line is not this schema's header.
    """
    with open(path, "rb") as file:
        first = file.readline()
        if not first.endswith(b"\n") and not _is_whole(first):
            if first and not header_line().startswith(first):
                check_header(None, path)
            yield "line 1", RecordError(TORN, "the file ends before its header is complete: no record was written")
            return
        try:
            check_header(json.loads(first.decode("utf-8")), path)
        except (UnicodeDecodeError, json.JSONDecodeError):
            check_header(None, path)
        for number, line in enumerate(file, start=2):
            where = f"line {number}"
            if not line.endswith(b"\n") and not _is_whole(line):
                yield where, RecordError(TORN, f"{len(line)} bytes without an end: the writer was stopped there")
            elif line.strip():
                try:
                    yield where, fields_of(line)
                except RecordError as error:
                    yield where, error


def _repair(descriptor: int, path: Path) -> int:
    """Bring an opened file to a state in which a line can be added; returns how many torn bytes were removed."""
    size = os.fstat(descriptor).st_size
    with open(path, "rb") as file:
        first = file.readline()
        if not first.endswith(b"\n") and not _is_whole(first):
            if first and not header_line().startswith(first):
                check_header(None, path)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, header_line())
            return size
        try:
            check_header(json.loads(first.decode("utf-8")), path)
        except (UnicodeDecodeError, json.JSONDecodeError):
            check_header(None, path)
        start = _last_line_start(file, size)
        file.seek(start)
        last = file.read()
    if not last or last.endswith(b"\n"):
        return 0
    if _is_whole(last):
        os.write(descriptor, b"\n")
        return 0
    os.ftruncate(descriptor, start)
    return len(last)


def _last_line_start(file: Any, size: int) -> int:
    """Where the last line begins (the file's end, if it ends with a newline)."""
    position = size
    while position > 0:
        step = min(65536, position)
        file.seek(position - step)
        cut = file.read(step).rfind(b"\n")
        if cut >= 0:
            return position - step + cut + 1
        position -= step
    return 0


def append_line(path: Path, record: Record) -> int:
    """Add one record; see `surveylib.feedback.records.append_record`."""
    line = line_of(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _lock(descriptor)
        removed = _repair(descriptor, path)
        view = memoryview(line)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)  # gives the lock back
    return removed


def _lock(descriptor: int) -> None:
    """One writer at a time, where the system has advisory locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
