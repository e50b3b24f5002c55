"""Records as parquet, with nested types; schema name and version stand in the file's metadata.

The column `images` has the layout of Hugging Face `datasets` (struct of bytes and path), so that the file can be read
there too. Heatmaps are float32, exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from surveylib.feedback.json_lines import SCHEMA, VERSION, check_header
from surveylib.feedback.pictures import RecordError
from surveylib.feedback.record import Record

METADATA_KEY = b"surveylib"
BATCH = 64
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_HEATMAP = pa.struct([
    ("name", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("values", pa.list_(pa.float32()))
])  # fmt: skip
COLUMNS = pa.schema([
    ("kind", pa.string()),
    ("prompt", pa.string()),
    ("images", pa.list_(_PICTURE)),
    ("record_id", pa.string()),
    ("prompt_id", pa.string()),
    ("annotator", pa.string()),
    ("source", pa.string()),
    ("models", pa.list_(pa.string())),
    ("weight", pa.float64()),
    ("time", pa.float64()),
    ("extra", pa.string()),  # JSON
    ("preference", pa.float64()),
    ("ranks", pa.list_(pa.int64())),
    ("rating", pa.float64()),
    ("low", pa.float64()),
    ("high", pa.float64()),
    ("ratings", pa.list_(pa.struct([("dimension", pa.string()), ("rating", pa.float64())]))),
    ("liked", pa.bool_()),
    ("heatmaps", pa.list_(_HEATMAP)),
    ("misaligned", pa.list_(pa.bool_())),
])  # fmt: skip
_DIRECT = ("kind", "prompt", "record_id", "prompt_id", "annotator", "source", "weight", "time", "preference", "rating",
           "low", "high", "liked")  # fmt: skip
_TUPLES = ("models", "ranks", "misaligned")


def row_of(record: Record) -> dict[str, Any]:
    """One record as a row of `COLUMNS`."""
    row = {name: getattr(record, name) for name in _DIRECT}
    for name in _TUPLES:
        value = getattr(record, name)
        row[name] = None if value is None else list(value)
    row["images"] = [
        {"bytes": i, "path": None} if isinstance(i, bytes) else {"bytes": None, "path": i} for i in record.images
    ]
    row["extra"] = json.dumps(record.extra, ensure_ascii=False)
    row["ratings"] = record.ratings and [{"dimension": k, "rating": v} for k, v in record.ratings.items()]
    row["heatmaps"] = record.heatmaps and [
        {"name": name, "height": h.shape[0], "width": h.shape[1], "values": h.ravel()}
        for name, h in record.heatmaps.items()
    ]
    return row


def fields_of(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record from its row.

    Raises:
        RecordError: a value in the row cannot be one of a record.
    """
    try:
        result = {name: row[name] for name in _DIRECT}
        for name in _TUPLES:
            result[name] = None if row[name] is None else tuple(row[name])
        result["images"] = tuple(i["path"] if i["bytes"] is None else i["bytes"] for i in row["images"])
        result["extra"] = json.loads(row["extra"])
        if row["ratings"] is not None:
            result["ratings"] = {r["dimension"]: r["rating"] for r in row["ratings"]}
        if row["heatmaps"] is not None:
            result["heatmaps"] = {
                h["name"]: np.asarray(h["values"], np.float32).reshape(h["height"], h["width"]) for h in row["heatmaps"]
            }
    except (TypeError, ValueError, KeyError) as error:
        raise RecordError("malformed record", f"a row cannot be read ({error})") from error
    return result


def write(records: Iterable[Record], path: Path) -> None:
    """Write a whole file, in batches."""
    metadata = {METADATA_KEY: json.dumps({"schema": SCHEMA, "version": VERSION}).encode()}
    schema, rows = COLUMNS.with_metadata(metadata), map(row_of, records)
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({error})") from error
    stated = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    try:
        check_header(json.loads(stated) if stated else None, path)
        missing = [name for name in COLUMNS.names if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; write it anew with write_records")
    except ValueError:
        file.close()
        raise
    return file


def read(path: Path) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
    """Yield (place, fields) for every record, or (place, error) for a row that cannot be read.

    Raises:
        ValueError: not parquet, truncated, or not of this schema and version.
    """
    with _open(path) as file:
        number = 0
        try:
            for batch in file.iter_batches(BATCH, columns=COLUMNS.names):
                for row in batch.to_pylist():
                    try:
                        yield f"row {number}", fields_of(row)
                    except RecordError as error:
                        yield f"row {number}", error
                    number += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is damaged after row {number} ({error})") from error
