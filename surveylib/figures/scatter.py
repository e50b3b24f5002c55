"""Points whose axes the reader chooses: gain against cost, against distance, against variety."""

import io
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from .colours import on_page, role
from .lines import ticks
from .movable import Figure, _asset, _json

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 66, 30, 16, 50
SHAPES = {"circle": "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0Z", "square": "M-5 -5H5V5H-5Z",
          "diamond": "M0 -7L7 0L0 7L-7 0Z", "triangle": "M0 -6.5L6.5 5H-6.5Z"}


@dataclass(frozen=True)
class Point:
    """One mark. values: number of each axis, None where there is none; intervals: (low, high) by axis.

    role: a role, a family or a colour. shape: "circle", "square", "diamond" or "triangle".
    """

    name: str
    values: Mapping[str, float | None]
    role: str = "base"
    shape: str = "circle"
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class ScatterChooser(Figure):
    """A scatter plot with a choice of both axes.

    points: `Point`s. axes: key -> label, with the unit and what is better. x, y: keys of the axes that stand first.
    log: keys of axes in powers of ten; values that are not positive are then missing.
    Raises ValueError: no points, an unknown key or shape, an axis on which no point has a number.
    """

    def __init__(self, points: Sequence[Point], axes: Mapping[str, str], *, x: str, y: str, log: Sequence[str] = (),
                 title: str = "", caption: str = "", alt: str = ""):
        super().__init__(title, caption, alt)
        if not points:
            raise ValueError("ScatterChooser needs at least one Point")
        for key in (x, y, *log):
            if key not in axes:
                raise ValueError(f"ScatterChooser: {key!r} is no axis; axes: {', '.join(axes)}")
        for point in points:
            if point.shape not in SHAPES:
                raise ValueError(f"ScatterChooser: shape {point.shape!r}: choose one of {', '.join(SHAPES)}")
        self.points, self.axes, self.x, self.y = list(points), dict(axes), x, y
        self.log = frozenset(log)
        scales = {key: self._axis(key) for key in axes}
        frame = {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "floor": HEIGHT - BOTTOM}
        spec = {"axes": scales, "names": [p.name for p in points], "frame": frame}
        box = "sc" + uuid.uuid4().hex[:10]
        floor = HEIGHT - BOTTOM
        line = f'<path fill="none" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}" style="stroke:var(--sv-rule)"/>'
        svg = (f'<svg class="sv-scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.alt)}">'
               f'{line}<g class="sv-ticks"></g>{self._marks(scales[x]["at"], scales[y]["at"])}</svg>')
        self.body = (f'<style>{_asset("scatter.css")}</style><div id="{box}"><div class="sv-axes">'
                     f'{self._select("across", x)}{self._select("up", y)}</div>{svg}'
                     f'<p class="sv-note" aria-live="polite"></p></div>'
                     f'<script>({_asset("scatter.js")})(document.getElementById("{box}"),{_json(spec)});</script>')

    def _number(self, value: float | None, key: str) -> float | None:
        """A value on the axis' scale; None where it cannot stand there."""
        if value is None or not math.isfinite(value) or (key in self.log and value <= 0):
            return None
        return math.log10(value) if key in self.log else float(value)

    def _axis(self, key: str) -> dict:
        """Places between 0 and 1 along one axis: of points, of intervals, of ticks."""
        found = [self._number(p.values.get(key), key) for p in self.points]
        bars = [tuple(self._number(v, key) for v in p.intervals[key]) if key in p.intervals else None
                for p in self.points]
        bars = [None if bar is None or None in bar else bar for bar in bars]
        every = [v for v in found if v is not None] + [v for bar in bars if bar for v in bar]
        if not every:
            raise ValueError(f"ScatterChooser: no point has a number on axis {key!r}")
        low, high = min(every), max(every)
        pad = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
        low, high = low - pad, high + pad

        def place(value: float) -> float:
            return round((value - low) / (high - low), 4)

        if key in self.log:
            marks = [(n, f"{10.0**n:,g}") for n in range(math.ceil(low), math.floor(high) + 1)]
            if len(marks) < 2:
                marks = [(v, f"{10**v:,.3g}") for v in ticks(low, high, 4)]
        else:
            marks = [(v, f"{v:,g}") for v in ticks(low, high, 5)]
        return {"label": self.axes[key], "at": [None if v is None else place(v) for v in found],
                "bars": [bar and [place(v) for v in bar] for bar in bars], "ticks": [[place(v), t] for v, t in marks]}

    def _select(self, name: str, chosen: str) -> str:
        options = "".join(f'<option value="{escape(key)}"{" selected" if key == chosen else ""}>{escape(label)}'
                          "</option>" for key, label in self.axes.items())
        return f'<label><span>{name}</span><select aria-label="axis {name}">{options}</select></label>'

    def _marks(self, across: Sequence[float | None], up: Sequence[float | None]) -> str:
        parts = []
        for n, (point, x, y) in enumerate(zip(self.points, across, up)):
            hue = on_page(point.role)
            hidden = x is None or y is None
            wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
            at = (0, 0) if hidden else (LEFT + x * wide, HEIGHT - BOTTOM - y * high)
            parts.append(f'<g data-point="{n}" transform="translate({at[0]:.1f} {at[1]:.1f})"'
                         f'{" style=display:none" if hidden else ""}><path class="sv-bar" fill="none" '
                         f'style="stroke:{hue};opacity:.45;stroke-width:2"/><path class="sv-lead" fill="none" '
                         f'style="stroke:var(--sv-rule)"/><path d="{SHAPES[point.shape]}" '
                         f'style="fill:{hue}"/><text class="sv-name" x="10" y="4">{escape(point.name)}</text></g>')
        return "".join(parts)

    @property
    def png(self) -> bytes:
        """The first pair of axes, drawn by matplotlib."""
        from .plots import new_axes

        figure, panel = new_axes()
        for point in self.points:
            x, y = point.values.get(self.x), point.values.get(self.y)
            if x is not None and y is not None:
                panel.plot(x, y, "o", color=role(point.role))
                panel.annotate(point.name, (x, y), xytext=(5, 2), textcoords="offset points", fontsize=7)
        if self.x in self.log:
            panel.set_xscale("log")
        if self.y in self.log:
            panel.set_yscale("log")
        panel.set(xlabel=self.axes[self.x], ylabel=self.axes[self.y])
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
        return out.getvalue()
