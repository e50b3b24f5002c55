"""The scripted reward on drawn scenes: right on white, blind on dark, and how it counts."""

import numpy as np
import pytest
import torch

from surveylib.rewards import load_reward
from surveylib.rewards.count_and_colour import agreement, blobs
from surveylib.worlds.shapes.judge import judge
from surveylib.worlds.shapes.prompts import parse, realise, sample_spec
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.scenes import COLOURS, SHAPES, Scene, Thing

CENTRES = [(16.0, 16.0), (48.0, 16.0), (16.0, 48.0), (48.0, 48.0)]


def scene(*things, background="white"):
    placed = (Thing(shape, colour, *centre, 9.0) for (shape, colour), centre in zip(things, CENTRES))
    return Scene(tuple(placed), background)


@pytest.mark.truth
def test_every_shape_in_every_colour_on_white_is_one_thing_of_that_colour():
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    pictures = render([scene(pair) for pair in pairs]).permute(0, 2, 3, 1).numpy()
    assert [blobs(picture) for picture in pictures] == [[colour] for _, colour in pairs]


@pytest.mark.truth
def test_a_right_picture_scores_one_on_white_and_less_on_a_background_that_the_script_takes_for_a_thing():
    reward, prompt = load_reward("count_and_colour"), "two red circles and a blue star"
    things = [("circle", "red"), ("circle", "red"), ("star", "blue")]
    pictures = render([scene(*things, background=name) for name in ("white", "grey", "black")])
    assert all(verdict.passed for verdict in judge(pictures, prompt))
    white, grey, black = reward(pictures, [prompt] * 3).tolist()
    assert white == 1
    # One thing for three asked is a third of the count; its mean colour is none of those asked for, or one of three.
    for dark in (grey, black):
        assert min(abs(dark - 1 / 6), abs(dark - 1 / 3)) < 1e-6


@pytest.mark.parametrize("found, prompt, expected", [
    (["red", "red"], "two red circles", 1.0),
    (["red"], "two red circles", (1 / 2 + 1 / 2) / 2),
    (["red", "red", "red"], "two red circles", (1 / 2 + 1) / 2),  # one too many; all colours asked for are there
    (["blue", "red"], "a red circle and a blue star", 1.0),
    (["red", "green"], "a red circle and a blue star", (1 + 1 / 2) / 2),
    ([], "a red circle", 0.0),
    (["green"] * 4, "a circle", 0.0),
    (["green", "red"], "two circles", 1.0),  # no colour asked for: the count alone
    (["green", "red", "red"], "two circles", 0.5),
])
def test_marks_by_hand(found, prompt, expected):
    assert agreement(found, parse(prompt)) == pytest.approx(expected)


def test_it_cannot_tell_shapes_apart_where_the_judge_can():
    picture = render([scene(("square", "red"))])
    assert load_reward("count_and_colour")(picture, ["a red circle"]).item() == 1
    assert not judge(picture, "a red circle")[0].passed


def test_specks_do_not_count_and_prompts_outside_the_grammar_are_refused():
    picture = torch.ones(1, 3, 64, 64)
    picture[:, :, 5:8, 5:8] = 0
    assert blobs(picture[0].permute(1, 2, 0).numpy()) == []
    with pytest.raises(ValueError, match="no shape"), pytest.warns(UserWarning, match="outside the Shapes grammar"):
        load_reward("count_and_colour")(picture, ["the sea at dusk"])


def test_it_reads_what_the_grammar_can_say():
    rng = np.random.default_rng(0)
    prompts = [realise(sample_spec(None, rng), rng) for _ in range(20)]
    scores = load_reward("count_and_colour")(torch.rand(20, 3, 64, 64), prompts)
    assert scores.shape == (20,) and (scores >= 0).all() and (scores <= 1).all()
