"""Win rate and arena: ties, clustering, closed forms, agreement with evalica."""

import math

import evalica
import numpy as np
import pytest

from surveylib.evaluation.arena import POINTS, arena
from surveylib.evaluation.win_rate import TIE, outcomes, tie_of, win_rate
from surveylib.feedback.choice import NoFiniteFit


def test_ties_count_one_half():
    assert outcomes([1, 2, 3], [1, 1, 4]).tolist() == [0.5, 1.0, 0.0]
    assert win_rate([0.3] * 6, [0.3] * 6, list("aabbcc")).value == 0.5  # a constant scorer
    assert outcomes([1.0, 1.2], [1.05, 1.0], tie=0.1).tolist() == [0.5, 1.0]


def test_gold_has_a_tie_and_no_other_score():
    """Nine hairs and one loss that shows: without the tie a win rate of nine in ten."""
    base = np.linspace(0.2, 0.9, 10)
    scores = base + np.array([0.9 * TIE] * 9 + [-0.1])
    assert win_rate(scores, base, range(10)).value == 0.9
    assert win_rate(scores, base, range(10), tie=tie_of("gold")).value == pytest.approx(0.45)
    assert [tie_of(name) for name in ("gold", "proxy", "pass", "shapes-imagereward")] == [TIE, 0, 0, 0]


def test_the_tie_of_the_arena_is_that_of_the_win_rate():
    rng = np.random.default_rng(3)
    base = rng.random(80)
    scores = {"hair": base + 0.5 * TIE, "base": base, "other": base + rng.normal(size=80)}
    fit = arena(scores, range(80), tie=TIE).fit
    assert fit.difference("hair", "base").value == pytest.approx(0, abs=0.05)
    assert arena(scores, range(80), prior=1.0).fit.difference("hair", "base").value > 1


def test_exchanging_the_sides_mirrors_the_win_rate():
    rng = np.random.default_rng(0)
    a, b, prompts = rng.integers(0, 4, 40), rng.integers(0, 4, 40), np.repeat(np.arange(10), 4)
    there, back = win_rate(a, b, prompts), win_rate(b, a, prompts)
    assert there.value == pytest.approx(1 - back.value)
    assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))


def test_the_interval_of_a_win_rate_is_clustered():
    """Ten prompts that each win all or no matches: as wide as ten values, not forty."""
    won = np.array([1, 1, 1, 0, 1, 0, 1, 1, 0, 1.0])
    wide = win_rate(np.repeat(won, 4), np.full(40, 0.5), np.repeat(np.arange(10), 4))
    assert wide.standard_error == pytest.approx(won.std(ddof=1) / math.sqrt(10))
    assert wide.prompts == 10 and wide.n == 40


@pytest.mark.parametrize("scores, base, word", [
    ([1.0], [1.0, 2.0], "same"), ([], [], "at least 1"), ([float("nan")], [1.0], "NaN"),
])
def test_bad_scores(scores, base, word):
    with pytest.raises(ValueError, match=word):
        outcomes(scores, base)
    with pytest.raises(ValueError, match="tie=-1"):
        outcomes([1.0], [1.0], tie=-1)


def test_two_players_are_the_logit_of_the_win_rate():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=60), rng.normal(size=60) - 0.4
    w = win_rate(a, b, range(60)).value
    fit = arena({"a": a, "b": b}, range(60)).fit
    assert fit.difference("a", "b").value == pytest.approx(math.log(w / (1 - w)), abs=1e-9)


def four_players(seed=2, prompts=30, pictures=2):
    rng = np.random.default_rng(seed)
    hard = np.repeat(rng.normal(size=prompts), pictures)
    scores = {name: np.round(level + hard + rng.normal(size=prompts * pictures), 1)
              for name, level in (("base", 0.0), ("x", 0.5), ("y", 0.8), ("z", -0.3))}
    return scores, np.repeat(np.arange(prompts), pictures)


def test_strengths_agree_with_evalica():
    scores, prompts = four_players()
    found = arena(scores, prompts)
    xs, ys, winners = [], [], []
    for a in scores:
        for b in scores:
            if a < b:
                for p, q in zip(scores[a], scores[b]):
                    xs.append(a)
                    ys.append(b)
                    winners.append(evalica.Winner.X if p > q else evalica.Winner.Y if p < q else evalica.Winner.Draw)
    assert winners.count(evalica.Winner.Draw) > 5
    assert found.matches == len(xs) == 6 * 60
    other = evalica.bradley_terry(xs, ys, winners, tolerance=1e-12, limit=10_000).scores
    logs = {name: math.log(other[name]) for name in scores}
    mean = sum(logs.values()) / 4
    for name in scores:
        assert found.fit.strength(name).value == pytest.approx(logs[name] - mean, abs=1e-6)


def test_places_are_in_elo_points_with_ranks():
    scores, prompts = four_players()
    found = arena(scores, prompts)
    assert found.places[0].name == "y" and found.places[-1].name == "z"
    ratings = {p.name: p.rating for p in found.places}
    assert np.mean(list(ratings.values())) == pytest.approx(1000)
    difference = found.fit.difference("y", "z").value
    assert ratings["y"] - ratings["z"] == pytest.approx(POINTS * difference)
    for place in found.places:
        assert place.rank == 1 + sum(other.low > place.high for other in found.places)
    assert found.places[0].rank == 1 < found.places[-1].rank


def test_intervals_are_clustered_by_prompt():
    scores, prompts = four_players()
    copied = {name: np.repeat(values, 3) for name, values in scores.items()}
    once, thrice = arena(scores, prompts).fit, arena(copied, np.repeat(prompts, 3)).fit
    assert thrice.standard_errors == pytest.approx(once.standard_errors, rel=1e-6)


def test_a_technique_that_always_wins_needs_a_prior():
    scores = {"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 2.0]}
    with pytest.raises(NoFiniteFit):
        arena(scores, "abc")
    assert arena(scores, "abc", prior=1.0).places[0].name == "a"
    with pytest.raises(ValueError, match="two techniques"):
        arena({"a": [1.0]}, "a")
