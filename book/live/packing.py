"""Weights as text files that a page opened from disk can load.

A page opened by file:// may not fetch, but may load scripts. So a blob is bytes, gzipped, in base64, cut into pieces;
each piece is a script that puts its text into ``LIVE.blobs``. Half-precision numbers lie as two planes, all high bytes
before all low bytes, because signs and exponents then compress (a tenth less in all).
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 1_500_000  # characters of one script
LEVELS = 31  # of a row on each side of zero: six bits of eight, which gzip then saves


def planes(values: np.ndarray) -> bytes:
    """Numbers as float16, high bytes first, then low bytes.

    Raises:
        ValueError: a number too large for half precision.
    """
    if not np.abs(values).max(initial=0) <= 65504:
        raise ValueError(f"{np.abs(values).max():.3g} does not fit half precision (largest 65504)")
    half = np.ascontiguousarray(values, dtype=np.float32).ravel().astype("<f2")
    pairs = half.view(np.uint8).reshape(-1, 2)
    return pairs[:, 1].tobytes() + pairs[:, 0].tobytes()


def in_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as (int8, scale of each row): values ~ int8 x scale. Rows are along the first axis."""
    rows = values.reshape(len(values), -1)
    scales = np.abs(rows).max(1, keepdims=True) / LEVELS
    scales = np.where(scales > 0, scales, 1).astype(np.float16).astype(np.float32)
    return np.clip(np.rint(rows / scales), -127, 127).astype(np.int8), scales.ravel()


def half_blob(arrays: dict[str, np.ndarray]) -> tuple[bytes, list[dict[str, Any]]]:
    """All arrays in half precision, and their list for the page."""
    flat = [value.ravel() for value in arrays.values()]
    joined = np.concatenate(flat) if flat else np.zeros(0, np.float32)
    return planes(joined), [{"name": name, "size": int(value.size), "rows": 0} for name, value in arrays.items()]


def row_blob(arrays: dict[str, np.ndarray]) -> tuple[bytes, list[dict[str, Any]]]:
    """Matrices as rows of small integers; vectors and the rows' scales in half precision behind them."""
    small, fine, listed = [], [], []
    for name, value in arrays.items():
        rows = len(value) if value.ndim > 1 else 0
        if rows:
            codes, scales = in_rows(value)
            small.append(codes.ravel())
            fine.append(scales)
        else:
            fine.append(value.ravel())
        listed.append({"name": name, "size": int(value.size), "rows": rows})
    return np.concatenate(small).tobytes() + planes(np.concatenate(fine)), listed


def write_blob(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    """Write a blob as scripts; returns what the manifest says of it: pieces, compressed bytes, bytes."""
    packed = gzip.compress(data, 9, mtime=0)
    text = base64.b64encode(packed).decode()
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    for old in folder.glob(f"{name}-*.js"):
        old.unlink()
    for number, piece in enumerate(pieces):
        (folder / f"{name}-{number}.js").write_text(f'LIVE.piece("{name}",{number},"{piece}");\n')
    return {"pieces": len(pieces), "packed": len(packed), "bytes": len(data)}


def write_script(path: Path, name: str, value: Any) -> None:
    """A script that puts a JSON value into ``LIVE``."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("</", "<\\/")
    path.write_text(f"LIVE.{name} = {text};\n", encoding="utf-8")
