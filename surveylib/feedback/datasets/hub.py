"""Rows of a data set that stands as parquet: on the Hugging Face hub, or in local files of the same layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets


def _local_files(path: Path, split: str, how: str) -> list[str]:
    """Parquet files of one split: `<split>.parquet` or `<split>-00000-of-00001.parquet`, also in `data/`."""
    if path.is_file():
        return [str(path)]
    found = [f for pattern in (f"{split}.parquet", f"{split}-*-of-*.parquet") for f in sorted(path.rglob(pattern))]
    if not found:
        raise FileNotFoundError(f"{how}\nLooked for: {path}/**/{split}.parquet, {path}/**/{split}-*-of-*.parquet")
    return [str(f) for f in found]


def rows(
    path_or_hub: str | Path, split: str, streaming: bool, columns: Sequence[str], pictures: Sequence[str], how: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every row, with `pictures` as encoded bytes. Opened at once, read when asked for.

    Args:
        path_or_hub: a parquet file, a folder that holds parquet files, or a hub id.
        streaming: read row by row; False downloads the whole split first (hub ids only).
        columns: what each row must have.
        how: what to download, for the error.

    Raises:
        FileNotFoundError: the hub cannot be reached or does not hold the split, or the folder has no such file.
        ValueError: a column is missing, or a file is no parquet.
    """
    try:
        if Path(path_or_hub).exists():
            files = _local_files(Path(path_or_hub), split, how)
            table = datasets.load_dataset("parquet", data_files={split: files}, split=split, streaming=True)
        else:
            table = datasets.load_dataset(str(path_or_hub), split=split, streaming=streaming)
        known = table.column_names or list(next(iter(table), {}))
    except FileNotFoundError as error:
        if how in str(error):
            raise
        raise FileNotFoundError(f"{how}\nLooked for: {path_or_hub} on the hub ({error})") from error
    except OSError as error:  # no connection, no such data set
        raise FileNotFoundError(f"{how}\nLooked for: {path_or_hub} ({type(error).__name__}: {error})") from error
    missing = [name for name in columns if name not in known]
    if missing:
        raise ValueError(f"{path_or_hub} lacks the columns {', '.join(missing)}; it has {', '.join(known)}")
    for name in pictures:
        if isinstance((table.features or {}).get(name), datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return ((f"{split} row {number}", row) for number, row in enumerate(table))


def encoded(value: Any) -> bytes:
    """The bytes of a picture column: plain bytes, or the struct of bytes and path; b"" where there are none."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value or b""
