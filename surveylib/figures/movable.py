"""Figures that move without a kernel: HTML and JavaScript over what was computed beforehand.

Each figure is self-contained (no network), works by keyboard and touch, in light and dark pages, and shows its first
frame where JavaScript is off. For PDF and GitHub a PNG stands beside the HTML.
"""

import base64
import json
import uuid
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from .pictures import data_address, tile, to_array, to_png


@lru_cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("</", "<\\/")


def _range(name: str, labels: Sequence[str], start: int, play: bool = False) -> str:
    button = '<button type="button" aria-label="Play" hidden>\u25b6</button>' if play else ""
    return (f'<div class="sv-ctl">{button}<label><span>{escape(name)}</span><input type="range" min="0" '
            f'max="{len(labels) - 1}" step="1" value="{start}" aria-label="{escape(name)}" '
            f'aria-valuetext="{escape(labels[start])}"><output>{escape(labels[start])}</output></label></div>')


class Figure:
    """What all movable figures share: title, caption, alternative text, and how notebooks show them.

    A subclass sets ``body`` (HTML), ``spec`` (what its sliders choose from; None without sliders) and ``png`` (bytes).
    """

    body: str
    spec: dict[str, Any] | None = None
    png: bytes

    def __init__(self, title: str = "", caption: str = "", alt: str = ""):
        self.title, self.caption, self.alt = title, caption, alt or title
        if not self.alt:
            raise ValueError("a figure needs alt= (or title=): what does a reader miss who cannot see it?")

    def html(self) -> str:
        """The figure as one piece of HTML with its own style and script."""
        key = "sv" + uuid.uuid4().hex[:10]
        title = f'<div class="sv-title">{escape(self.title)}</div>' if self.title else ""
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        script = ""
        if self.spec is not None:
            script = f'<script>({_asset("figure.js")})(document.getElementById("{key}"),{_json(self.spec)});</script>'
        return (f'<style>{_asset("figure.css")}</style>'
                f'<figure class="sv-fig" id="{key}" aria-label="{escape(self.alt)}">'
                f"{title}{self.body}{caption}</figure>{script}")

    def save(self, path: str | Path) -> Path:
        """Write the figure as a page of its own; returns the path."""
        path = Path(path)
        path.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
                        f'content="width=device-width"><title>{escape(self.title or self.alt)}</title>'
                        f'<meta name="color-scheme" content="light dark"><body>{self.html()}</body></html>',
                        encoding="utf-8")
        return path

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self.html(), "image/png": base64.b64encode(self.png).decode(),
                "text/plain": f"{type(self).__name__}({self.title or self.alt!r})"}


def _image(png: bytes, alt: str, width: int, pixelated: bool) -> str:
    look = ' class="sv-pix"' if pixelated else ""
    return f'<img src="{data_address(png)}" alt="{escape(alt)}" style="width:{width}px"{look}>'


def _labels(labels: Sequence[Any] | None, n: int, what: str) -> list[str]:
    found = [str(x) for x in (range(1, n + 1) if labels is None else labels)]
    if len(found) != n or n == 0:
        raise ValueError(f"{what}: {len(found)} labels for {n} positions; give one label for each, and at least one")
    return found


class Scrubber(Figure):
    """One slider over frames, with a play button: a denoising path, a training run.

    frames: pictures or matplotlib figures of one size. labels: one text for each frame. name: what the slider is.
    width: on the page, in pixels. pixelated: keep hard pixels when enlarged. start: the frame that stands without
    JavaScript. pace: milliseconds a frame while playing.
    """

    def __init__(self, frames: Sequence[Any], labels: Sequence[Any] | None = None, *, name: str = "step",
                 title: str = "", caption: str = "", alt: str = "", width: int = 256, pixelated: bool = True,
                 start: int = 0, pace: int = 180):
        super().__init__(title, caption, alt)
        pngs = [to_png(f) for f in frames]
        texts = _labels(labels, len(pngs), "Scrubber")
        start = range(len(pngs))[start]
        self.spec = {"kind": "frames", "shape": [len(pngs)], "labels": [texts], "pace": pace,
                     "frames": [data_address(p) for p in pngs]}
        self.body = _image(pngs[start], self.alt, width, pixelated) + _range(name, texts, start, play=True)
        self.png = pngs[-1]


class SliderGrid(Figure):
    """Two sliders over a table of frames: guidance and step, weight and strength.

    frames: a list of rows, each a list of pictures or matplotlib figures. rows, columns: (name, labels) of the sliders.
    start: (row, column) of the frame that stands without JavaScript.
    """

    def __init__(self, frames: Sequence[Sequence[Any]], rows: tuple[str, Sequence[Any]],
                 columns: tuple[str, Sequence[Any]], *, title: str = "", caption: str = "", alt: str = "",
                 width: int = 256, pixelated: bool = True, start: tuple[int, int] = (0, 0)):
        super().__init__(title, caption, alt)
        table = [[to_png(f) for f in row] for row in frames]
        if len({len(row) for row in table}) > 1:
            raise ValueError(f"SliderGrid: rows of different length: {[len(row) for row in table]}")
        down = _labels(rows[1], len(table), f"SliderGrid, {rows[0]}")
        across = _labels(columns[1], len(table[0]), f"SliderGrid, {columns[0]}")
        r, c = range(len(down))[start[0]], range(len(across))[start[1]]
        self.spec = {"kind": "frames", "shape": [len(down), len(across)], "labels": [down, across],
                     "frames": [data_address(p) for row in table for p in row]}
        self.body = (_image(table[r][c], self.alt, width, pixelated) + _range(rows[0], down, r)
                     + _range(columns[0], across, c))
        self.png = table[r][c]


class BeforeAfter(Figure):
    """Two pictures of one size under a handle: left of it the first, right of it the second."""

    def __init__(self, before: Any, after: Any, *, labels: tuple[str, str] = ("before", "after"), title: str = "",
                 caption: str = "", alt: str = "", width: int = 384, pixelated: bool = True):
        super().__init__(title, caption, alt)
        first, second = to_array(before), to_array(after)
        if first.shape != second.shape:
            raise ValueError(f"before is {first.shape[:2]}, after is {second.shape[:2]}: they need one size")
        positions = [f"{x} % {labels[0]}" for x in range(101)]
        self.spec = {"kind": "split", "shape": [101], "labels": [positions]}
        self.body = (f'<div class="sv-split" style="width:{width}px">'
                     f"{_image(to_png(first), labels[0], width, pixelated)}"
                     f'<div class="sv-after">{_image(to_png(second), labels[1], width, pixelated)}</div>'
                     f'<b>{escape(labels[0])}</b><b>{escape(labels[1])}</b><input type="range" min="0" max="100" '
                     f'value="50" aria-label="{escape(f"split between {labels[0]} and {labels[1]}")}"></div>')
        self.png = to_png(tile([first, second], columns=2, gap=4))


class PictureGrid(Figure):
    """Pictures in rows, a text above each, a mark for pass (round, tick) or fail (square, cross) in the corner.

    pictures: in reading order. captions, passed: one for each, or None. columns: pictures in a row.
    row_labels: one for each row. width: of one picture in pixels on a wide page. On a phone a row of more than four
    takes two lines.
    """

    def __init__(self, pictures: Sequence[Any], captions: Sequence[str] | None = None,
                 passed: Sequence[bool | None] | None = None, *, columns: int = 4,
                 row_labels: Sequence[str] | None = None, title: str = "", caption: str = "", alt: str = "",
                 width: int = 128, pixelated: bool = True):
        super().__init__(title, caption, alt)
        count = len(pictures)
        for name, given in (("captions", captions), ("passed", passed)):
            if given is not None and len(given) != count:
                raise ValueError(f"PictureGrid: {len(given)} {name} for {count} pictures")
        if row_labels is not None and len(row_labels) != -(-count // columns):
            raise ValueError(f"PictureGrid: {len(row_labels)} row_labels for {-(-count // columns)} rows")
        cells = []
        for n, picture in enumerate(pictures):
            if row_labels is not None and n % columns == 0:
                cells.append(f'<div class="sv-row">{escape(row_labels[n // columns])}</div>')
            cells.append(_cell(picture, captions[n] if captions is not None else "",
                               None if passed is None else passed[n], pixelated, n % columns == 0))
        self.body = _grid(cells, columns, width)
        self.png = to_png(tile(list(pictures), columns))


def _cell(picture: Any, text: str, passed: bool | None, pixelated: bool, first: bool) -> str:
    """A picture of a grid with its text and its mark; first: of its row."""
    verdict = {None: "", True: "passes", False: "fails"}[None if passed is None else bool(passed)]
    mark = "" if passed is None else (f'<i class="sv-mark sv-{"yes" if passed else "no"}" title="{verdict}" '
                                      f'aria-hidden="true">{"✓" if passed else "✗"}</i>')
    above = f"<span>{escape(text)}</span>" if text else ""
    alt = escape(", ".join(x for x in (text, verdict) if x) or "picture")
    look, begin = ' class="sv-pix"' if pixelated else "", " sv-first" if first else ""
    image = f'<img src="{data_address(to_png(picture))}" alt="{alt}"{look}>'
    return f'<div class="sv-cell{begin}">{above}{image}{mark}</div>'


def _grid(cells: Sequence[str], columns: int, width: int) -> str:
    """Cells side by side; on a phone a row of more than four takes two lines."""
    half = " sv-half" if columns > 4 else ""
    return (f'<div class="sv-grid{half}" style="grid-template-columns:repeat({columns},minmax(3.2rem,{width}px));'
            f'--half:{-(-columns // 2)}">{"".join(cells)}</div>')


def as_rows(values: Any, positions: int) -> np.ndarray:
    """Values of a curve as float (positions, N): one row for each slider position; (N,) is repeated."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)
    if array.ndim == 1:
        array = np.repeat(array[None], positions, axis=0)
    if array.ndim != 2 or array.shape[0] != positions:
        raise ValueError(f"a curve is (N,) or ({positions}, N) for {positions} slider positions, not {array.shape}")
    return array
