import json
import warnings

import numpy as np
import pytest

from surveylib.diffusion.zoo import CHECKPOINTS, VOCABULARY_FILE
from surveylib.worlds.shapes.pretrain.text import vocabulary_text
from surveylib.worlds.shapes.prompts import (
    ALL_CATEGORIES,
    HELD_OUT_SHARE,
    RELATIONS,
    VOCABULARY,
    Group,
    Spec,
    is_held_out,
    parse,
    realise,
    sample_spec,
    unknown_words,
)


def specs(n, seed=0):
    rng = np.random.default_rng(seed)
    kinds = [*ALL_CATEGORIES, None]
    return [sample_spec(kinds[i % len(kinds)], rng) for i in range(n)], rng


def test_parse_inverts_realise():
    drawn, rng = specs(4000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spec in drawn:
            assert parse(realise(spec)) == spec
            assert parse(realise(spec, rng)).key == spec.key, realise(spec, rng)


def test_parse_keeps_which_group_stands_first_in_a_relation():
    for relation in RELATIONS:
        spec = Spec((Group("star", 1, "red"), Group("circle", 1, "blue")), relation)
        assert parse(realise(spec, np.random.default_rng(1))) == spec


def test_sampled_specs_belong_to_their_category():
    rng = np.random.default_rng(0)
    for category in ALL_CATEGORIES:
        assert {sample_spec(category, rng).category for _ in range(50)} == {category}
    with pytest.raises(ValueError, match="known: single object"):
        sample_spec("texture", rng)


def test_a_fifth_of_the_tuples_is_held_out_whatever_the_wording():
    drawn, rng = specs(6000, seed=3)
    keys = {spec.key: spec for spec in drawn}
    share = np.mean([is_held_out(spec) for spec in keys.values()])
    assert share == pytest.approx(HELD_OUT_SHARE, abs=0.03)
    for spec in list(keys.values())[:300]:
        assert is_held_out(parse(realise(spec, rng))) == is_held_out(spec)


def test_two_groups_and_a_relation_have_one_key_in_both_orders():
    a, b = Group("star", 1, "red"), Group("circle", 1, "blue")
    assert Spec((a, b)).key == Spec((b, a)).key
    assert Spec((a, b), "left of").key == Spec((b, a), "right of").key
    assert Spec((a, b), "left of").key != Spec((b, a), "left of").key


def test_the_list_beside_the_shipped_models_is_the_grammars():
    """The zoo stands below the worlds and reads this file."""
    assert (CHECKPOINTS / VOCABULARY_FILE).read_text() == vocabulary_text(), "write it anew: text.vocabulary_text()"
    assert set(json.loads(vocabulary_text())["words"]) == VOCABULARY


def test_unknown_words_warn_and_are_passed_over():
    assert unknown_words("A shiny red circle, please.") == ["shiny", "please"]
    with pytest.warns(UserWarning, match="shiny"):
        assert parse("a shiny red circle") == Spec((Group("circle", 1, "red"),))
    assert {"circle", "stars", "crosses", "left", "grey"} <= VOCABULARY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red", "shapes are circle"),
        ("", "shapes are circle"),
        ("a circle and a star and a ring", "one or two"),
        ("three circles and two stars", "at most 4"),
    ],
)
def test_errors_say_what_is_allowed(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
