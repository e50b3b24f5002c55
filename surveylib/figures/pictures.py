"""Pictures in, PNG out: arrays, tensors, PIL images and matplotlib figures become bytes and data addresses."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def to_array(picture: Any) -> np.ndarray:
    """A picture as uint8 (H, W, 3). Takes float [0, 1] or uint8, (H, W), (H, W, 3) or (3, H, W), array, tensor or PIL.

    Values outside [0, 1] are clipped. Raises ValueError for another shape and for values that are not numbers.
    """
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    array = np.asarray(picture.detach().cpu().float() if hasattr(picture, "detach") else picture)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
        raise ValueError(f"a picture is (H, W), (H, W, 3) or (3, H, W), not {array.shape}; "
                         "for several pictures use PictureGrid")
    if array.shape[-1] != 3:
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise ValueError("the picture holds values that are not finite")
        array = (array.astype(np.float64).clip(0, 1) * 255).round().astype(np.uint8)
    return array


def to_png(picture: Any, dpi: int = 110, transparent: bool = False) -> bytes:
    """PNG bytes of a picture (see `to_array`) or of a matplotlib figure (at ``dpi``); PNG bytes pass through."""
    if isinstance(picture, bytes):
        return picture
    out = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(out, format="png", dpi=dpi, bbox_inches="tight", transparent=transparent)
        drawn = Image.open(out)
        out = io.BytesIO()  # a palette of 256 colours is enough for lines and a third of the bytes
        drawn.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    else:
        Image.fromarray(to_array(picture)).save(out, format="png", optimize=True)
    return out.getvalue()


def data_address(png: bytes) -> str:
    """PNG bytes as a ``data:`` address for an ``<img>``."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def tile(pictures: Sequence[Any], columns: int, gap: int = 2, background: int = 255) -> np.ndarray:
    """Pictures of one size side by side, uint8 (H, W, 3), ``columns`` in a row."""
    arrays = [to_array(p) for p in pictures]
    if not arrays:
        raise ValueError("no picture to tile")
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f"pictures differ in size: {sorted({a.shape[:2] for a in arrays})}")
    height, width = arrays[0].shape[:2]
    rows = -(-len(arrays) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background, np.uint8)
    for n, array in enumerate(arrays):
        y, x = (n // columns) * (height + gap), (n % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = array
    return sheet
