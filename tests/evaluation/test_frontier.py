"""Over-optimisation studies: planted laws come back, curves start at the base model, runs go on with larger budgets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import Fake

from surveylib.alignment.run import Recipe
from surveylib.evaluation.budgeted import read_history, train
from surveylib.evaluation.frontier import (
    Point,
    best_of_n_curves,
    fit_training,
    points_of,
    stored_curve,
    training_curve,
)
from surveylib.evaluation.protocol import Budget, Protocol
from surveylib.evaluation.rows import Plan
from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.registry import load_reward
from surveylib.techniques import registry

PROTOCOL = Protocol(test=1, validation=1, pictures=2, steps=2, kl_prompts=2, kl_steps=2)
BRIGHT = FunctionReward(lambda images, prompts: images.mean((1, 2, 3)), "bright")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", {**registry._CLASSES, "fake": "fakes:Fake"})


def plan(technique="fake", scale="toy"):
    return Plan(technique, "preset", 0, scale, Budget(1, 1), PROTOCOL)


def test_a_planted_law_comes_back():
    alpha, beta = 0.6, 0.2
    rng = np.random.default_rng(0)
    base = rng.random(40)
    points = [Point(0, 0.0, base, base)]
    for kl in (0.5, 1.0, 4.0, 16.0, 60.0, 200.0):
        d = np.sqrt(kl)
        points.append(Point(1, kl, base, base + d * (alpha - beta * np.log(d))))
    fit = fit_training(points)
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta)) and fit.r_squared == pytest.approx(1)
    assert fit.peak == pytest.approx(np.exp(alpha / beta - 1))


def test_the_curve_of_training_starts_at_base_and_goes_on(tmp_path):
    said = []
    points = list(training_curve(plan(), BRIGHT, [12, 48], tmp_path, said.append))
    assert [p.equivalents for p in points] == [0, 12, 48]
    assert len(said) == 4  # four epochs in all: the second budget goes on from the first
    assert points[0].kl == 0 and 0 < points[1].kl < points[2].kl
    assert points[0].gold.shape == (7,) and not np.array_equal(points[0].proxy, points[2].proxy)
    again = list(training_curve(plan(), BRIGHT, [48], tmp_path, said.append))
    assert len(said) == 4 and np.array_equal(again[0].proxy, points[0].proxy)
    assert np.array_equal(again[1].gold, points[2].gold)


def test_a_stored_curve_is_taken_while_it_holds(tmp_path, monkeypatch):
    asked = replace(plan(), protocol=replace(PROTOCOL, proxy="brightness"))
    first = stored_curve(asked, [12], tmp_path / "curves", tmp_path / "work")
    back = points_of(first)
    assert first["reward"] == "brightness" and [p.equivalents for p in back] == [0, 12] and back[1].kl > 0
    assert back[1].gold.shape == (7,) and first["hashes"]["rule"] and first["hardware"]
    monkeypatch.setattr("surveylib.evaluation.frontier.train", lambda *a: pytest.fail("it was trained again"))
    assert stored_curve(asked, [12], tmp_path / "curves", tmp_path / "work") == first
    with pytest.raises(pytest.fail.Exception):
        stored_curve(asked, [12, 24], tmp_path / "curves", tmp_path / "work")


def test_the_history_keeps_small_numbers_and_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setitem(Fake.PRESETS, "toy", Fake.PRESETS["toy"].override({"push": 1e-9}))
    recipe = Recipe("fake")
    trained = train(recipe, 12, tmp_path)
    assert 0 < trained.history[0]["loss"] < 1e-8 and trained.history == read_history(tmp_path)
    more = train(recipe, 24, tmp_path)
    assert more.history[: len(trained.history)] == trained.history and more.epochs == len(more.history) == 2
    assert [row["equivalents"] for row in more.history] == [12, 24]


def test_best_of_n_reads_proxy_and_gold_of_the_same_pictures():
    from surveylib.diffusion.zoo import load_model

    model = load_model("shapes-sd")
    curves = best_of_n_curves(model, load_reward("faithfulness"), n=4, protocol=PROTOCOL)
    assert curves.n.tolist() == [1, 2, 3, 4] and curves.proxy == pytest.approx(curves.gold, abs=1e-6)  # gold as proxy
    assert (np.diff(curves.gold) >= 0).all() and curves.gold[-1] > curves.gold[0]
    noise = FunctionReward(lambda images, prompts: torch.zeros(len(images)), "nothing")
    flat = best_of_n_curves(model, noise, n=4, protocol=PROTOCOL)
    assert np.ptp(flat.gold) < 1e-12  # a proxy that says nothing moves nothing


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"budgets=\[5, 5\] must rise"):
        next(training_curve(plan(), BRIGHT, [5, 5], tmp_path))
    with pytest.raises(ValueError, match="best_of_n at scale toy"):
        next(training_curve(plan("best_of_n"), BRIGHT, [5], tmp_path))
