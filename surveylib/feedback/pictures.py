"""Pictures as they stand in feedback records: encoded bytes (PNG, JPEG, WebP) or the path of a file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

FORMATS = {"PNG": (0, b"\x89PNG\r\n\x1a\n"), "JPEG": (0, b"\xff\xd8\xff"), "WEBP": (8, b"WEBP")}  # offset, signature
SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class RecordError(ValueError):
    """A record or a picture that cannot be used. Skipped ones are counted by `reason`, a short class."""

    def __init__(self, reason: str, message: str):
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def picture_format(data: bytes) -> str | None:
    """"PNG", "JPEG" or "WEBP" by the first bytes, or None for anything else."""
    for name, (offset, signature) in FORMATS.items():
        if data[offset : offset + len(signature)] == signature:
            return name
    return None


def is_url(picture: bytes | str) -> bool:
    """Whether a picture is given by a web address; such a picture is never fetched here."""
    return isinstance(picture, str) and picture.lower().startswith(("http://", "https://"))


def name_of(picture: bytes | str) -> str:
    """A short name for messages: the path, or what the bytes are."""
    if isinstance(picture, str):
        return repr(picture)
    return f"{len(picture)} bytes of {picture_format(picture) or 'unknown format'}"


def encode_picture(picture: Tensor | np.ndarray) -> bytes:
    """PNG bytes of a picture.

    Args:
        picture: (3, H, W), floats in [0, 1] (rounded to 8 bits) or 8-bit integers.

    Raises:
        ValueError: another shape, another integer type, values that are not finite or outside [0, 1].
    """
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    if array.ndim != 3 or array.shape[0] != 3 or 0 in array.shape:
        raise ValueError(f"a picture is (3, H, W) with H, W >= 1, got {tuple(array.shape)}")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"a picture holds floats in [0, 1] or uint8, got {array.dtype}")
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError(f"a picture's values lie in [0, 1], got {array.min()} to {array.max()}; clamp it first")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))).save(out, "PNG")
    return out.getvalue()


def picture_bytes(picture: bytes | str | Path) -> bytes:
    """The encoded bytes of a picture, read from its file if it is a path.

    Raises:
        RecordError: a file that does not exist or cannot be read, a web address, no bytes at all.
    """
    if isinstance(picture, bytes):
        data = picture
    elif is_url(str(picture)):
        raise RecordError("missing picture", f"{picture} is a web address; download it and give the file's path")
    else:
        try:
            data = Path(picture).read_bytes()
        except OSError as error:
            raise RecordError("missing picture", f"{str(picture)!r} cannot be read ({error.strerror})") from error
    if not data:
        raise RecordError("missing picture", f"{name_of(data) if isinstance(picture, bytes) else picture} is empty")
    return data


def decode_picture(picture: bytes | str | Path) -> Tensor:
    """A picture as float32 (3, H, W) in [0, 1]; transparency is laid over white.

    Raises:
        RecordError (a ValueError): a missing file, or bytes that are truncated, corrupt or no picture.
    """
    data = picture_bytes(picture)
    name = name_of(picture if isinstance(picture, bytes) else str(picture))
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            array = np.array(image.convert("RGB"))  # (H, W, 3) uint8
    except _DECODE_ERRORS as error:
        raise RecordError("corrupt picture", f"{name} cannot be decoded ({error})") from error
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def fit(picture: Tensor, size: int) -> Tensor:
    """Resize the shorter side of (3, H, W) to `size` (bicubic, antialiased) and cut the middle: (3, size, size)."""
    height, width = picture.shape[1:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    if target != (height, width):
        picture = F.interpolate(picture[None], target, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return picture[:, top : top + size, left : left + size].clamp(0, 1)
