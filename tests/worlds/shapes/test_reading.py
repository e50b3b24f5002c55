import math

import numpy as np
import pytest
import torch
from scenes_for_tests import draw, noisy, pale

from surveylib.worlds.shapes.data import blur
from surveylib.worlds.shapes.reading import differences, moments, read
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing

N = 240


@pytest.fixture(scope="module")
def drawn():
    return draw(N, seed=11)


CHANGES = {
    "as drawn": (lambda p: p, 0.995),
    "blur 1": (lambda p: blur(p, 1.0), 0.97),
    "blur 1.5": (lambda p: blur(p, 1.5), 0.95),
    "noise 0.05": (noisy, 0.97),
    "pale": (lambda p: pale(p, 0.65), 0.97),
}


@pytest.mark.parametrize("change", CHANGES)
def test_reads_back_the_scene(drawn, change):
    _, scenes, pictures, _ = drawn
    alter, least = CHANGES[change]
    found = [differences(reading, scene) for reading, scene in zip(read(alter(pictures)), scenes)]
    assert np.mean([not f for f in found]) >= least, [f for f in found if f][:5]


@pytest.mark.parametrize("change", ["as drawn", "blur 1"])
def test_places_and_sizes_are_sub_pixel(drawn, change):
    _, scenes, pictures, _ = drawn
    errors = []
    for reading, scene in zip(read(CHANGES[change][0](pictures)), scenes):
        for thing in scene.things:
            near = min(reading.things, key=lambda s: math.hypot(s.x - thing.x, s.y - thing.y))
            errors.append((near.x - thing.x, near.y - thing.y, near.r - thing.r))
    assert np.quantile(np.abs(errors), 0.95, axis=0).max() < 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_colour_and_background(shape):
    scenes = [Scene((Thing(shape, colour, 30.3, 33.6, r),), background)
              for colour in COLOURS for background in BACKGROUNDS for r in (6.6, 8.0, 10.6, 12.4)]
    for reading, scene in zip(read(render(scenes)), scenes):
        assert differences(reading, scene) == []
        thing, = reading.things
        assert thing.confidence > 0.9 and thing.visible == pytest.approx(1, abs=0.01)


def test_the_moments_are_those_of_plane_geometry():
    assert moments("circle")[0] == pytest.approx(math.pi, rel=5e-3)
    assert moments("triangle") == pytest.approx((2.0, 1 / 3), rel=0.02)
    assert abs(moments("square")[1]) < 1e-4


def test_things_cut_by_the_edge_count_while_nearly_half_shows():
    for shape in SHAPES:
        for out, present in ((0.0, True), (3.0, True), (6.0, True), (19.0, False)):
            scene = Scene((Thing(shape, "red", 11.0 - out, 34.0, 11.0), Thing("circle", "blue", 45, 30, 8)))
            reading, = read(render([scene]))
            if present:
                assert differences(reading, scene) == [], (shape, out)
            else:
                assert not reading.readable or len(reading.things) == 1, (shape, out)


def test_a_blank_picture_is_readable_and_empty():
    for name, reading in zip(BACKGROUNDS, read(render([Scene((), name) for name in BACKGROUNDS]))):
        assert reading.readable and reading.things == () and reading.background == name
    assert read(torch.zeros(0, 3, 64, 64)) == []


def _paint(picture, mask, colour):
    picture[:, mask] = torch.tensor(colour)[:, None]


def _grid():
    line = torch.arange(64) + 0.5
    return torch.meshgrid(line, line, indexing="ij")


def test_touching_things_of_two_colours_are_two():
    scene = Scene((Thing("square", "red", 22, 32, 10), Thing("circle", "blue", 41.5, 32, 10)))
    assert differences(read(render([scene]))[0], scene) == []


UNREADABLE = ("two colours", "no shape", "merged", "no colour", "coloured background", "crowd", "restless")


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_pictures_say_why(kind):
    y, x = _grid()
    picture = torch.ones(3, 64, 64)
    disc = (x - 32).square() + (y - 32).square() < 100
    if kind == "two colours":
        _paint(picture, disc & (x < 32), COLOURS["red"])
        _paint(picture, disc & (x >= 32), COLOURS["blue"])
        message = "no colour of the palette"
    elif kind == "no shape":
        _paint(picture, ((x - 32).abs() < 13) & ((y - 32).abs() < 4), COLOURS["green"])
        message = "fit no shape"
    elif kind == "merged":
        for centre in (22, 38):
            _paint(picture, (x - centre).square() + (y - 32).square() < 100, COLOURS["green"])
        message = "fit no shape"
    elif kind == "no colour":
        _paint(picture, disc, (0.3, 0.3, 0.3))
        message = "without colour"
    elif kind == "coloured background":
        picture[:] = torch.tensor((0.6, 0.8, 1.0))[:, None, None]
        message = "background"
    elif kind == "crowd":
        for row in range(3):
            for column in range(3):
                spot = (x - 12 - 20 * column).square() + (y - 12 - 20 * row).square() < 36
                _paint(picture, spot, COLOURS["red"])
        message = "9 blobs"
    else:
        picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        message = ""
    reading, = read(picture[None])
    assert not reading.readable and message in reading.reason and reading.reason


def test_a_thing_does_not_depend_on_the_batch(drawn):
    _, _, pictures, _ = drawn
    together = read(noisy(pictures[:24]))
    alone = [read(picture[None])[0] for picture in noisy(pictures[:24])]
    backwards = read(noisy(pictures[:24]).flip(0))[::-1]
    for other in (alone, backwards):
        for a, b in zip(together, other):
            assert [(t.shape, t.colour, t.size) for t in a.things] == [(t.shape, t.colour, t.size) for t in b.things]
            for s, t in zip(a.things, b.things):
                assert (s.x, s.y, s.r, s.fit) == pytest.approx((t.x, t.y, t.r, t.fit), abs=1e-3)


@pytest.mark.parametrize(
    "pictures",
    [torch.zeros(3, 64, 64), torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
     torch.full((1, 3, 64, 64), float("nan")), [[0.0]]],
)
def test_pictures_that_do_not_fit_are_refused(pictures):
    with pytest.raises(ValueError, match="pictures"):
        read(pictures)


def test_differences_name_kind_expected_and_found():
    drawn = Scene((Thing("circle", "red", 20, 32, 7), Thing("star", "blue", 44, 32, 11)), "white")
    shown = Scene((Thing("square", "red", 20, 32, 11),), "grey")
    found = {(d.kind, d.expected, d.found) for d in differences(read(render([shown]))[0], drawn)}
    assert found == {("shape", "circle", "square"), ("size", "small", "large"), ("missing", "blue star", None),
                     ("background", "white", "grey")}
