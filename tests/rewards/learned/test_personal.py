"""A personal reward from few answers."""

import numpy as np
import pytest
import torch
from clip_for_tests import examples, make_trunk, planted_pairs, utility
from scipy.optimize import minimize

from surveylib.feedback.records import Record, encode_picture
from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.learned.personal import fit_personal, fit_ridge, learning_curve
from surveylib.rewards.learned.store import load_learned


@pytest.mark.truth
def test_ridge_is_the_maximum_of_the_posterior():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.integers(0, 3, 40) / 2
    fit = fit_ridge(x, y)

    def loss(w):
        z = x @ w
        return (y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)).sum() + 0.5 * fit.ridge * w @ w

    assert np.allclose(fit.weights, minimize(loss, np.zeros(5), tol=1e-12).x, atol=1e-4)


@pytest.mark.truth
def test_evidence_holds_back_noise_and_lets_a_signal_through():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 8))
    signal = fit_ridge(x, (rng.random(200) < 1 / (1 + np.exp(-3 * x[:, 0]))).astype(float))
    noise = fit_ridge(x, rng.integers(0, 2, 200).astype(float))
    assert noise.ridge > 5 * signal.ridge and np.abs(noise.weights).max() < 0.3
    assert signal.weights[0] > 1.5 and np.abs(signal.weights[1:]).max() < 0.8


@pytest.mark.truth
def test_accuracy_rises_with_answers_towards_the_ceiling():
    pairs, p = planted_pairs(1200, sharpness=4.0, among=200)
    curve = learning_curve(pairs, make_trunk(), seeds=4)
    assert curve.counts == (10, 30, 100, 300) and curve.accuracy.shape == (4, 4)
    best = float(np.maximum(p, 1 - p).mean())
    assert curve.mean[0] > 0.5 and curve.mean[3] > curve.mean[0] + 0.05 and curve.mean[3] > best - 0.06
    assert (curve.mean < best + 0.04).all() and min(curve.held_out) > 100
    few = learning_curve(pairs.subset(range(60)), make_trunk(), seeds=2)
    assert few.counts == (10, 30) and few.unreached == (100, 300)
    with pytest.raises(ValueError, match="10 needed"):
        learning_curve(pairs.subset(range(9)), make_trunk())


def test_a_shared_reward_helps_from_the_first_answers():
    pairs, _ = planted_pairs(600, sharpness=4.0, among=100)
    table = {picture.sum().item(): value.item() for picture, value in zip(examples()[0], utility(4.0))}
    shared = FunctionReward(lambda images, prompts: torch.tensor([table[i.sum().item()] for i in images]), "shared")
    alone = learning_curve(pairs, make_trunk(), counts=(10,), seeds=3)
    helped = learning_curve(pairs, make_trunk(), counts=(10,), seeds=3, base=shared)
    assert helped.mean[0] > alone.mean[0] + 0.05


def test_ten_records_make_a_reward_that_is_saved_and_differentiable(tmp_path):
    pictures, captions, _ = examples()
    rng = np.random.default_rng(0)
    records = []
    for i in range(10):
        a, b = rng.choice(600, 2, replace=False)
        better = float(pictures[a].mean() > pictures[b].mean())
        records.append(Record("pair", captions[i], (encode_picture(pictures[a]), encode_picture(pictures[b])),
                              annotator="me", preference=better))
    reward = fit_personal(records, make_trunk(), name="mine")
    batch = pictures[:6].clone().requires_grad_(True)
    scores = reward(batch)
    scores.sum().backward()
    assert batch.grad.abs().max() > 0 and scores.std() > 0
    reward.save(tmp_path / "mine")
    again = load_learned(tmp_path / "mine", make_trunk())
    assert again.name == "mine" and torch.equal(again(pictures[:6]), reward(pictures[:6]))
    with pytest.raises(ValueError, match="base_source"):
        fit_personal(records, make_trunk(), base=FunctionReward(lambda i, p: i.mean((1, 2, 3)), "b")).save(tmp_path)
