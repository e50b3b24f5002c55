"""Choice models: bad input, infinite strengths and what a prior does about them, records."""

from types import SimpleNamespace

import numpy as np
import pytest

from surveylib.feedback.choice import (
    MODELS,
    AnnotatorAbility,
    BradleyTerry,
    Davidson,
    NoFiniteFit,
    PlackettLuce,
    PositionBias,
    RaoKupper,
    Thurstone,
    comparisons,
    comparisons_from_records,
    rankings,
    rankings_from_records,
)

CYCLE = (["a", "b", "c"], ["b", "c", "a"])


@pytest.mark.parametrize("make, message", [
    (lambda: comparisons(["a"], ["a"]), "compares 'a' with itself"),
    (lambda: comparisons(["a"], ["b"], 1.2), r"preference 1.2: it must be in \[0, 1\]"),
    (lambda: comparisons(["a"], ["b"], float("nan")), "preference nan"),
    (lambda: comparisons([], []), "no records"),
    (lambda: comparisons(["a", "b"], ["b"]), "second has 1 entries for 2 records"),
    (lambda: comparisons(["a"], ["b"], weight=[0.0]), "weight 0.0"),
    (lambda: comparisons(["a"], ["x"], items=["a", "b"]), "unknown item 'x'"),
    (lambda: comparisons(["a"], ["b"], items=["a", "b", "a"]), "named twice"),
    (lambda: rankings([]), "no records"),
    (lambda: rankings([["a", "b", "a"]]), "has 'a' twice"),
    (lambda: rankings([[["a", "b"]]]), "at least two"),
    (lambda: rankings([[list("abcdefghijk"), "l"]]), "tied group of 11"),
])
def test_bad_data(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("model", [BradleyTerry, Thurstone, PositionBias])
@pytest.mark.parametrize("first, second, message", [
    ((*CYCLE[0], "a"), (*CYCLE[1], "d"), r"always lose: \{d\}"),
    ((*CYCLE[0], "d"), (*CYCLE[1], "b"), r"always win: \{d\}"),
    ((*CYCLE[0], "d", "e"), (*CYCLE[1], "e", "d"), r"2 parts .*\{a, b, c\}; \{d, e\}"),
    ((*CYCLE[0], "d", "e", "a"), (*CYCLE[1], "e", "d", "d"), "in one direction only"),
])
def test_infinite_strengths_name_the_items_and_a_prior_makes_them_finite(model, first, second, message):
    data = comparisons(first, second)
    with pytest.raises(NoFiniteFit, match=message + r"(.|\n)*[Pp]ass prior="):
        model().fit(data)
    fit = model().fit(data, prior=1.0)
    assert np.isfinite([*fit.strengths, *fit.low, *fit.high]).all() and fit.prior == 1.0


def test_an_item_never_compared_is_a_part_of_its_own():
    with pytest.raises(NoFiniteFit, match=r"\{z\}"):
        BradleyTerry().fit(comparisons(*CYCLE, items=["a", "b", "c", "z"]))


@pytest.mark.truth
def test_a_cycle_of_certain_wins_is_finite_and_equal():
    for model in (BradleyTerry, Thurstone):
        np.testing.assert_allclose(model().fit(comparisons(*CYCLE)).strengths, 0, atol=1e-9)
    orders = [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    np.testing.assert_allclose(PlackettLuce().fit(rankings(orders)).strengths, 0, atol=1e-9)


@pytest.mark.truth
def test_prior_is_the_stated_one():
    """Two items, w wins to none: θ_a - θ_b = d solves σ(-d) w = d / (2 prior²)."""
    d = BradleyTerry().fit(comparisons(["a"] * 3, ["b"] * 3), prior=2.0).difference("a", "b").value
    assert 3 / (1 + np.exp(d)) == pytest.approx(d / (2 * 2.0**2), abs=1e-9)


def test_an_item_that_is_always_ranked_last_is_named():
    with pytest.raises(NoFiniteFit, match=r"always lose: \{c\}"):
        PlackettLuce().fit(rankings([["a", "b", "c"], ["b", "a", "c"]]))


def test_extras_without_a_finite_estimate():
    first_always = comparisons(["a", "b", "b", "c", "c", "a"], ["b", "a", "c", "b", "a", "c"])
    with pytest.raises(NoFiniteFit, match="position"):
        PositionBias().fit(first_always)
    assert PositionBias().fit(first_always, prior=2.0).extras["position"].value > 0
    for model in (RaoKupper, Davidson):
        with pytest.raises(NoFiniteFit, match="no tie in 3"):
            model().fit(comparisons(*CYCLE))
        with pytest.raises(NoFiniteFit, match="nothing but ties"):
            model().fit(comparisons(*CYCLE, 0.5))
        with pytest.raises(ValueError, match=r"preference 0.7.*fit BradleyTerry"):
            model().fit(comparisons(*CYCLE, 0.7))
    with pytest.raises(ValueError, match="name no annotators"):
        AnnotatorAbility().fit(comparisons(*CYCLE))


@pytest.mark.parametrize("options, message", [
    ({"prior": 0.0}, "prior is 0.0"), ({"level": 1.0}, "level is 1.0"), ({"interval": "wald"}, "sandwich, hessian"),
    ({"cluster": "user"}, "'prompt', 'annotator'"), ({"cluster": "prompt"}, "name no prompt"),
    ({"cluster": [1, 2]}, "2 labels for 3 records"), ({"cluster": [1, 1, 1]}, "one cluster only"),
    ({"cluster": [1, 2, 3], "interval": "hessian"}, "to cluster, use 'sandwich'"),
    ({"interval": "bootstrap", "resamples": 5}, "at least 20"),
    ({"interval": "bootstrap"}, "resamples have no finite fit"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        BradleyTerry().fit(comparisons(*CYCLE), **options)


def test_a_model_refuses_data_of_the_other_kind():
    with pytest.raises(ValueError, match="reads Rankings, not Comparisons"):
        PlackettLuce().fit(comparisons(*CYCLE))
    assert {model.name for model in MODELS.values()} == set(MODELS)


def record(kind="pair", images=("x.png", "y.png"), models=("A", "B"), preference=1.0, ranks=None, annotator="ann"):
    return SimpleNamespace(kind=kind, prompt="p", prompt_id="", images=images, models=models, preference=preference,
                           ranks=ranks, annotator=annotator, weight=1.0)


def test_comparisons_from_records_count_what_they_leave_out():
    data = comparisons_from_records([
        record(), record(preference=0.5), record(models=("A", "A")), record(models=()), record(kind="rating")])
    assert data.items == ("A", "B") and data.preference.tolist() == [1.0, 0.5] and data.prompt == ("p", "p")
    assert data.skipped == {"the same model twice": 1, "models unknown": 1, "kind rating": 1}
    assert comparisons_from_records([record(images=(b"1", b"2"))], item="image").items != ("A", "B")
    with pytest.raises(ValueError, match="kind rating"):
        comparisons_from_records([record(kind="rating")])
    with pytest.raises(ValueError, match="'model'"):
        comparisons_from_records([record()], item="prompt")


def test_rankings_from_records_keep_tied_groups():
    three = {"kind": "ranking", "images": ("x", "y", "z"), "models": ("A", "B", "C")}
    data = rankings_from_records([record(**three, ranks=(2, 1, 2)), record(**three, ranks=(1, 1, 1)), record()])
    assert data.groups == (((1,), (0, 2)),)
    assert data.skipped == {"all tied": 1, "kind pair": 1}
