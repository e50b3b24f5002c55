"""Rich feedback marks the planted error and nothing else."""

from dataclasses import replace

import pytest
import torch
from scenes_for_tests import draw, noisy

from surveylib.worlds.shapes.annotators import AI, Annotator
from surveylib.worlds.shapes.answers import AnswerSheet, Shown
from surveylib.worlds.shapes.data import blur
from surveylib.worlds.shapes.looks import look
from surveylib.worlds.shapes.marks import artifact_maps, faults, marks, misaligned_words, word_parts
from surveylib.worlds.shapes.prompts import realise
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.scenes import Scene, Thing

A, B = Thing("circle", "red", 18, 20, 8.0), Thing("square", "blue", 44, 44, 8.0)
PROMPT = "a small red circle to the left of a blue square on a white background"


def box_of(thing):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    left, top, right, bottom = (round(v) for v in (thing.x - thing.r, thing.y - thing.r, thing.x + thing.r,
                                                   thing.y + thing.r))
    mask[top:bottom, left:right] = True
    return mask


def rich(scene, prompt, person):
    return AnswerSheet(person, Shown(look(render([scene]), prompt))).rich(0)


CAREFUL = Annotator("careful", temperature=0.0)
PLANTED = {  # name: (scene, words at fault, things at fault)
    "nothing": (Scene((A, B)), [], []),
    "colour": (Scene((A, replace(B, colour="green"))), ["blue"], [B]),
    "shape": (Scene((replace(A, shape="star"), B)), ["circle"], [A]),
    "size": (Scene((replace(A, r=12.0), B)), ["small"], [replace(A, r=12.0)]),
    "relation": (Scene((replace(A, x=46), replace(B, x=18))), ["left"], [replace(A, x=46), replace(B, x=18)]),
    "extra": (Scene((A, B, Thing("ring", "pink", 18, 50, 8.0))), [], [Thing("ring", "pink", 18, 50, 8.0)]),
    "missing": (Scene((A,)), ["left", "blue", "square"], [A]),
    "background": (Scene((A, B), "black"), ["white"], "background"),
}


@pytest.mark.truth
@pytest.mark.parametrize("name", PLANTED)
def test_one_planted_error_is_marked_and_no_other(name):
    scene, words, things = PLANTED[name]
    record = rich(scene, PROMPT, CAREFUL)
    assert [w for w, flag in zip(PROMPT.split(), record.misaligned) if flag] == words
    heat = torch.tensor(record.heatmaps["misalignment"])
    outside = torch.ones(64, 64, dtype=torch.bool)
    for thing in scene.things if things == "background" else things:
        near = torch.nn.functional.max_pool2d(box_of(thing)[None, None].float(), 5, 1, 2)[0, 0].bool()
        if things != "background":
            assert heat[box_of(thing)].mean() > 0.9
        outside &= ~near
    if things == "background":
        assert (heat[outside] == 1).all() and not heat[box_of(A)].any() and not heat[box_of(B)].any()
    else:
        assert not heat[outside].any()
    assert not record.heatmaps["artifact"].any()


def test_counts_are_marked_by_people_and_overlooked_by_the_ai():
    scene = Scene(tuple(Thing("star", "green", x, 32, 7.0) for x in (14, 32, 50)))
    record = rich(scene, "two green stars", CAREFUL)
    assert record.misaligned == (True, False, False) and record.heatmaps["misalignment"].any()
    ai = rich(scene, "two green stars", replace(AI, overlooks=0.0))
    assert not any(ai.misaligned) and not ai.heatmaps["misalignment"].any()


@pytest.mark.truth
def test_faults_are_there_exactly_when_the_judge_fails_a_readable_picture():
    specs, _, pictures, _ = draw(32, seed=9)
    for prompts in (specs, specs[8:] + specs[:8]):
        seen = look(pictures, prompts)
        for (found, heat, _), v in zip(marks(seen), seen.verdicts):
            assert not v.readable or bool(found) == (not v.passed), v.reason
            assert found or not heat.any()


def test_every_wording_of_every_spec_has_its_words_named():
    specs, *_, rng = draw(100, seed=1)
    for spec in specs:
        text = realise(spec, rng)
        parts = [part for part in word_parts(text) if part]
        names = ("shape", "colour", "size")
        asked = {f"{n} {k + 1}" for k, g in enumerate(spec.groups) for n in names if getattr(g, n)}
        asked |= {f"count {k + 1}" for k, g in enumerate(spec.groups) if g.count > 1}
        asked |= ({"relation"} if spec.relation else set()) | ({"background"} if spec.background else set())
        swapped = {part.translate(str.maketrans("12", "21")) for part in asked}  # "and" may change the order
        assert len(parts) == len(set(parts)) and set(parts) in (asked, swapped), text
    assert misaligned_words("a red circle", []) == (False, False, False)


@pytest.mark.truth
def test_artifacts_are_marked_where_they_are():
    picture = render([Scene((A, B))])
    clean, = artifact_maps(picture)
    assert not clean.any()
    hurt = picture.clone()
    hurt[:, :, 32:] = blur(picture, 1.8)[:, :, 32:]  # the lower half, where B stands
    heat, = artifact_maps(hurt)
    assert heat[box_of(B)].min() > 0.5 and not heat[box_of(A)].any()
    dirty = picture.clone()
    dirty[:, :, :16, 44:] = noisy(picture, 0.15)[:, :, :16, 44:]
    heat, = artifact_maps(dirty)
    assert heat[4:12, 48:60].mean() > 0.5 and not heat[:, :40].any() and not heat[24:].any()


def test_overlooking_everything_marks_nothing_and_lazy_answers_too():
    scene = PLANTED["colour"][0]
    for person in (replace(CAREFUL, overlooks=1.0), replace(CAREFUL, lazy=1.0)):
        record = rich(scene, PROMPT, person)
        assert not any(record.misaligned) and not record.heatmaps["misalignment"].any()


def test_faults_name_the_things():
    seen = look(render([Scene((A, replace(B, colour="green")))]), PROMPT)
    (fault,) = faults(seen.readings[0], seen.specs[0])
    assert fault.part == "colour 2" and [seen.readings[0].things[i].colour for i in fault.things] == ["green"]
