"""Measures of a reward model on numbers whose answer is known."""

import io

import numpy as np
import pytest
import torch
from clip_for_tests import planted_pairs
from rich.console import Console

from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.learned.evaluate import (
    calibrate,
    calibration_error,
    ceiling,
    clustered,
    correctness,
    evaluate_reward,
    fit_beta,
    margins,
    single_annotator,
)


@pytest.mark.truth
def test_score_ties_count_half_and_label_ties_not_at_all():
    right = correctness([1.0, -1.0, 0.0, 2.0, -3.0], [1.0, 1.0, 0.0, 0.5, 0.2])
    assert right[:3].tolist() == [1.0, 0.0, 0.5] and np.isnan(right[3]) and right[4] == 1.0
    micro, macro = clustered(right, [0, 0, 0, 1, 1])
    assert micro.value == pytest.approx(2.5 / 4) and micro.n == 4
    assert macro.value == pytest.approx((1.5 / 3 + 1) / 2)
    with pytest.raises(ValueError, match="none of the 2"):
        clustered(correctness([1.0, 2.0], [0.5, 0.5]), [0, 1])


@pytest.mark.truth
def test_intervals_follow_the_prompts_not_the_pairs():
    rng = np.random.default_rng(0)
    by_prompt = rng.random(40) < 0.7
    right = np.repeat(by_prompt, 25).astype(float)  # all pairs of a prompt agree: 40 independent numbers, not 1000
    micro, macro = clustered(right, np.repeat(np.arange(40), 25))
    wide = 1.96 * np.sqrt(0.7 * 0.3 / 40)
    assert (micro.high - micro.low) / 2 == pytest.approx(wide, rel=0.25)
    assert micro.value == pytest.approx(macro.value)
    alone, _ = clustered(right, np.arange(1000))
    assert (alone.high - alone.low) / 2 == pytest.approx(wide / 5, rel=0.25)


@pytest.mark.truth
def test_planted_probabilities_are_calibrated_exactly():
    p = np.repeat([0.05, 0.25, 0.45, 0.85], 100)
    y = np.concatenate([np.arange(100) < 100 * q for q in (0.05, 0.25, 0.45, 0.85)]).astype(float)
    assert calibration_error(p, y).ece == pytest.approx(0, abs=1e-12)
    assert calibration_error(p, p).ece == 0
    assert calibration_error(p, p - 0.04).ece == pytest.approx(0.04)
    z = np.log(p / (1 - p))
    assert calibrate(z, p, 1.0).ece == pytest.approx(0, abs=1e-9)
    assert calibrate(z, p, 3.0).ece > 0.05
    assert sum(n for *_, n in calibrate(z, y, 1.0).bins) == 800  # both orders


@pytest.mark.truth
@pytest.mark.parametrize("beta", [0.02, 1.0, 40.0])
def test_beta_is_found(beta):
    z = np.random.default_rng(1).normal(size=5000)
    y = 1 / (1 + np.exp(-z))
    assert fit_beta(z / beta, y) == pytest.approx(beta, rel=1e-3)
    assert fit_beta(-z, y) == 0.0 and np.isfinite(fit_beta(z, (z > 0).astype(float)))


@pytest.mark.truth
def test_ceiling_and_single_annotator():
    p = np.array([0.9, 0.2, 0.5])
    assert ceiling(p) == pytest.approx((0.9 + 0.8 + 0.5) / 3)
    assert single_annotator(p) == pytest.approx((0.82 + 0.68 + 0.5) / 3)
    rng = np.random.default_rng(2)
    p = rng.random(200_000)
    one, other = rng.random((2, len(p))) < p
    assert (one == other).mean() == pytest.approx(single_annotator(p), abs=5e-3)
    assert ((p > 0.5) == one).mean() == pytest.approx(ceiling(p), abs=5e-3)


def test_report_of_a_reward():
    pairs, p = planted_pairs(400)
    calls = []

    def brightness(images, prompts):
        calls.append(len(images))
        return images.mean((1, 2, 3))

    reward = FunctionReward(brightness, "brightness")
    report = evaluate_reward(reward, pairs, planted_pairs(100, seed=1)[0], lambda t: t.split()[0], p)
    value = pairs.images.mean((1, 2, 3))
    expected = correctness((value[pairs.first] - value[pairs.second]).numpy(), pairs.preference.numpy())
    assert report.micro.value == pytest.approx(np.nanmean(expected)) and report.ties == 0
    assert report.micro.low < report.micro.value < report.micro.high
    assert sum(e.n for e in report.by_category.values()) == 400
    assert report.ceiling == pytest.approx(ceiling(p.numpy()), abs=1e-6)
    text = Console(width=120, record=True, file=io.StringIO())
    text.print(report.table())
    assert "single annotator" in text.export_text() and report.numbers()["accuracy"]["pairs"] == 400
    with pytest.raises(ValueError, match="3 probabilities for 400"):
        evaluate_reward(reward, pairs, probability=[0.1, 0.2, 0.3])


def test_each_picture_is_scored_once_a_prompt():
    pairs, _ = planted_pairs(200)
    seen = []
    reward = FunctionReward(lambda images, prompts: seen.extend(prompts) or images.mean((1, 2, 3)), "m")
    margin = margins(reward, pairs)
    value = pairs.images.mean((1, 2, 3))
    assert torch.allclose(margin, value[pairs.first] - value[pairs.second], atol=1e-6)
    both = set(zip([*pairs.first.tolist(), *pairs.second.tolist()], pairs.prompt_ids.repeat(2).tolist()))
    assert len(seen) == len(both)
