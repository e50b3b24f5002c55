import math

import numpy as np
import pytest
import torch
from scenes_for_tests import draw, noisy, pale

from surveylib.worlds.shapes.data import blur
from surveylib.worlds.shapes.fitting import limbs, moments
from surveylib.worlds.shapes.reading import differences, read
from surveylib.worlds.shapes.render import DISTANCES, coverage, render
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


def _drawn(distance, colour, picture=None):
    """A signed distance field painted as the renderer paints; colour (3,) or (3, 64, 64)."""
    picture = torch.ones(3, 64, 64) if picture is None else picture
    cover, colour = (0.5 - distance).clamp(0, 1), torch.as_tensor(colour).reshape(3, -1)
    colour = colour.reshape(3, 64, 64) if colour.shape[1] > 1 else colour[:, :, None]
    return cover * colour + (1 - cover) * picture


def test_touching_things_of_two_colours_are_two():
    scene = Scene((Thing("square", "red", 22, 32, 10), Thing("circle", "blue", 41.5, 32, 10)))
    assert differences(read(render([scene]))[0], scene) == []


UNREADABLE = ("no shape", "near tie", "merged", "no colour", "coloured background", "crowd", "restless")


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_pictures_say_why(kind):
    y, x = _grid()
    picture = torch.ones(3, 64, 64)
    disc = (x - 32).square() + (y - 32).square() < 100
    if kind == "no shape":
        _paint(picture, ((x - 32).abs() < 13) & ((y - 32).abs() < 4), COLOURS["green"])
        message = "fit no shape"
    elif kind == "near tie":  # half-way between a circle and a cross
        edge = 9 * (1 + 0.15 * torch.cos(4 * torch.atan2(y - 32, x - 32)))
        picture = _drawn(torch.hypot(x - 32, y - 32) - edge, COLOURS["orange"])
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


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_of_two_hues_keeps_its_shape_and_has_no_colour(shape):
    y, x = _grid()
    first, second = (torch.tensor(COLOURS[name])[:, None, None] for name in ("purple", "green"))
    hues = torch.where(x < 32, first, second)
    reading, = read(_drawn(DISTANCES[shape](x - 32, y - 32, torch.tensor(10.0)), hues)[None])
    assert reading.readable and [(t.shape, t.colour) for t in reading.things] == [(shape, None)]
    assert not reading.things[0].is_called("purple") and not reading.things[0].is_called("green")


def test_a_strong_thing_does_not_hide_a_pale_one():
    y, x = _grid()
    strong = render([Scene((Thing("ring", "yellow", 20, 32, 11),))])[0]
    for share in (0.25, 0.35, 0.6):
        pale = share * torch.tensor(COLOURS["green"]) + 1 - share
        picture = _drawn(DISTANCES["square"](x - 46, y - 32, torch.tensor(8.0)), pale, strong)
        found = {(t.shape, t.colour) for t in read(picture[None])[0].things}
        assert found == {("ring", "yellow"), ("square", "green")}, share


def test_a_tilted_star_is_still_a_star():
    y, x = _grid()
    for angle in np.deg2rad([-14.0, -8.0, 8.0, 14.0]):
        across = np.cos(angle) * (x - 32) + np.sin(angle) * (y - 32)
        down = np.cos(angle) * (y - 32) - np.sin(angle) * (x - 32)
        reading, = read(_drawn(DISTANCES["star"](across, down, torch.tensor(10.0)), COLOURS["blue"])[None])
        assert reading.readable and [t.shape for t in reading.things] == ["star"], angle


def test_limbs_are_five_for_a_star_and_four_for_a_cross():
    middle = torch.tensor([32.0])
    found = {shape: limbs(coverage(shape, middle, middle, torch.tensor([11.0])))[0].tolist() for shape in SHAPES}
    assert found["star"][1] > 0.45 and found["star"][0] < 0.05
    assert found["cross"][0] > 0.45 and found["cross"][1] < 0.05
    assert max(found["circle"] + found["ring"]) < 0.02


def test_a_rounded_square_is_no_circle():
    y, x = _grid()
    names = []
    for power in (2.0, 2.5, 3.4, 4.0, 6.0):  # 3.4 is nearer to the circle by area, but has flat sides
        edge = ((x - 32).abs() ** power + (y - 32).abs() ** power) ** (1 / power) - 9.0
        names.append(read(_drawn(edge, COLOURS["blue"])[None])[0].things[0].shape)
    assert names == ["circle", "circle", "square", "square", "square"]


def test_a_hue_between_two_goes_by_both_names_and_by_no_third():
    names = list(COLOURS)
    y, x = _grid()
    disc = torch.hypot(x - 32, y - 32) - 9
    for first, second in (("blue", "purple"), ("orange", "yellow"), ("cyan", "blue")):
        a, b = (torch.tensor(COLOURS[name]) for name in (first, second))
        unit = [hue / hue.norm() for hue in (a - a.mean(), b - b.mean())]
        for share, both in ((0.0, False), (0.3, False), (0.5, True), (0.7, False), (1.0, False)):
            hue = (1 - share) * unit[0] + share * unit[1]
            thing, = read(_drawn(disc, (0.55 + 0.45 * hue / hue.abs().max()).clamp(0, 1))[None])[0].things
            called = {name for name in names if thing.is_called(name)}
            assert called == ({first, second} if both else {first if share < 0.5 else second}), (first, second, share)
            assert max(thing.colour_scores, key=thing.colour_scores.get) == thing.colour


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
