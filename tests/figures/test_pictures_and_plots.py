"""Pictures become PNG, curves get bands and labels, colours keep their meaning."""

import base64
import io
import itertools
import re
from importlib.resources import files

import numpy as np
import pytest
import torch
from matplotlib.collections import Collection
from PIL import Image

from surveylib import figures
from surveylib.figures import colours
from surveylib.figures.plots import _at_night


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("make", [
    lambda a: a, lambda a: torch.tensor(a).permute(2, 0, 1), lambda a: (a * 255).round().astype(np.uint8),
    lambda a: Image.fromarray((a * 255).round().astype(np.uint8)), lambda a: torch.tensor(a, dtype=torch.float16),
])
def test_all_kinds_of_pictures_give_the_same_png(make):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)) / 255
    expected = (picture * 255).round().astype(int)
    assert np.abs(decode(figures.to_png(make(picture))).astype(int) - expected).max() <= 1


def test_values_outside_are_clipped_and_grey_is_spread():
    assert decode(figures.to_png(np.array([[-1.0, 2.0]]))).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("bad, message", [
    (np.zeros((2, 3, 8, 8)), "PictureGrid"), (np.zeros(4), "picture is"), (np.full((2, 2, 3), np.nan), "not finite"),
])
def test_bad_pictures_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        figures.to_png(bad)


def test_tile_keeps_reading_order():
    sheet = figures.tile([np.full((2, 2, 3), v / 3) for v in range(4)], columns=2, gap=0)
    assert sheet[::2, ::2, 0].tolist() == [[0, 85], [170, 255]]
    with pytest.raises(ValueError, match="differ in size"):
        figures.tile([np.zeros((2, 2, 3)), np.zeros((3, 2, 3))], columns=2)


def test_roles_are_distinct_also_in_grey():
    def luminance(colour):
        r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2

    assert len(set(colours.ROLES.values())) == len(colours.ROLES)
    for a, b in itertools.combinations([colours.PROXY, colours.GOLD, colours.EXACT], 2):  # drawn in one plot
        assert abs(luminance(a) - luminance(b)) > 0.08
    known = colours.ROLES | colours.FAMILIES
    assert set(colours.NIGHT) == set(known.values())
    style = files("surveylib.figures").joinpath("figure.css").read_text(encoding="utf-8")
    for name, colour in known.items():
        assert colours.on_page(colour) == colours.on_page(name) == f"var(--sv-{name})"
        night = colours.NIGHT[colour]
        assert (luminance(night) + 0.05) / (luminance("#121212") + 0.05) > 4.5, f"{name} is not seen on a dark page"
        shades = set(re.findall(rf"--sv-{name}:(#\w+)", style))
        assert shades <= {colour, night, "#000", "#fff"} and len(shades) == 2, f"{name}: day and night in figure.css"
    assert colours.on_page("#1b5e20") == "color-mix(in srgb,#1b5e20 var(--sv-keep),#fff)"
    with pytest.raises(ValueError, match=r"proxy.*held-out"):
        colours.role("violet")


def test_curves_draw_mean_and_band():
    runs = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    _, axes = figures.new_axes()
    figures.draw_curves(axes, [0, 1, 2], {"proxy": runs, "exact": [1, 1, 1]}, xlabel="step", ylabel="reward")
    assert axes.lines[0].get_ydata().tolist() == [1, 2, 3] and axes.lines[0].get_color() == colours.PROXY
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == 0 and corners.max() == 4
    assert axes.lines[1].get_linewidth() < axes.lines[0].get_linewidth()
    assert [t.get_text() for t in axes.texts] == ["exact", "proxy"]


def test_labels_do_not_overlap():
    _, axes = figures.new_axes()
    figures.draw_curves(axes, [0, 1], {n: [0, 1 + k / 1000] for k, n in enumerate(("base", "aligned", "proxy"))},
                        xlabel="", ylabel="")
    low, high = axes.get_ylim()
    heights = sorted((t.xy[1] - low) / (high - low) for t in axes.texts)
    assert min(np.diff(heights)) > 0.05 and heights[-1] <= 1.001


def test_curves_name_bad_input():
    with pytest.raises(ValueError, match="2 values at 3 positions"):
        figures.curves([0, 1, 2], {"base": [1, 2]}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="std"):
        figures.curves([0, 1], {"base": [1, 2]}, xlabel="x", ylabel="y", band="95%")


def test_plot_is_drawn_for_light_and_dark_and_leaves_the_figure_alone():
    figure, axes = figures.new_axes()
    axes.plot([0, 1], color=colours.EXACT)
    plot = figures.Plot(figure, alt="a line")
    assert plot.body.count("<img") == 2 and axes.lines[0].get_color() == colours.EXACT
    bundle = plot._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}


def sizes(plot) -> list[tuple[int, int]]:
    """Of the four drawings of a plot: narrow and wide by day, then by night."""
    found = re.findall(r'"data:image/png;base64,([^"]+)"', plot.body)
    return [Image.open(io.BytesIO(base64.b64decode(address))).size for address in found]


@pytest.mark.parametrize(("rows", "columns", "below"), [(1, 2, 2), (1, 4, 4), (2, 3, 3)])
def test_panels_stand_below_each_other_on_a_phone(rows, columns, below):
    figure, panels = figures.new_axes(rows, columns)
    for axes in panels.flat:
        axes.plot([0, 1])
    drawn = sizes(figures.Plot(figure, alt="panels"))
    assert len(drawn) == 4 and drawn[:2] == drawn[2:]
    (narrow, tall), (wide, _) = drawn[:2]
    inch = 110
    assert narrow < 4.5 * inch < 8 * inch < wide  # on a screen of 360 pixels text of 9 points stays above 8
    assert tall > narrow * 0.6 * (below if columns != 3 else below / 2)
    assert figure.get_size_inches()[0] > 8, "the caller's figure keeps its size"


def test_a_legend_is_read_on_a_dark_page():
    figure, axes = figures.new_axes()
    axes.plot([0, 1], color="black", label="truth")
    axes.annotate("here", (0, 0), color="#5b646c")
    bars = axes.errorbar([0], [1], [1], color="black", marker="o", mfc="none", mec=colours.PROXY, label="bars")
    axes.legend()
    _at_night(figure)
    assert (bars.lines[2][0].get_edgecolor() == 1).all(), "error bars"
    assert all((marks.get_edgecolor() == 1).all() for marks in axes.get_legend().findobj(Collection))
    assert bars.lines[0].get_markeredgecolor() == colours.NIGHT[colours.PROXY]
    assert bars.lines[0].get_markerfacecolor() == "none"
    legend = axes.get_legend()
    assert legend.get_lines()[0].get_color() == axes.lines[0].get_color() == "#ffffff"
    assert legend.get_frame().get_alpha() == 0 and axes.texts[0].get_color() == "#a4afba"
