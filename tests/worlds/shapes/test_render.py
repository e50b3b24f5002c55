import math

import numpy as np
import pytest
import torch

from surveylib.worlds.shapes.render import coverage, render
from surveylib.worlds.shapes.scenes import BACKGROUNDS, COLOURS, MAX_THINGS, SHAPES, Scene, Thing, place, relation_of

# Areas over r**2 from plane geometry; the star is 5 kites of circumradius q = r/0.951 and inner radius q * rho.
EDGE = math.cos(math.radians(36))
AREAS = {"circle": math.pi, "ring": math.pi * (1 - 0.48**2), "square": 4.0, "triangle": 2.0,
         "cross": 4 * (2 * 0.32 - 0.32**2)}


def one(shape, r, x=32.0, y=32.0):
    return coverage(shape, *(torch.tensor([v]) for v in (x, y, r)))[0]


@pytest.mark.parametrize("shape", AREAS)
def test_area_is_the_plane_figure_s(shape):
    r = 20.0
    assert float(one(shape, r).sum()) / r**2 == pytest.approx(AREAS[shape], rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("r", [7.0, 12.0])
def test_box_of_a_shape_is_centred_with_half_extent_r(shape, r):
    inside = one(shape, r) > 0.02
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    for line in (rows, columns):
        assert float(line[0]) == pytest.approx(32 - r, abs=1.3)
        assert float(line[-1]) + 1 == pytest.approx(32 + r, abs=1.3)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_anti_aliased_and_moves_with_the_centre(shape):
    still, moved = one(shape, 9.3, 30.2, 30.7), one(shape, 9.3, 33.2, 32.7)
    assert ((still > 0.05) & (still < 0.95)).sum() > 10
    torch.testing.assert_close(moved[2:, 3:], still[:-2, :-3], atol=1e-4, rtol=0)


def test_pictures_have_the_palette_s_colours_in_painter_s_order():
    scene = Scene((Thing("square", "red", 32, 32, 12), Thing("square", "blue", 32, 32, 7)), "black")
    picture = render([scene, Scene((), "grey")])
    assert picture.shape == (2, 3, 64, 64) and picture.dtype == torch.float32
    for (y, x), colour in {(32, 32): COLOURS["blue"], (32, 22): COLOURS["red"], (2, 2): BACKGROUNDS["black"]}.items():
        torch.testing.assert_close(picture[0, :, y, x], torch.tensor(colour))
    torch.testing.assert_close(picture[1], torch.tensor(BACKGROUNDS["grey"])[:, None, None].expand(3, 64, 64))


def test_a_picture_does_not_depend_on_its_batch():
    scenes = [Scene((Thing(s, "pink", 20 + i, 30, 8),), "white") for i, s in enumerate(SHAPES)]
    torch.testing.assert_close(render(scenes)[3], render([scenes[3]])[0], atol=1e-6, rtol=0)


def test_bad_input_names_what_is_known():
    with pytest.raises(ValueError, match="known: circle"):
        Thing("hexagon", "red", 1, 1, 5)
    with pytest.raises(ValueError, match="known: red"):
        Thing("circle", "brown", 1, 1, 5)
    with pytest.raises(ValueError, match="half-extent"):
        Thing("circle", "red", 1, 1, 0)
    with pytest.raises(ValueError, match="known: white"):
        Scene((), "blue")
    with pytest.raises(ValueError, match="at most 4"):
        Scene((Thing("circle", "red", 1, 1, 5),) * (MAX_THINGS + 1))
    with pytest.raises(ValueError, match="known: circle"):
        one("hexagon", 5.0)


@pytest.mark.parametrize("side", [None, "left of", "above"])
def test_place_keeps_gaps_margins_and_the_side(side):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(40):
        radii = rng.uniform(6.5, 11, size=2)
        centres = place(radii, rng, side)
        if centres is None:
            continue
        found += 1
        assert np.abs(centres[0] - centres[1]).max() >= radii.sum() + 3 - 1e-9
        assert (centres - radii[:, None] >= 2).all() and (centres + radii[:, None] <= 62).all()
        assert side is None or relation_of(*centres[0], *centres[1]) == side
    assert found > 20
