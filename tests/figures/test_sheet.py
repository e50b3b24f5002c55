"""Contact sheets: size, captions row by row, marks, palette."""

import io

import numpy as np
import pytest
from PIL import Image

from surveylib.figures.sheet import GAP, LINE, NO, YES, palette, sheet


def read(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def test_rows_without_text_take_no_room():
    grey = np.full((4, 4, 3), 0.5)
    plain = read(sheet([grey] * 4, columns=2, size=32))
    texts = read(sheet([grey] * 4, ["a", "b", "", ""], columns=2, size=32))
    assert plain.shape == (2 * 32 + GAP, 2 * 32 + GAP, 4)
    assert texts.shape[0] == plain.shape[0] + LINE
    assert (texts[:LINE, :, 3] > 0).any() and not (plain[32 : 32 + GAP, :, 3] > 0).any()


def test_pictures_stand_in_reading_order():
    reds = [np.broadcast_to(np.array([k / 4, 0.0, 0.0]), (2, 2, 3)) for k in range(5)]
    drawn = read(sheet(reds, columns=3, size=8))
    centres = [drawn[4 + r * (8 + GAP), 4 + c * (8 + GAP), 0] for r, c in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
    assert np.allclose(centres, [0, 64, 128, 191, 255], atol=2)


def test_pass_is_round_and_fail_is_square():
    white = np.ones((2, 2, 3))
    drawn = read(sheet([white, white, white], passed=[True, False, None], columns=3, size=64))
    colours = [{tuple(c) for c in drawn[:, k * (64 + GAP) : k * (64 + GAP) + 64].reshape(-1, 4)} for k in range(3)]
    near = lambda colour, seen: any(np.abs(np.subtract(colour, s)).max() < 12 for s in seen)  # noqa: E731
    assert near(YES, colours[0]) and not near(NO, colours[0])
    assert near(NO, colours[1]) and not near(YES, colours[1])
    assert not near(NO, colours[2]) and not near(YES, colours[2])
    corner = (64 - 4 - 20, 64 - 4 - 20)  # of the mark's box: filled for the square only
    assert np.abs(np.subtract(drawn[corner][:3], 255)).max() < 12
    assert np.abs(np.subtract(drawn[corner[0], corner[1] + 64 + GAP], NO)).max() < 12


def test_palette_keeps_transparency_and_saves_room():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 4), dtype=np.uint8).astype(np.uint8))
    noise.putalpha(Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 32, 1).repeat(64, 0)))
    out = io.BytesIO()
    noise.save(out, format="png")
    light = palette(out.getvalue(), 16)
    assert len(light) < len(out.getvalue()) / 2
    alpha = read(light)[:, :, 3]
    assert (alpha[:, :32] == 0).all() and (alpha[:, 32:] == 255).all()


def test_counts_must_fit():
    with pytest.raises(ValueError, match="2 captions for 1 pictures"):
        sheet([np.ones((2, 2, 3))], ["a", "b"])
    with pytest.raises(ValueError, match="no picture"):
        sheet([])
