from pathlib import Path

import numpy as np
import pytest
import torch
from scenes_for_tests import draw, noisy, shows

import surveylib
from surveylib.worlds.shapes.data import blur, change_one
from surveylib.worlds.shapes.judge import confusions, judge, passes, scores, verdict
from surveylib.worlds.shapes.prompts import RELATIONS, Group, Spec, realise
from surveylib.worlds.shapes.quality import quality
from surveylib.worlds.shapes.reading import read
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.scenes import CANVAS, Scene, Thing

N = 600
KINDS = ("shape", "colour", "size", "count", "relation", "background", "swap")
CHANGES = {"as drawn": (lambda p: p, 0.995), "blur 1": (lambda p: blur(p, 1.0), 0.97), "noise 0.05": (noisy, 0.97)}
CHECKPOINTS = Path(surveylib.__file__).parent / "worlds/shapes/checkpoints"


@pytest.fixture(scope="module")
def drawn():
    specs, scenes, pictures, rng = draw(N, seed=7)
    changed = {kind: [change_one(spec, rng, kind) for spec in specs] for kind in KINDS}
    return specs, scenes, pictures, changed


def accuracy(readings, scenes, specs):
    """Share of verdicts that agree with the scene's own numbers, and the prompts where they do not."""
    rows = [(verdict(reading, spec).passed == shows(scene, spec), realise(spec))
            for reading, scene, spec in zip(readings, scenes, specs) if spec is not None]
    return np.mean([right for right, _ in rows]), [text for right, text in rows if not right][:5]


def check(pictures, scenes, specs, changed, least):
    readings = [reading for chunk in pictures.split(256) for reading in read(chunk)]
    assert all(shows(scene, spec) for scene, spec in zip(scenes, specs))
    right, wrong = accuracy(readings, scenes, specs)
    assert right >= least, wrong
    for kind in KINDS:
        mismatched = [None if c is None or shows(s, c) else c for s, c in zip(scenes, changed[kind])]
        assert sum(c is not None for c in mismatched) > 50, kind
        right, wrong = accuracy(readings, scenes, mismatched)
        assert right >= least, (kind, wrong)


@pytest.mark.truth
@pytest.mark.parametrize("change", CHANGES)
def test_right_on_matching_prompts_and_on_those_with_one_attribute_changed(drawn, change):
    specs, scenes, pictures, changed = drawn
    alter, least = CHANGES[change]
    check(alter(pictures), scenes, specs, changed, least)


@pytest.mark.truth
@pytest.mark.parametrize("model", ["shapes-sd", "shapes-sd3"])
def test_right_after_the_autoencoder(drawn, model):
    from diffusers import AutoencoderKL

    specs, scenes, pictures, changed = drawn
    vae = AutoencoderKL.from_pretrained(CHECKPOINTS / model / "vae", torch_dtype=torch.float32).eval()
    with torch.no_grad():
        parts = [vae.decode(vae.encode(2 * c - 1).latent_dist.mean).sample for c in pictures.split(100)]
    check((torch.cat(parts) / 2 + 0.5).clamp(0, 1), scenes, specs, changed, 0.97)


def scene(*things, background="white"):
    return render([Scene(tuple(Thing(*t) for t in things), background)])


RED_CIRCLE, BLUE_SQUARE = ("circle", "red", 18, 32, 8), ("square", "blue", 44, 32, 11)
VERDICTS = [
    ("a red circle and a blue square", True, None),
    ("a blue square and a red circle", True, None),
    ("a red circle left of a blue square", True, None),
    ("a blue square left of a red circle", False, "relation"),
    ("a red circle above a blue square", False, "relation"),
    ("a blue circle and a red square", False, "colour 1"),
    ("a large red circle and a blue square", False, "size 1"),
    ("a small red circle and a large blue square", True, None),
    ("a red circle", False, "nothing else"),
    ("two circles and a square", False, "count 1"),
    ("a circle and a square on a white background", True, None),
    ("a circle and a square on black", False, "background"),
    ("a circle and a star", False, "shape 2"),
]


@pytest.mark.parametrize(("text", "passed", "part"), VERDICTS)
def test_verdicts_on_one_picture_and_the_part_that_fails(text, passed, part):
    found, = judge(scene(RED_CIRCLE, BLUE_SQUARE), [text])
    assert found.passed is passed and found.readable
    assert bool(found.reason) is not passed
    assert found.score == pytest.approx(np.mean(list(found.parts.values())))
    assert all(0 <= value <= 1 for value in found.parts.values())
    if part is None:
        assert min(found.parts.values()) > 0.8
    else:
        assert found.parts[part] <= 0.5


def test_a_thing_of_two_colours_passes_only_where_no_colour_is_asked():
    picture = scene(("square", "purple", 32, 32, 11))
    picture[:, :, :, 32:] = scene(("square", "green", 32, 32, 11))[:, :, :, 32:]
    texts = ("a square", "a purple square", "a green square", "a circle")
    assert [passes(picture, text).item() for text in texts] == [True, False, False, False]
    found, = judge(picture, "a purple square")
    assert found.readable and "colour" in found.reason and found.parts["colour 1"] == 0


def test_relation_is_geneval_s_rule():
    centre = ("square", "blue", 30, 30, 7)
    cases = {(10, 30): {"left of"}, (50, 52): {"right of", "below"}, (30, 10): {"above"}, (10, 24): {"left of"}}
    for (x, y), holds in cases.items():
        picture = scene(("circle", "red", x, y, 7), centre)
        assert {r for r in RELATIONS if passes(picture, f"a circle {r} a square").item()} == holds


def test_the_assignment_is_the_best_one():
    picture = scene(("circle", "red", 14, 32, 7), ("circle", "blue", 32, 32, 7), ("star", "red", 50, 32, 8))
    spec = Spec((Group("circle", 2), Group("star", 1, "red")), "left of")
    assert passes(picture, [spec]).item()
    # Both circles are circles: only the assignment that gives each its colour holds.
    two = scene(("circle", "blue", 18, 32, 8), ("circle", "red", 44, 32, 8))
    for first, second in (("red", "blue"), ("blue", "red")):
        assert passes(two, [Spec((Group("circle", 1, first), Group("circle", 1, second)))]).item()
    assert passes(two, [Spec((Group("circle", 1, "red"), Group("circle", 1, "blue")), "right of")]).item()
    assert not passes(two, [Spec((Group("circle", 1, "red"), Group("circle", 1, "blue")), "left of")]).item()


def test_counts_are_exact_and_soft_counts_grow_towards_them():
    places = [(16, 16), (48, 16), (16, 48), (48, 48)]
    pictures = torch.cat([scene(*[("ring", "cyan", x, y, 8) for x, y in places[:n]]) for n in range(5)])
    found = judge(pictures, "three rings")
    assert [v.passed for v in found] == [False, False, False, True, False]
    soft = [v.parts["count 1"] for v in found]
    assert soft[0] < soft[1] < soft[2] < soft[3] == 1 > soft[4]
    assert found[0].readable and found[0].reason == "0 things, 3 asked"


def test_tensors_and_one_prompt_for_all():
    pictures = torch.cat([scene(RED_CIRCLE), scene(BLUE_SQUARE)])
    assert passes(pictures, ["a red circle", "a blue square"]).tolist() == [True, True]
    assert passes(pictures, "a red circle").tolist() == [True, False]
    soft = scores(pictures, "a red circle")
    assert soft.dtype == torch.float32 and soft[0] > 0.95 > 0.6 > soft[1]
    assert passes(torch.zeros(0, 3, 64, 64), []).shape == (0,)


def test_unreadable_pictures_never_pass():
    torch.manual_seed(0)
    found, = judge(torch.rand(1, 3, 64, 64), "a red circle")
    assert not found.passed and not found.readable and found.reason.startswith("unreadable")


def test_a_frame_wider_than_the_window_is_read_as_no_shape():
    picture, frame = torch.full((3, CANVAS, CANVAS), 0.95), torch.zeros(CANVAS, CANVAS, dtype=torch.bool)
    frame[5:-5, 5:-5], frame[9:-9, 9:-9] = True, False
    picture[:, frame] = torch.tensor([0.85, 0.1, 0.1])[:, None]
    [found] = judge(picture[None], ["a red circle"])
    assert not found.passed and "fit no shape" in found.reason
    assert quality(picture[None]).item() == 0


def test_a_verdict_does_not_depend_on_the_batch(drawn):
    specs, _, pictures, changed = drawn
    prompts = [c or s for s, c in zip(specs[:40], changed["colour"][:40])]
    pictures = noisy(pictures[:40])
    together = judge(pictures, prompts)
    order = np.random.default_rng(0).permutation(40)
    shuffled = judge(pictures[torch.from_numpy(order)], [prompts[i] for i in order])
    for i, found in zip(order, shuffled):
        assert found.passed == together[i].passed and found.parts == pytest.approx(together[i].parts, abs=1e-3)
    for i in range(0, 40, 8):
        alone, = judge(pictures[i : i + 1], prompts[i])
        assert alone.passed == together[i].passed and alone.parts == pytest.approx(together[i].parts, abs=1e-3)


def test_prompts_that_do_not_fit_are_refused():
    pictures = scene(RED_CIRCLE)
    with pytest.raises(ValueError, match="2 prompts for 1 pictures"):
        judge(pictures, ["a circle", "a star"])
    with pytest.raises(TypeError, match="a text or a Spec"):
        judge(pictures, [3])
    with pytest.raises(ValueError, match="no shape"):
        judge(pictures, ["a red"])


def test_confusions_count_what_was_misread():
    shown = [Scene((Thing("square", "red", 32, 32, 8),)), Scene((Thing("ring", "red", 32, 32, 8),))]
    drawn = [Scene((Thing("circle", "red", 32, 32, 8),))] * 2
    assert confusions(render(drawn), drawn) == {}
    assert confusions(render([shown[0], shown[0]]), drawn) == {("shape", "circle", "square"): 2}
    with pytest.raises(ValueError, match="one scene a picture"):
        confusions(render(shown), drawn[:1])
