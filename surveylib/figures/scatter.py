"""Points whose axes the reader chooses: gain against cost, against distance, against variety."""

import io
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from .colours import role
from .lines import ticks
from .movable import Figure, _json

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 66, 30, 16, 50
SHAPES = {"circle": "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0Z", "square": "M-5 -5H5V5H-5Z",
          "diamond": "M0 -7L7 0L0 7L-7 0Z", "triangle": "M0 -6.5L6.5 5H-6.5Z"}

_SCRIPT = """((box, spec) => {
  const [across, up] = box.querySelectorAll("select"), marks = [...box.querySelectorAll("[data-point]")];
  const make = (tag, more, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const name in more) made.setAttribute(name, more[name]);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const {left, right, top, floor} = spec.frame, X = v => left + v * (right - left), Y = v => floor - v * (floor - top);
  const draw = () => {
    const x = spec.axes[across.value], y = spec.axes[up.value], grid = box.querySelector(".sv-ticks");
    grid.replaceChildren();
    x.ticks.forEach(([v, text]) => grid.append(make("path", {d: `M${X(v)} ${floor}v5`, style: "stroke:var(--sv-rule)"}),
      make("text", {x: X(v), y: floor + 19, "text-anchor": "middle"}, text)));
    y.ticks.forEach(([v, text]) => grid.append(make("path", {d: `M${left} ${Y(v)}h-5`, style: "stroke:var(--sv-rule)"}),
      make("text", {x: left - 8, y: Y(v) + 4, "text-anchor": "end"}, text)));
    grid.append(make("text", {x: (left + right) / 2, y: floor + 42, "text-anchor": "middle"}, x.label),
      make("text", {transform: `translate(16 ${(top + floor) / 2}) rotate(-90)`, "text-anchor": "middle"}, y.label));
    const seen = [];
    let missing = [];
    marks.forEach((mark, k) => {
      const px = x.at[k], py = y.at[k], there = px !== null && py !== null;
      mark.style.display = there ? "" : "none";
      if (!there) return missing.push(spec.names[k]);
      mark.setAttribute("transform", `translate(${X(px)} ${Y(py)})`);
      const bar = mark.querySelector(".sv-bar");
      if (bar) bar.setAttribute("d", y.bars[k] ? `M0 ${Y(y.bars[k][0]) - Y(py)}V${Y(y.bars[k][1]) - Y(py)}` : "");
      seen.push({k, x: X(px), y: Y(py), w: 7.2 * spec.names[k].length + 10});
    });
    seen.sort((a, b) => a.y - b.y);  // names go where nothing stands yet: right or left of the mark, then lower
    const taken = seen.map(p => [p.x - 6, p.y - 6, p.x + 6, p.y + 6]);
    seen.forEach(p => {
      const name = marks[p.k].querySelector("text");
      let best = null;
      for (const dy of [0, 13, -13, 26, -26, 39, -39]) for (const side of [1, -1]) {
        const x0 = side > 0 ? p.x + 9 : p.x - 9 - p.w, y0 = p.y + dy - 7;
        const rect = [x0, y0, x0 + p.w, y0 + 13];
        const out = x0 < left - 60 || x0 + p.w > right + 28 ? 500 : 0;
        const hits = taken.reduce((n, r) => n + Math.max(0, Math.min(rect[2], r[2]) - Math.max(rect[0], r[0]))
          * Math.max(0, Math.min(rect[3], r[3]) - Math.max(rect[1], r[1])), 0);
        const price = out + hits + Math.abs(dy) / 4 + (side < 0 ? 1 : 0);
        if (best === null || price < best.price) best = {price, rect, dy, side};
      }
      taken.push(best.rect);
      name.setAttribute("x", best.side * 10);
      name.setAttribute("y", best.dy + 4);
      name.setAttribute("text-anchor", best.side > 0 ? "start" : "end");
    });
    box.querySelector(".sv-note").textContent = missing.length ? "Has no such number: " + missing.join(", ") + "." : "";
  };
  [across, up].forEach(choice => choice.addEventListener("change", draw));
  draw();
})"""

_STYLE = """<style>
.sv-fig .sv-axes{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin:.2rem 0 .4rem}
.sv-fig .sv-axes label{display:flex;gap:.4rem;align-items:center}
.sv-fig .sv-axes select{font:inherit;color:inherit;background:transparent;border:1px solid var(--sv-rule);border-radius:.4rem;min-height:2rem;max-width:16rem}
.sv-fig .sv-axes option{color:#1c2126;background:#fff}
@media print{.sv-fig .sv-axes{display:none}}
</style>"""


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
    Raises ValueError: no points, an unknown key or shape, an axis without two different numbers.
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
        self.body = (f'{_STYLE}<div id="{box}"><div class="sv-axes">{self._select("across", x)}{self._select("up", y)}'
                     f'</div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.alt)}">'
                     f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" style="stroke:var(--sv-rule)" '
                     f'fill="none"/><g class="sv-ticks"></g>{self._marks(scales[x]["at"], scales[y]["at"])}</svg>'
                     f'<p class="sv-note" aria-live="polite"></p></div>'
                     f'<script>{_SCRIPT}(document.getElementById("{box}"),{_json(spec)});</script>')

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
        low, high = (min(every), max(every)) if every else (0.0, 0.0)
        if low == high:
            raise ValueError(f"ScatterChooser: axis {key!r} needs two different numbers")
        pad = 0.06 * (high - low)
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
        options = "".join(f'<option value="{escape(key)}"{" selected" if key == chosen else ""}>{escape(label)}</option>'
                          for key, label in self.axes.items())
        return f'<label><span>{name}</span><select aria-label="axis {name}">{options}</select></label>'

    def _marks(self, across: Sequence[float | None], up: Sequence[float | None]) -> str:
        parts = []
        for n, (point, x, y) in enumerate(zip(self.points, across, up)):
            hue = f"var(--sv-{point.role})" if point.role in ("base", "aligned") else role(point.role)
            hidden = x is None or y is None
            at = (0, 0) if hidden else (LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM))
            parts.append(f'<g data-point="{n}" transform="translate({at[0]:.1f} {at[1]:.1f})"'
                         f'{" style=display:none" if hidden else ""}><path class="sv-bar" fill="none" '
                         f'style="stroke:{hue};opacity:.45;stroke-width:2"/><path d="{SHAPES[point.shape]}" '
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
