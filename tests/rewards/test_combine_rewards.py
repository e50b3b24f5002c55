"""Combinators."""

import pytest
import torch

from surveylib.rewards import FunctionReward
from surveylib.rewards.combine import Minimum, RankEnsemble, Standardised, WeightedSum, fractional_ranks

IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "a", "a", "b", "b", "b"]


def part(channel, differentiable=True):
    return FunctionReward(lambda x, p: x[:, channel].mean((1, 2)), f"channel {channel}", differentiable, range=(0, 1))


@pytest.mark.truth
def test_weighted_sum_values_gradient_and_range():
    both = WeightedSum({part(0): 2.0, part(1): -1.0})
    images = IMAGES.clone().requires_grad_()
    scores = both(images, PROMPTS)
    torch.testing.assert_close(scores, 2 * IMAGES[:, 0].mean((1, 2)) - IMAGES[:, 1].mean((1, 2)))
    scores.sum().backward()
    for channel, weight in enumerate((2.0, -1.0, 0.0)):
        torch.testing.assert_close(images.grad[:, channel], torch.full((6, 4, 4), weight / 16))
    assert both.range == (-1.0, 2.0) and both.differentiable and [p.calls for p in both.parts] == [6, 6]
    assert not WeightedSum({part(0): 1.0, part(1, differentiable=False): 1.0}).differentiable


@pytest.mark.truth
def test_minimum_takes_the_worst_part_and_its_gradient():
    images = IMAGES.clone().requires_grad_()
    scores = Minimum([part(0), part(1)])(images, PROMPTS)
    means = IMAGES.mean((2, 3))
    torch.testing.assert_close(scores, means[:, :2].amin(1))
    scores.sum().backward()
    touched = images.grad.abs().sum((2, 3)) > 0
    assert torch.equal(touched[:, 0], means[:, 0] < means[:, 1]) and not touched[:, 2].any()


@pytest.mark.truth
def test_ranks_share_ties_and_ignore_scale():
    assert fractional_ranks(torch.tensor([3.0, 1.0, 1.0, 9.0])).tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6, 1])
    assert fractional_ranks(torch.tensor([5.0])).tolist() == [0.5]
    cubed = FunctionReward(lambda x, p: 100 * part(0).score(x, p) ** 3, "cubed")
    ensemble = RankEnsemble([part(0), cubed])(IMAGES, PROMPTS)
    torch.testing.assert_close(ensemble, fractional_ranks(IMAGES[:, 0].mean((1, 2))))


def test_ranks_within_a_prompt():
    scores = RankEnsemble([part(0)], by_prompt=True)(IMAGES, PROMPTS)
    assert sorted(scores[:3].tolist()) == [0, 0.5, 1] and sorted(scores[3:].tolist()) == [0, 0.5, 1]


@pytest.mark.truth
def test_standardised_has_mean_0_and_std_1_on_its_batch():
    reward = Standardised.fit(part(0), IMAGES, PROMPTS)
    scores = reward(IMAGES, PROMPTS)
    assert scores.mean().abs() < 1e-5 and scores.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert reward.mean == pytest.approx(IMAGES[:, 0].mean().item(), abs=1e-6) and reward.differentiable


def test_bad_parts_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        Minimum([])
    with pytest.raises(TypeError, match="FunctionReward"):
        RankEnsemble([lambda x, p: x])
    with pytest.raises(ValueError, match="finite"):
        WeightedSum({part(0): float("nan")})
    with pytest.raises(ValueError, match="no scale"):
        Standardised.fit(part(0), torch.zeros(3, 3, 4, 4), ["a"] * 3)
    with pytest.raises(ValueError, match="two pictures"):
        Standardised.fit(part(0), IMAGES[:1], ["a"])
