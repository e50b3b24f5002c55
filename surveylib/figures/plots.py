"""Still plots in the book's look: curves with bands, direct labels, units on the axes."""

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgb, to_rgba, to_rgba_array
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.gridspec import GridSpec

from .colours import NIGHT, role
from .movable import Figure
from .pictures import data_address, to_png

STYLE = {
    "figure.figsize": (6.4, 3.6), "figure.dpi": 110, "figure.facecolor": "white", "savefig.facecolor": "white",
    "axes.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa3ab",
    "axes.labelcolor": "#3c444c", "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 10, "xtick.color": "#5b6570", "ytick.color": "#5b6570", "xtick.labelsize": 9,
    "ytick.labelsize": 9, "lines.linewidth": 2.0, "lines.solid_capstyle": "round", "font.size": 10,
    "legend.frameon": False, "image.interpolation": "nearest",
}
NARROW, LOWEST = 4.2, 0.68  # inches of a figure on a phone; least height of a panel there, of its width


def use() -> None:
    """Give all matplotlib plots of a notebook the book's look."""
    import matplotlib

    matplotlib.rcParams.update(STYLE)


def new_axes(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None) -> tuple[MatplotlibFigure, Any]:
    """A figure and its axes in the book's look; size in inches for all of it. One axes, or an array of them.

    Without a size, panels side by side share a width at which their text is still read on the page.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(STYLE):
        usual = (6.4, 3.6 * rows) if columns == 1 else (8.4, 3.2 * rows)
        figure = MatplotlibFigure(figsize=size or usual, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns)
    return figure, axes


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.055) -> None:
    """Write (x, y, text, colour) at line ends, pushed apart to ``gap`` of the axes' height so that none overlap."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda e: e[1])
    heights = [(e[1] - low) / (high - low) for e in order]
    for n in range(1, len(heights)):
        heights[n] = max(heights[n], heights[n - 1] + gap)
    over = max(0.0, heights[-1] - 1.0) if heights else 0.0
    for (x, _, text, colour), height in zip(order, heights):
        axes.annotate(text, (x, low + (height - over) * (high - low)), xytext=(6, 0), textcoords="offset points",
                      color=colour, va="center", fontweight="bold", annotation_clip=False)


def draw_curves(axes: Axes, x: Any, lines: Mapping[str, Any], *, roles: Mapping[str, str] | None = None,
                xlabel: str, ylabel: str, title: str = "", band: str = "range") -> None:
    """Curves with bands and direct labels on given axes; arguments as in `curves`."""
    if band not in ("range", "std", "none"):
        raise ValueError(f"band is 'range', 'std' or 'none', not {band!r}")
    x, ends = np.asarray(x, dtype=float), []
    for label, values in lines.items():
        runs = np.atleast_2d(np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float))
        if runs.shape[-1] != x.shape[0]:
            raise ValueError(f"curve {label!r}: {runs.shape[-1]} values at {x.shape[0]} positions of x")
        name = (roles or {}).get(label, label)
        colour, mean = role(name), runs.mean(0)
        if len(runs) > 1 and band != "none":
            low, high = ((runs.min(0), runs.max(0)) if band == "range" else
                         (mean - runs.std(0, ddof=1), mean + runs.std(0, ddof=1)))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(x, mean, color=colour, lw=1.0 if name == "exact" else 2.0)
        ends.append((x[-1], mean[-1], label, colour))
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.margins(x=0.02)
    label_ends(axes, ends)


def curves(x: Any, lines: Mapping[str, Any], *, roles: Mapping[str, str] | None = None, xlabel: str, ylabel: str,
           title: str = "", caption: str = "", alt: str = "", band: str = "range") -> "Plot":
    """One plot of curves with bands and direct labels.

    x: (N,). lines: label -> (N,) or (S, N); with S runs the line is their mean and the band their spread: "range"
    (lowest to highest), "std" (one standard deviation) or "none". Say in the caption what the runs are.
    roles: label -> role or colour; a label that is a role's name needs none. For several panels use `draw_curves`.
    """
    figure, axes = new_axes()
    draw_curves(axes, x, lines, roles=roles, xlabel=xlabel, ylabel=ylabel, band=band)
    return Plot(figure, title=title, caption=caption, alt=alt or title or f"{ylabel} against {xlabel}")


def _night_colour(colour: Any) -> str:
    """The colour of a role on a dark page; light grey for anything nearly black, and for dark greys."""
    known, (darkest, *_, brightest) = to_hex(colour), sorted(to_rgb(colour))
    grey = brightest < 0.5 and brightest - darkest < 0.1
    return NIGHT.get(known, "#e6eaee" if np.mean(to_rgb(colour)) < 0.35 else "#a4afba" if grey else known)


def _at_night(figure: MatplotlibFigure) -> None:
    """Recolour text, axes and black lines for a dark page."""
    for axes in figure.axes:
        for spine in axes.spines.values():
            spine.set_edgecolor("#66727d")
        axes.tick_params(colors="#a4afba")
        for text in (axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
            text.set_color(_night_colour(text.get_color()))
        for line in axes.lines:
            line.set_color(_night_colour(line.get_color()))
            for get, put in ((line.get_markeredgecolor, line.set_markeredgecolor),
                             (line.get_markerfacecolor, line.set_markerfacecolor)):
                if to_rgba(get())[3]:
                    put(_night_colour(get()))
        for marks in axes.collections:  # error bars, scatters, bands
            _marks_at_night(marks)
        if legend := axes.get_legend():
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color("#e6eaee")
            for line in legend.get_lines():
                line.set_color(_night_colour(line.get_color()))
            for marks in legend.findobj(Collection):
                _marks_at_night(marks)


def _marks_at_night(marks: Collection) -> None:
    for get, put in ((marks.get_edgecolor, marks.set_edgecolor), (marks.get_facecolor, marks.set_facecolor)):
        put([(*to_rgb(_night_colour(colour)), colour[3]) for colour in to_rgba_array(get())])


def _for_a_phone(figure: MatplotlibFigure) -> None:
    """Make a figure narrow: up to four panels stand below each other, more in two columns."""
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
    old = panels[0].get_subplotspec().get_gridspec()
    (width, height), columns = figure.get_size_inches(), 1 if len(panels) <= 4 else 2
    rows = -(-len(panels) // columns)
    for place, axes in zip(GridSpec(rows, columns, figure=figure), panels, strict=False):
        axes.set_subplotspec(place)
    slope = max(LOWEST, height / old.nrows / (width / old.ncols))
    figure.set_size_inches(NARROW, rows * slope * NARROW / columns)


class Plot(Figure):
    """A matplotlib figure with caption and alternative text, for light and dark pages, for wide ones and phones."""

    def __init__(self, figure: MatplotlibFigure, *, title: str = "", caption: str = "", alt: str = "",
                 width: int = 704):
        super().__init__(title, caption, alt)
        self.png = to_png(figure)
        wide, narrow = self._day_and_night(figure), self._day_and_night(figure, _for_a_phone)
        _forget(figure)
        self.body = "".join(
            f'<picture class="sv-{name}"><source media="(max-width:600px)" srcset="{data_address(narrow[name])}">'
            f'<img src="{data_address(wide[name])}" alt="{escape(self.alt)}" style="width:{width}px"></picture>'
            for name in ("day", "night"))

    @staticmethod
    def _day_and_night(figure: MatplotlibFigure, change: Callable[[MatplotlibFigure], None] | None = None
                       ) -> dict[str, bytes]:
        """PNG bytes of a changed copy for light and for dark pages; the caller's figure keeps colours and size."""
        again = pickle.loads(pickle.dumps(figure))
        if change:
            change(again)
        day = to_png(again, transparent=True)
        _at_night(again)
        _forget(again)
        return {"day": day, "night": to_png(again, transparent=True)}


def _forget(figure: MatplotlibFigure) -> None:
    """Close a figure in pyplot, which else shows it a second time in a notebook."""
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
