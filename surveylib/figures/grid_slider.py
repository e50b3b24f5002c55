"""One slider over a whole grid of pictures: N of best-of-N, guidance, strength of an adapter."""

import uuid
from collections.abc import Sequence
from html import escape
from typing import Any

from .movable import Figure, _cell, _grid, _json, _labels, _range
from .pictures import data_address, tile, to_png

_SCRIPT = """((box, spec) => {
  const input = box.querySelector("input[type=range]"), cells = [...box.querySelectorAll(".sv-cell")];
  const draw = () => {
    const n = +input.value;
    input.parentElement.querySelector("output").textContent = spec.labels[n];
    input.setAttribute("aria-valuetext", spec.labels[n]);
    cells.forEach((cell, k) => {
      const picture = cell.querySelector("img"), mark = cell.querySelector(".sv-mark");
      picture.src = spec.frames[spec.at[n][k]];
      if (!mark) return;
      const passed = spec.passed[n][k], word = passed ? "passes" : "fails";
      mark.className = "sv-mark " + (passed ? "sv-yes" : "sv-no");
      mark.textContent = passed ? "\\u2713" : "\\u2717";
      mark.title = word;
      picture.alt = spec.captions[k] + ", " + word;
    });
    if (spec.notes) box.querySelector(".sv-note").textContent = spec.notes[n];
  };
  input.addEventListener("input", draw);
  draw();
})"""


class GridSlider(Figure):
    """A grid of pictures that changes as a whole with a slider; texts above the cells stand still.

    pictures: for each slider position the pictures of all cells, in reading order; equal pictures are stored once.
    captions: one for each cell, or None. passed: for each position the mark of each cell, or None. slider: (name,
    labels). notes: a sentence for each position, shown below. columns: pictures in a row; on a phone a row of
    more than four takes two lines. width: of one picture in pixels on a wide page. start: the position that stands
    without JavaScript.
    Raises ValueError where the numbers of positions or cells differ.
    """

    def __init__(self, pictures: Sequence[Sequence[Any]], captions: Sequence[str] | None = None,
                 passed: Sequence[Sequence[bool]] | None = None, *, slider: tuple[str, Sequence[Any]],
                 columns: int = 4, notes: Sequence[str] | None = None, start: int = 0, title: str = "",
                 caption: str = "", alt: str = "", width: int = 128, pixelated: bool = True):
        super().__init__(title, caption, alt)
        table = [[to_png(picture) for picture in row] for row in pictures]
        labels = _labels(slider[1], len(table), "GridSlider")
        cells = len(table[0])
        for name, given in (("pictures", table), ("passed", passed)):
            if given is not None and [len(row) for row in given] != [cells] * len(table):
                raise ValueError(f"GridSlider: {name} must hold {cells} cells at each of {len(table)} positions")
        texts = [""] * cells if captions is None else [str(text) for text in captions]
        if len(texts) != cells:
            raise ValueError(f"GridSlider: {len(texts)} captions for {cells} cells")
        notes = None if notes is None else _labels(notes, len(table), "GridSlider, notes")
        start = range(len(table))[start]
        unique = list(dict.fromkeys(png for row in table for png in row))
        index = {png: k for k, png in enumerate(unique)}
        marks = None if passed is None else [[bool(p) for p in row] for row in passed]
        spec = {"labels": labels, "captions": texts, "frames": [data_address(png) for png in unique],
                "at": [[index[png] for png in row] for row in table], "passed": marks, "notes": notes}
        cells = [_cell(table[start][k], texts[k], None if marks is None else marks[start][k], pixelated,
                       k % columns == 0) for k in range(cells)]
        note = f'<p class="sv-note" aria-live="polite">{escape(notes[start])}</p>' if notes else ""
        key = "sg" + uuid.uuid4().hex[:10]
        self.body = (f'<div id="{key}">{_range(slider[0], labels, start)}{note}'
                     f'{_grid(cells, columns, width)}</div>'
                     f'<script>{_SCRIPT}(document.getElementById("{key}"),{_json(spec)});</script>')
        self.png = to_png(tile(list(pictures[start]), columns))
