from itertools import pairwise

import pytest
import torch
from scenes_for_tests import draw, noisy, pale

from surveylib.worlds.shapes.data import blur
from surveylib.worlds.shapes.quality import NAMES, edge_widths, quality, quality_parts
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.scenes import Scene, Thing


@pytest.fixture(scope="module")
def drawn():
    _, scenes, pictures, _ = draw(96, seed=5)
    return scenes, pictures


def moved(scenes, pixels):
    return render([scene.shifted(pixels * 0.8, pixels * 0.6) for scene in scenes])


FLAWS = {
    "sharpness": (lambda scenes, pictures, s: blur(pictures, s), (0.7, 1.2, 1.6, 2.0)),
    "contrast": (lambda scenes, pictures, s: pale(pictures, s), (0.2, 0.4, 0.6, 0.8)),
    "centring": (lambda scenes, pictures, s: moved(scenes, s), (5.0, 8.0, 11.0, 14.0)),
    "clean": (lambda scenes, pictures, s: noisy(pictures, s), (0.02, 0.04, 0.06, 0.1)),
}


def test_renderings_without_flaws_are_good(drawn):
    value = quality(drawn[1])
    assert value.shape == (96,) and value.mean() >= 0.95 and value.min() >= 0.9


@pytest.mark.parametrize("part", FLAWS)
def test_a_flaw_lowers_its_own_part_and_the_quality_with_its_strength(drawn, part):
    scenes, pictures = drawn
    alter, strengths = FLAWS[part]
    found = [quality_parts(alter(scenes, pictures, s)) for s in (strengths)]
    own = [1.0, *(float(getattr(f, part).mean()) for f in found)]
    total = [float(quality(pictures).mean()), *(float(f.overall.mean()) for f in found)]
    assert all(a > b + 0.02 for a, b in pairwise(own)), own
    assert all(a > b for a, b in pairwise(total)), total
    for f in found[:3]:
        others = {name: float(getattr(f, name).mean()) for name in NAMES if name != part}
        assert min(others.values()) > float(getattr(f, part).mean()), others


def test_each_picture_falls_with_blur(drawn):
    levels = torch.stack([quality_parts(blur(drawn[1], s)).sharpness for s in (0.7, 1.1, 1.5)])
    assert (levels.diff(dim=0) < 0).float().mean() > 0.98


@pytest.mark.truth
def test_edge_width_is_the_gaussian_s_sigma():
    line = torch.arange(64) - 31.5
    far = torch.hypot(line[:, None], line[None])
    for sigma in (0.8, 1.6, 2.5):
        for radius in (12, 20):  # the length of the edge does not matter
            disc = torch.special.ndtr((radius - far) / sigma)
            assert float(edge_widths(disc[None])) == pytest.approx(sigma, rel=0.05)


def test_things_cut_by_the_edge_lower_the_centring_of_a_centred_group():
    pair = [Scene((Thing("circle", "red", 9 - out, 32, 9), Thing("circle", "blue", 55 + out, 32, 9))) for out in (0, 6)]
    whole, cut = quality_parts(render(pair)).centring.tolist()
    assert whole > 0.98 and 0.6 < cut < 0.9


def test_a_blank_picture_has_no_quality_but_a_clean_background():
    found = quality_parts(render([Scene((), "black")]))
    assert found.overall.item() == 0 and found.clean.item() == 1


def test_parts_do_not_depend_on_the_batch_and_stay_in_range(drawn):
    pictures = noisy(drawn[1][:12], 0.08)
    together = quality(pictures)
    alone = torch.cat([quality(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    wild = quality(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert (wild >= 0).all() and (wild <= 1).all()
    assert quality(torch.zeros(0, 3, 64, 64)).shape == (0,)


def test_pictures_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="pictures"):
        quality(torch.zeros(1, 3, 32, 32))
