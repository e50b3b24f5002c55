import numpy as np
import pytest
import torch

from surveylib.worlds.shapes import data
from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, is_held_out, parse, sample_spec
from surveylib.worlds.shapes.scenes import UNSEEN_PAIRS, Scene, Thing

N = 2500


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    return [data.example(rng) for _ in range(N)]


def test_flaws_come_at_the_documented_rates(examples):
    for flaw, rate in data.FLAWS.items():
        share = np.mean([flaw in e.flaws for e in examples])
        # A caption flaw that would name a held-out tuple or has nothing to drop does not happen: up to a third fewer.
        low = rate * (0.6 if "caption" in flaw else 1.0) - 4 * (rate / N) ** 0.5
        assert low < share < rate + 4 * (rate / N) ** 0.5, flaw


def test_no_held_out_tuple_and_no_unseen_pair_is_ever_shown_or_said(examples):
    for e in examples:
        said = parse(e.caption)
        for spec in (e.spec, said):
            assert not is_held_out(spec) and not spec.unseen_pair
        assert not {(t.colour, t.shape) for t in e.scene.things} & set(UNSEEN_PAIRS)


def test_captions_are_true_unless_flawed(examples):
    for e in examples:
        if not {"wrong caption", "incomplete caption"} & set(e.flaws):
            assert parse(e.caption).key == e.spec.key
        else:
            assert parse(e.caption).key != e.spec.key


def test_off_centre_examples_are_moved_and_the_others_lie_inside(examples):
    for e in examples:
        inside = all(max(abs(t.x - 32), abs(t.y - 32)) + t.r <= 30 for t in e.scene.things)
        assert inside or "off-centre" in e.flaws
        low = min(t.x - t.r for t in e.scene.things), min(t.y - t.r for t in e.scene.things)
        high = max(t.x + t.r for t in e.scene.things), max(t.y + t.r for t in e.scene.things)
        offset = np.hypot(*((a + b) / 2 - 32 for a, b in zip(low, high)))
        assert (offset > 4) == ("off-centre" in e.flaws)


KINDS = ("shape", "colour", "size", "count", "relation", "background", "swap")


@pytest.mark.parametrize("kind", KINDS)
def test_change_one_changes_that_and_nothing_else(kind):
    rng = np.random.default_rng(5)
    seen = 0
    for i in range(400):
        spec = sample_spec([*ALL_CATEGORIES, None][i % 8], rng)
        changed = data.change_one(spec, rng, kind)
        if changed is None:
            continue
        seen += 1
        assert changed != spec
        pairs = list(zip(spec.groups, changed.groups))
        names = {n for a, b in pairs for n in ("shape", "count", "colour", "size") if getattr(a, n) != getattr(b, n)}
        names |= {n for n in ("relation", "background") if getattr(spec, n) != getattr(changed, n)}
        assert names == {"colour" if kind == "swap" else kind}
        moved = sum(a != b for a, b in pairs)
        assert moved == {"swap": 2, "relation": 0, "background": 0}.get(kind, 1)
    assert seen > 20


def test_drop_one_says_less():
    rng = np.random.default_rng(6)
    for i in range(300):
        spec = sample_spec([*ALL_CATEGORIES, None][i % 8], rng)
        dropped = data.drop_one(spec, rng)
        if dropped is not None:
            assert dropped != spec and len(dropped.groups) <= len(spec.groups)


def test_blur_keeps_the_mean_and_flat_pictures():
    pictures = torch.rand(2, 3, 64, 64)
    assert data.blur(pictures, 1.5).mean() == pytest.approx(float(pictures.mean()), abs=0.01)
    flat = torch.full((1, 3, 64, 64), 0.4)
    torch.testing.assert_close(data.blur(flat, 2.0), flat)
    point = torch.zeros(1, 1, 64, 64)
    point[..., 32, 32] = 1.0
    spread = data.blur(point, 1.5)[0, 0]
    place = torch.arange(64) - 32.0
    assert float((spread.sum(0) * place**2).sum()) ** 0.5 == pytest.approx(1.5, rel=0.02)


def test_pale_and_blurred_pictures_differ_from_the_rendering():
    scene = Scene((Thing("circle", "red", 32, 32, 10),))
    made = [data.Example("a circle", sample_spec("single object", np.random.default_rng(0)), scene, flaws)
            for flaws in ((), ("pale",), ("blurred",))]
    plain, pale, blurred = data.pictures_of(made, np.random.default_rng(0))
    chroma = lambda p: (p - p.mean(0)).norm(dim=0).max()  # noqa: E731
    assert 0.3 < chroma(pale) / chroma(plain) < 0.6
    assert chroma(blurred) > 0.9 * chroma(plain) and (blurred - plain).abs().max() > 0.1


def test_the_stream_is_a_function_of_its_seed():
    first, captions = next(data.stream(8, seed=3))
    again, same = next(data.stream(8, seed=3))
    other, _ = next(data.stream(8, seed=4))
    assert first.shape == (8, 3, 64, 64) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1
    assert captions == same and torch.equal(first, again) and not torch.equal(first, other)
