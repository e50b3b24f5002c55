"""Simulated annotators: they choose as stated, their habits have the stated size, and gold is the population's mean."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scenes_for_tests import draw, pale
from scipy import stats

from surveylib.worlds.shapes.annotators import (
    AI,
    GROUPS,
    Annotator,
    Pool,
    drifting,
    gold_utility,
    group_utility,
    make_pool,
    random_for,
)
from surveylib.worlds.shapes.judge import judge
from surveylib.worlds.shapes.looks import TASTES, look, taste_row
from surveylib.worlds.shapes.prompts import realise
from surveylib.worlds.shapes.quality import quality
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.scenes import Scene, Thing
from surveylib.worlds.shapes.sources import Renderings
from surveylib.worlds.shapes.suites import suite

DRAWS = 4000
LEAST_P = 1e-4  # of the chi-squared tests


def answers(person, first, second, seed=0, draws=DRAWS):
    rng = np.random.default_rng(seed)
    return np.array([person.compare(first, second, rng) for _ in range(draws)])


def matches(person, first, second, seed=0):
    """p-value of the answers' counts under the stated probabilities."""
    found = answers(person, first, second, seed)
    stated = person.pair_probabilities(first, second)[0].numpy()
    counts = np.array([(found == value).sum() for value in (1.0, 0.5, 0.0)])
    assert not counts[stated == 0].any()
    return stats.chisquare(counts[stated > 0], DRAWS * stated[stated > 0]).pvalue if (stated > 0).sum() > 1 else 1.0


@pytest.fixture(scope="module")
def pairs():
    """Looks of 4 rendered pictures for each of 35 prompts, and all pairs of the same prompt."""
    prompts = suite("train", per_category=5)
    pictures = Renderings()(prompts, 4, 0)
    seen = look(pictures.images, [prompt.text for prompt in prompts for _ in range(4)])
    rows = np.arange(len(seen)).reshape(-1, 4)
    first, second = (np.concatenate([rows[:, c] for c in column]) for column in zip(*[
        (i, j) for i in range(4) for j in range(i)]))
    return seen, first, second


PEOPLE = {
    "Bradley-Terry": Annotator("bt", temperature=0.2),
    "ties": Annotator("ties", temperature=0.2, ties=0.6),
    "position": Annotator("left-leaning", temperature=0.2, position_bias=0.7),
    "lazy left": Annotator("lazy", temperature=0.2, lazy=0.3, lazy_answer="left"),
    "lazy random": Annotator("guesser", temperature=0.2, lazy=0.4, ties=0.5),
    "AI": AI,
    "cold": Annotator("cold", temperature=0.0, ties=0.4, position_bias=0.3),
}


@pytest.mark.truth
@pytest.mark.parametrize("name", PEOPLE)
@pytest.mark.parametrize("u", [(0.5, 0.5), (0.7, 0.55)])
def test_choices_have_the_stated_frequencies(name, u):
    assert matches(PEOPLE[name], *u) > LEAST_P


@pytest.mark.truth
def test_the_stated_probabilities_are_bradley_terry_and_rao_kupper():
    bt = Annotator("a", temperature=0.2).pair_probabilities(torch.tensor([0.7]), torch.tensor([0.5]))
    assert bt[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 0, 1 / (1 + math.exp(1))], abs=1e-6)
    eta, d = 0.6, 1.0
    ties = Annotator("a", temperature=0.2, ties=eta).pair_probabilities(0.7, 0.5)[0]
    theta, a, b = math.exp(eta), math.exp(d), 1.0  # Rao and Kupper's form
    assert ties[0].item() == pytest.approx(a / (a + theta * b), abs=1e-6)
    assert ties[1].item() == pytest.approx((theta**2 - 1) * a * b / ((a + theta * b) * (theta * a + b)), abs=1e-6)
    assert ties.sum().item() == pytest.approx(1)


@pytest.mark.truth
def test_rankings_are_plackett_luce():
    person, u = Annotator("a", temperature=0.3), np.array([0.2, 0.6, 0.4])
    rng, weight = np.random.default_rng(1), np.exp(u / 0.3)
    found = [tuple(np.argsort(person.rank(u, rng))) for _ in range(DRAWS)]
    orders = list(permutations(range(3)))
    stated = [np.prod([weight[o[i]] / weight[list(o[i:])].sum() for i in range(3)]) for o in orders]
    counts = [found.count(order) for order in orders]
    assert stats.chisquare(counts, DRAWS * np.array(stated)).pvalue > LEAST_P


@pytest.mark.truth
def test_position_bias_has_the_stated_odds():
    person = Annotator("a", temperature=0.2, position_bias=0.8)
    left = (answers(person, 0.5, 0.5) == 1).mean()
    assert left == pytest.approx(1 / (1 + math.exp(-0.8)), abs=4 * 0.5 / math.sqrt(DRAWS))
    assert abs(left - 0.5) > 0.1


@pytest.mark.truth
def test_laziness_has_the_stated_size():
    # At temperature 0 a careful annotator never takes the worse picture: what is left is laziness.
    lazy = Annotator("a", temperature=0, lazy=0.3, lazy_answer="left")
    assert (answers(lazy, 0.0, 1.0) == 1).mean() == pytest.approx(0.3, abs=0.03)
    guesser = replace(lazy, lazy_answer="random")
    assert (answers(guesser, 0.0, 1.0) == 1).mean() == pytest.approx(0.15, abs=0.025)
    rng = np.random.default_rng(0)
    as_shown = [lazy.rank([0.1, 0.2, 0.3], rng) == (1, 2, 3) for _ in range(DRAWS)]
    assert np.mean(as_shown) == pytest.approx(0.3, abs=0.03)


def test_a_temperature_of_zero_takes_the_better_one_and_negative_is_refused():
    cold = PEOPLE["cold"]
    assert set(answers(cold, 0.5001, 0.5, draws=50)) == {1.0} and set(answers(cold, 0.2, 0.5, draws=50)) == {0.0}
    assert cold.rank([0.3, 0.1, 0.2], np.random.default_rng(0)) == (1, 3, 2)
    with pytest.raises(ValueError, match=r"'a'.*temperature=-0.1.*0 or more"):
        Annotator("a", temperature=-0.1)


@pytest.mark.truth
def test_drift_goes_half_way_in_its_half_life():
    person = drifting(Annotator("a", taste=GROUPS["warm"]), "cool", half_life=40)
    red, blue = TASTES.index("red"), TASTES.index("blue")
    start, half, late = (person.taste_after(n) for n in (0, 40, 400))
    assert start[red].item() == pytest.approx(0.12) and half.abs().max().item() == pytest.approx(0, abs=1e-6)
    assert late[red].item() == pytest.approx(-0.12, abs=1e-3) and late[blue].item() == pytest.approx(0.12, abs=1e-3)
    scenes = [Scene((Thing("circle", colour, 32, 32, 9.0),)) for colour in ("red", "blue")]
    seen = look(render(scenes), "a circle")
    before, after = person.utility(seen, 0), person.utility(seen, 400)
    assert before[0] > before[1] and after[0] < after[1]


@pytest.mark.truth
def test_utility_is_the_weighted_sum_and_gold_is_its_part_without_taste():
    specs, _, pictures, _ = draw(16, seed=3)
    pictures[8:] = pale(pictures[8:], 0.6)
    prompts = [realise(spec) for spec in specs[::-1]]  # mostly wrong
    verdicts = judge(pictures, prompts)
    faithful = torch.tensor([0.5 * v.score + 0.5 * v.passed for v in verdicts])
    gold = gold_utility(pictures, prompts)
    torch.testing.assert_close(gold, 0.6 * faithful + 0.4 * quality(pictures))
    assert gold.min() >= 0 and gold.max() <= 1
    person = Annotator("a", faithfulness=2.0, quality=0.5, taste={"size": 0.3})
    seen = look(pictures, prompts)
    size = torch.tensor([taste_row(reading.things)[TASTES.index("size")] for reading in seen.readings])
    torch.testing.assert_close(person.utility(seen), 2 * faithful + 0.5 * quality(pictures) + 0.3 * size)


@pytest.mark.truth
def test_gold_is_the_mean_of_a_large_pool(pairs):
    seen = pairs[0].pick(range(40))
    mean = make_pool(1200, seed=2).utility(seen).mean(0)
    assert (mean - gold_utility(seen)).abs().max() < 0.02
    warm = make_pool(600, seed=2, groups=["warm"]).utility(seen).mean(0)
    assert (warm - group_utility("warm", seen)).abs().max() < 0.02
    assert (warm - gold_utility(seen)).abs().max() > 0.05
    torch.testing.assert_close(gold_utility(seen, shares={"warm": 2.0}), group_utility("warm", seen))


@pytest.mark.truth
def test_opposed_groups_disagree_only_where_taste_is_about():
    things = {"red large": ("red", 12.0), "blue large": ("blue", 12.0), "red small": ("red", 7.0)}
    seen = look(render([Scene((Thing("square", c, 32, 32, r),)) for c, r in things.values()]), "a square")
    u = {group: group_utility(group, seen) for group in GROUPS}
    assert u["warm"][0] - u["warm"][1] == pytest.approx(0.24, abs=0.02)
    assert u["cool"][0] - u["cool"][1] == pytest.approx(-0.24, abs=0.02)
    assert u["bold"][0] > u["bold"][2] + 0.1 and u["minimal"][0] < u["minimal"][2] - 0.1
    assert u["warm"][0] == pytest.approx(u["warm"][2].item(), abs=0.02)  # size is nothing to them


@pytest.mark.truth
def test_people_agree_as_often_as_people_do(pairs):
    # Public data sets report 65 to 80 percent; measured here: see the assertion on the mean.
    seen, first, second = pairs
    pool = make_pool(12)
    p = [a.pair_probabilities(u[first], u[second]) for a, u in zip(pool.annotators, pool.utility(seen))]

    def agreement(a, b):  # on pairs that neither calls a tie
        both = ((1 - a[:, 1]) * (1 - b[:, 1])).sum()
        return float((a[:, 0] * b[:, 0] + a[:, 2] * b[:, 2]).sum() / both)

    found = [agreement(p[i], p[j]) for i in range(12) for j in range(i)]
    assert 0.68 < np.mean(found) < 0.80 and min(found) > 0.6 and max(found) < 0.88
    own = np.mean([agreement(q, q) for q in p])
    ai = AI.pair_probabilities(AI.utility(seen)[first], AI.utility(seen)[second])
    assert agreement(ai, ai) > own + 0.05
    ties = np.mean([float(q[:, 1].mean()) for q in p])
    assert 0.07 < ties < 0.17


@pytest.mark.truth
def test_the_ai_annotators_bias_is_there_and_has_its_size():
    def circles(n, r, x=12.0):
        return Scene(tuple(Thing("circle", "red", x + 14.0 * i, 32.0, r) for i in range(n)))

    two, three = circles(2, 6.5, 25.0), circles(3, 6.5, 18.0)
    seen = look(render([two, three]), "two red circles")
    human = Annotator("human")
    assert seen.verdicts[0].passed and not seen.verdicts[1].passed
    assert AI.utility(seen)[0] - AI.utility(seen)[1] == pytest.approx(0.0, abs=0.01)  # does not count
    assert human.utility(seen)[0] - human.utility(seen)[1] > 0.25
    seen = look(render([circles(1, 12.0, 32.0), circles(1, 7.0, 32.0)]), "a small red circle")
    step = AI.taste["size"] * 2 * (12.0 - 7.0) / 6.0
    bias = AI.utility(seen) - replace(AI, taste={}).utility(seen)
    assert bias[0] - bias[1] == pytest.approx(step, abs=0.02)
    picture = render([circles(1, 9.0, 32.0)])
    seen = look(torch.cat([picture, pale(picture, 0.5)]), "a red circle")
    assert AI.taste["saturation"] > 0 and seen.taste[0, -1] > seen.taste[1, -1] + 0.2
    assert matches(AI, 0.5, 0.5) > LEAST_P and AI.pair_probabilities(0.5, 0.5)[0, 0] > 0.65


@pytest.mark.truth
def test_ratings_and_likes_follow_their_formulas():
    person, rng = Annotator("a", temperature=0.2, leniency=0.1), np.random.default_rng(0)
    rates = np.array([person.rate(0.4, 1, 5, rng) for _ in range(DRAWS)])
    edges = np.array([0.125, 0.375, 0.625, 0.875])  # between the five steps of the scale
    below = 1 / (1 + np.exp(-(edges - 0.5) / 0.2))
    stated = np.diff(np.concatenate([[0], below, [1]]))
    counts = [(rates == step).sum() for step in range(1, 6)]
    assert stats.chisquare(counts, DRAWS * stated).pvalue > LEAST_P
    liked = np.mean([person.likes(0.7, rng, least=0.75) for _ in range(DRAWS)])
    assert liked == pytest.approx(1 / (1 + math.exp(-0.05 / 0.2)), abs=0.03)


def test_everything_is_a_function_of_the_seed():
    assert make_pool(6, seed=4) == Pool(make_pool(12, seed=4).annotators[:6])
    assert make_pool(6, seed=4) != make_pool(6, seed=5)
    draws = {key: random_for(*key).random() for key in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]}
    assert len(set(draws.values())) == 4 and random_for(0, "a", 0).random() == draws[0, "a", 0]


@pytest.mark.parametrize("values, message", [
    ({"lazy": 1.2}, "lazy=1.2"), ({"ties": -1}, "ties=-1"), ({"taste": {"cats": 1.0}}, "unknown taste 'cats'"),
    ({"half_life": 0}, "half_life=0"), ({"lazy_answer": "up"}, "known: random, left"),
    ({"quality": math.nan}, "quality"),
    ({"position_bias": math.inf}, "position_bias=inf"), ({"overlooks": -0.1}, "overlooks=-0.1"),
])
def test_an_impossible_annotator_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Annotator("a", **values)


def test_bad_questions_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="two pictures or more"):
        Annotator("a").rank([0.5], rng)
    with pytest.raises(ValueError, match="finite"):
        Annotator("a").compare(0.5, math.nan, rng)
    with pytest.raises(ValueError, match="scale"):
        Annotator("a").rate(0.5, 5, 1, rng)
    with pytest.raises(ValueError, match=r"unknown group 'tall'.*warm"):
        make_pool(3, groups=["tall"])
    with pytest.raises(ValueError, match="n=0"):
        make_pool(0)
    with pytest.raises(ValueError, match="called 'a'"):
        Pool((Annotator("a"), Annotator("a")))
    with pytest.raises(ValueError, match="prompts are missing"):
        gold_utility(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="2 prompts for 1 pictures"):
        gold_utility(torch.zeros(1, 3, 64, 64), ["a circle", "a square"])
    with pytest.raises(ValueError, match="shares"):
        gold_utility(torch.zeros(1, 3, 64, 64), "a circle", shares={"warm": 0.0})
    with pytest.raises(KeyError, match="warm-0"):
        make_pool(2)["nobody"]
