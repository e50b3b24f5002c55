"""Contact sheets: pictures in rows with a text above each, as one PNG. A frame of a `Scrubber` or `SliderGrid`."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pictures import to_array

GREY = (134, 142, 150, 255)  # readable on light and on dark pages
YES, NO = (11, 125, 114, 255), (179, 57, 43, 255)
FONT, LINE, GAP, MARK = 15, 17, 6, 20


def sheet(pictures: Sequence[Any], captions: Sequence[str] | None = None, passed: Sequence[bool | None] | None = None,
          *, columns: int = 3, size: int = 128, colours: int = 96) -> bytes:
    """PNG bytes of pictures side by side on a transparent ground.

    pictures: in reading order, see `to_array`; each is shown ``size`` pixels wide, hard pixels kept. captions, passed:
    one for each, or None; a pass is a round mark with a tick, a fail a square one with a cross. colours: of the palette
    that keeps the file small.
    Raises ValueError for no picture, or counts that differ.
    """
    if not len(pictures):
        raise ValueError("no picture for the sheet")
    for name, given in (("captions", captions), ("passed", passed)):
        if given is not None and len(given) != len(pictures):
            raise ValueError(f"sheet: {len(given)} {name} for {len(pictures)} pictures")
    texts = [textwrap.wrap(t, width=max(1, size // 8)) for t in captions] if captions else [[]] * len(pictures)
    above = [max(len(t) for t in texts[n : n + columns]) * LINE for n in range(0, len(texts), columns)]  # of each row
    tops = np.cumsum([0, *(size + height + GAP for height in above)])
    canvas = Image.new("RGBA", (columns * (size + GAP) - GAP, int(tops[-1]) - GAP), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=FONT)
    for n, picture in enumerate(pictures):
        x, y = (n % columns) * (size + GAP), int(tops[n // columns]) + above[n // columns]
        for k, line in enumerate(reversed(texts[n])):
            draw.text((x, y - (k + 1) * LINE), line, fill=GREY, font=font)
        image = Image.fromarray(np.ascontiguousarray(to_array(picture)))
        canvas.paste(image.resize((size, size), Image.Resampling.NEAREST), (x, y))
        if passed is not None and passed[n] is not None:
            _mark(draw, x + size - MARK - 4, y + size - MARK - 4, bool(passed[n]))
    return palette(canvas, colours)


def palette(picture: Image.Image | bytes, colours: int = 64) -> bytes:
    """PNG bytes with few colours, of a PIL image or a PNG.

    colours: 1 to 240, for the opaque pixels, which stay opaque; 16 more serve transparent and half-transparent ones.
    """
    if not 1 <= colours <= 240:
        raise ValueError(f"colours is between 1 and 240, not {colours}")
    image = (Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture).convert("RGBA")
    solid = np.asarray(image)[:, :, 3] == 255
    opaque = image.convert("RGB").quantize(colours, method=Image.Quantize.MEDIANCUT)
    rest = np.where(solid[:, :, None], 0, np.asarray(image)).astype(np.uint8)
    clear = Image.fromarray(rest, "RGBA").quantize(16, method=Image.Quantize.FASTOCTREE)
    index = np.where(solid, np.asarray(opaque), np.asarray(clear) + colours).astype(np.uint8)
    table = np.zeros((256, 4), np.uint8)
    for first, part in ((0, opaque.convert("RGBA")), (colours, clear.convert("RGBA"))):
        known = np.asarray(opaque if first == 0 else clear)
        table[known + first] = np.asarray(part)
    small = Image.fromarray(index, "P")
    small.putpalette(table[:, :3].tobytes(), "RGB")
    out = io.BytesIO()
    small.save(out, format="png", optimize=True, transparency=table[:, 3].tobytes())
    return out.getvalue()


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, passed: bool) -> None:
    box, white = (x, y, x + MARK, y + MARK), (255, 255, 255, 255)
    if passed:
        draw.ellipse(box, fill=YES)
        draw.line([(x + 5, y + 11), (x + 9, y + 15), (x + 15, y + 6)], fill=white, width=2)
    else:
        draw.rectangle(box, fill=NO)
        for ends in ([(x + 6, y + 6), (x + 14, y + 14)], [(x + 14, y + 6), (x + 6, y + 14)]):
            draw.line(ends, fill=white, width=2)
