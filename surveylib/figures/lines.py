"""Curves under a slider, drawn as SVG: exact densities, tilts, accuracy against noise."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from .colours import on_page, role
from .movable import Figure, _labels, _range, as_rows

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 700, 380, 62, 14, 46
RIGHT, LETTER = (110, 200), 7.6  # least and largest room for the names; mean width of a letter of theirs


@dataclass(frozen=True)
class Curve:
    """One curve: ``y`` is (N,) if it stands still, (positions, N) if it moves with the slider.

    role: a name of `surveylib.figures.colours.ROLES` or a colour. fill: shade down to zero. dash: dashed line.
    The exact optimum is drawn thin. x: own positions, else those of the figure.
    """

    label: str
    y: Any
    role: str = "base"
    fill: bool = False
    dash: bool = False
    x: Any = None


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between low and high."""
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * min((m for m in (1, 2, 2.5, 5, 10) if m * power >= raw), default=10)
    first = np.ceil(low / step - 1e-9)
    return [float(round(k * step, 10)) + 0.0 for k in np.arange(first, np.floor(high / step + 1e-9) + 1)]


def inside(x: np.ndarray, y: np.ndarray, low: float, high: float) -> list[list[tuple[float, float]]]:
    """The pieces of the curve (x, y) with low <= y <= high, cut where it leaves; it breaks where y is not finite."""
    if np.isfinite(y).all() and low <= y.min() and y.max() <= high:
        return [list(zip(x, y, strict=True))]
    pieces: list[list[tuple[float, float]]] = [[]]
    for x0, y0, x1, y1 in zip(x[:-1], y[:-1], x[1:], y[1:], strict=True):
        if not np.isfinite(y0 + y1) or min(y0, y1) > high or max(y0, y1) < low:
            pieces.append([])
            continue
        ends = []
        for at, value, other, over in ((x0, y0, x1, y1), (x1, y1, x0, y0)):
            edge = min(max(value, low), high)
            ends.append((at if edge == value else at + (other - at) * (edge - value) / (over - value), edge))
        if not pieces[-1]:
            pieces[-1].append(ends[0])
        pieces[-1].append(ends[1])
        if ends[1][1] != y1:
            pieces.append([])
    return [piece for piece in pieces if piece]


class LinePlotSlider(Figure):
    """Curves in one plot, some of them moved by a slider: the tilt beta against the exact optimum.

    x: (N,). curves: `Curve`s. slider: (name, labels). notes: a sentence for each position, shown below.
    xlabel, ylabel: with units and, where it applies, "higher is better". ylim: (low, high), else from all positions.
    """

    def __init__(self, x: Any, curves: Sequence[Curve], slider: tuple[str, Sequence[Any]], *, xlabel: str,
                 ylabel: str, title: str = "", caption: str = "", alt: str = "",
                 ylim: tuple[float, float] | None = None, start: int = 0, notes: Sequence[str] | None = None):
        super().__init__(title, caption, alt)
        if not curves:
            raise ValueError("LinePlotSlider needs at least one Curve")
        self.xlabel, self.ylabel, self.curves = xlabel, ylabel, list(curves)
        self.labels = _labels(slider[1], len(slider[1]), "LinePlotSlider")
        self.name, self.positions = slider[0], len(self.labels)
        self.start = range(self.positions)[start]
        self.x = [np.asarray(x if c.x is None else c.x, dtype=float) for c in self.curves]
        self.y = [as_rows(c.y, self.positions) for c in self.curves]
        for c, xs, ys in zip(self.curves, self.x, self.y):
            if xs.shape != ys.shape[1:]:
                raise ValueError(f"curve {c.label!r}: {ys.shape[1]} values at {xs.shape[0]} positions of x")
        longest = max(len(c.label) for c in self.curves)
        self.right = min(max(RIGHT[0], round(LETTER * longest) + 8), RIGHT[1])
        values = np.concatenate([y[np.isfinite(y)] for y in self.y])
        if not values.size:
            raise ValueError("LinePlotSlider: no finite value to draw")
        top = float(values.max())
        low, high = ylim or (min(0.0, float(values.min())), top + 0.06 * abs(top))
        self.ylim = (low, high if high > low else low + 1.0)
        self.xlim = (min(float(v.min()) for v in self.x), max(float(v.max()) for v in self.x))
        if self.xlim[0] == self.xlim[1]:
            raise ValueError("LinePlotSlider: all x are equal")
        if notes is not None:
            notes = _labels(notes, self.positions, "LinePlotSlider, notes")
        self._build(notes)

    def _place(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data to SVG coordinates."""
        (x0, x1), (y0, y1) = self.xlim, self.ylim
        return (LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - self.right),
                HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM))

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        px, py = self._place(*np.asarray(points, dtype=float).T)
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px, py))

    def _line(self, x: np.ndarray, y: np.ndarray) -> str:
        """The curve where it lies in the frame."""
        return "".join(self._path(piece) for piece in inside(x, y, *self.ylim)) or "M0 0"

    def _shade(self, x: np.ndarray, y: np.ndarray) -> str:
        """Between the curve and zero, cut at the frame."""
        rim, floor = np.clip(np.nan_to_num(y), *self.ylim), float(np.clip(0.0, *self.ylim))
        return self._path([*zip(x, rim, strict=True), (x[-1], floor), (x[0], floor)]) + "Z"

    def _build(self, notes: list[str] | None) -> None:
        spec = []
        for curve, xs, ys in zip(self.curves, self.x, self.y):
            d = [self._line(xs, row) for row in ys]
            f = [self._shade(xs, row) for row in ys] if curve.fill else []
            at = [self._name_place(xs, row) for row in ys]
            spec.append({"d": d, "f": f, "at": at})
        self._spread(spec)
        self.spec = {"kind": "lines", "shape": [self.positions], "labels": [self.labels], "curves": spec,
                     **({"notes": notes} if notes else {})}
        note = f'<p class="sv-note" aria-live="polite">{escape(notes[self.start])}</p>' if notes else ""
        drawn = [self._svg_curve(n, c, s["d"][self.start], s["f"][self.start] if s["f"] else "", s["at"][self.start])
                 for n, (c, s) in enumerate(zip(self.curves, spec))]
        self.body = (f'<svg class="sv-lines" viewBox="0 0 {WIDTH} {HEIGHT}" style="--names:{self.right - 6}px" '
                     f'role="img" aria-label="{escape(self.alt)}">'
                     f"{self._axes()}{''.join(drawn)}</svg>{_range(self.name, self.labels, self.start)}{note}")

    def _name_place(self, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Where the direct label goes: right of the curve's last point in the frame, or of its last point."""
        drawn = inside(x, y, *self.ylim)
        last = drawn[-1][-1] if drawn else (x[-1], min(max(np.nan_to_num(y[-1]), self.ylim[0]), self.ylim[1]))
        px, py = self._place(*np.asarray([last], dtype=float).T)
        return round(float(px[0]) + 6, 1), round(float(py[0]) + 4, 1)

    def _spread(self, spec: list[dict[str, Any]]) -> None:
        """Move labels apart that would lie on each other, at every slider position."""
        for k in range(self.positions):
            order = sorted(range(len(spec)), key=lambda n: spec[n]["at"][k][1])
            bottom = HEIGHT - BOTTOM + 4
            ys = [spec[n]["at"][k][1] for n in order]
            for i in range(1, len(ys)):
                ys[i] = max(ys[i], ys[i - 1] + 18)
            excess = max(0.0, ys[-1] - bottom)
            for i in range(len(ys) - 1, -1, -1):
                ys[i] = min(ys[i], (bottom if i == len(ys) - 1 else ys[i + 1] - 18)) if excess else ys[i]
            for n, y in zip(order, ys):
                spec[n]["at"][k] = (spec[n]["at"][k][0], round(y, 1))

    @staticmethod
    def _svg_curve(n: int, curve: Curve, d: str, f: str, at: tuple[float, float]) -> str:
        colour = on_page(curve.role)
        width = 1.4 if curve.role == "exact" else 2.6
        dash = ' stroke-dasharray="7 5"' if curve.dash else ""
        shade = f'<path data-fill="{n}" d="{f}" style="fill:{colour};opacity:.16"/>' if f else ""
        return (f'{shade}<path data-line="{n}" d="{d}" style="fill:none;stroke:{colour};stroke-width:{width}" '
                f'stroke-linejoin="round"{dash}/><text class="sv-name" data-name="{n}" x="{at[0]}" y="{at[1]}" '
                f'style="fill:{colour}">{escape(curve.label)}</text>')

    def _axes(self) -> str:
        right, floor = WIDTH - self.right, HEIGHT - BOTTOM
        rule = "style=\"stroke:var(--sv-rule)\""
        parts = [f'<path d="M{LEFT} {TOP}V{floor}H{right}" {rule} fill="none"/>']
        for value in ticks(*self.xlim):
            x = self._place(np.array([value]), np.zeros(1))[0][0]
            parts.append(f'<path d="M{x:.1f} {floor}v5" {rule}/><text x="{x:.1f}" y="{floor + 19}" '
                         f'text-anchor="middle">{value:g}</text>')
        for value in ticks(*self.ylim, wanted=4):
            y = self._place(np.zeros(1), np.array([value]))[1][0]
            parts.append(f'<path d="M{LEFT} {y:.1f}h-5" {rule}/><text x="{LEFT - 8}" y="{y + 4:.1f}" '
                         f'text-anchor="end">{value:g}</text>')
        middle = (LEFT + right) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(self.xlabel)}</text>')
        parts.append(f'<text transform="translate(15 {(TOP + floor) / 2}) rotate(-90)" text-anchor="middle">'
                     f"{escape(self.ylabel)}</text>")
        return "".join(parts)

    @property
    def png(self) -> bytes:
        """The starting position, drawn by matplotlib."""
        from .plots import new_axes

        figure, axes = new_axes()
        for curve, xs, ys in zip(self.curves, self.x, self.y):
            row = ys[self.start]
            axes.plot(xs, row, color=role(curve.role), lw=1 if curve.role == "exact" else 2,
                      ls="--" if curve.dash else "-")
            axes.annotate(curve.label, (xs[-1], row[-1]), xytext=(4, 0), textcoords="offset points",
                          color=role(curve.role), va="center")
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel, xlim=self.xlim, ylim=self.ylim,
                 title=f"{self.name} {self.labels[self.start]}")
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
        return out.getvalue()
