"""A table that a reader sorts by a click on a column's name, by mouse, finger or keyboard."""

import io
import uuid
from collections.abc import Sequence
from html import escape
from numbers import Real
from typing import Any

from .colours import on_page
from .movable import Figure, _asset, _json


class SortableTable(Figure):
    """Rows of numbers and words with a button in every column's head.

    columns: names. rows: one cell a column: a number, a text, None for nothing, or (value, text) or (value, text,
    small text) where what is shown is not what is sorted by. colours: of a stripe before each row (a role, a family or
    a colour), or None. sort: the column that is sorted first, downwards; None keeps the order given. The first frame
    without JavaScript is the order given.
    Raises ValueError where a row has another number of cells, or `sort` is no column.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, colours: Sequence[str] | None = None,
                 sort: str | None = None, title: str = "", caption: str = "", alt: str = ""):
        super().__init__(title, caption, alt)
        self.columns = [str(name) for name in columns]
        if not rows or any(len(row) != len(self.columns) for row in rows):
            raise ValueError(f"SortableTable: {len(self.columns)} columns and rows of {[len(r) for r in rows]} cells")
        if colours is not None and len(colours) != len(rows):
            raise ValueError(f"SortableTable: {len(colours)} colours for {len(rows)} rows")
        if sort is not None and sort not in self.columns:
            raise ValueError(f"SortableTable: sort={sort!r} is no column; columns: {', '.join(self.columns)}")
        self.cells = [[_cell(cell) for cell in row] for row in rows]
        hues = [None] * len(rows) if colours is None else [None if c is None else on_page(c) for c in colours]
        key = "st" + uuid.uuid4().hex[:10]
        heads = "".join(f'<th scope="col" aria-sort="none"><button type="button">{escape(name)}</button></th>'
                        for name in self.columns)
        lines = "".join(_row(cells, hue) for cells, hue in zip(self.cells, hues))
        start = -1 if sort is None else self.columns.index(sort)
        self.body = (f'<style>{_asset("sortable.css")}</style><div class="sv-scroll" tabindex="0"><table '
                     f'class="sv-sort" id="{key}"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
                     f'<script>({_asset("sortable.js")})(document.getElementById("{key}"),{_json(start)});</script>')

    @property
    def png(self) -> bytes:
        """The order given, drawn by matplotlib."""
        from .plots import new_axes

        figure, axes = new_axes(size=(1.3 * len(self.columns), 0.32 * (len(self.cells) + 1)))
        axes.axis("off")
        table = axes.table([[text for _, text, _ in row] for row in self.cells], colLabels=self.columns, loc="center")
        table.auto_set_font_size(False)
        table.set_fontsize(7)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
        return out.getvalue()


def _cell(cell: Any) -> tuple[float | str | None, str, str]:
    """(what it is sorted by, text, small text)."""
    if cell is None:
        return None, "–", ""
    if isinstance(cell, (tuple, list)):
        value, text, *small = cell
        return value, str(text), str(small[0]) if small else ""
    if isinstance(cell, Real):
        return float(cell), f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}", ""
    return str(cell), str(cell), ""


def _row(cells: Sequence[tuple[float | str | None, str, str]], hue: str | None) -> str:
    stripe = "" if hue is None else f' style="--sv-family:{hue}"'
    drawn = "".join("<td" + ("" if value is None else f' data-value="{escape(str(value))}"') + f">{escape(text)}"
                    + (f"<small>{escape(small)}</small>" if small else "") + "</td>" for value, text, small in cells)
    return f"<tr{stripe}>{drawn}</tr>"
