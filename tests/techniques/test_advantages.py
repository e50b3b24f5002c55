"""Advantages by group and by prompt, known answers."""

import pytest
import torch

from surveylib.techniques.advantages import PromptTracker, group_advantages

GROUPS = torch.tensor([0, 0, 1, 1, 1])
REWARDS = torch.tensor([1.0, 3.0, 0.0, 0.0, 6.0])


def test_group_advantages_are_centred_and_divided_as_asked():
    centred = torch.tensor([-1.0, 1.0, -2.0, -2.0, 4.0])
    assert torch.equal(group_advantages(REWARDS, GROUPS, scale="none"), centred)
    assert torch.allclose(group_advantages(REWARDS, GROUPS, eps=0.0), centred / REWARDS.std(correction=0))
    stds = torch.tensor([1.0, 1.0, 8**0.5, 8**0.5, 8**0.5])
    assert torch.allclose(group_advantages(REWARDS, GROUPS, scale="group", eps=0.0), centred / stds)


@pytest.mark.parametrize("value", [0.3, 21.7, 1e-3, -5e4])
@pytest.mark.parametrize("scale", ["group", "global", "none"])
def test_equal_rewards_give_exactly_zero(value, scale):
    equal = torch.full((6,), value)
    assert torch.equal(group_advantages(equal, torch.zeros(6, dtype=torch.long), scale=scale), torch.zeros(6))
    mixed = torch.cat([equal, torch.randn(6)])
    found = group_advantages(mixed, torch.arange(2).repeat_interleave(6), scale=scale)
    assert torch.equal(found[:6], torch.zeros(6)) and found[6:].abs().min() > 0


@pytest.mark.parametrize("value", [0.3, 21.7, 1e-3])
@pytest.mark.parametrize("least", [2, 100])
def test_tracker_gives_exactly_zero_for_equal_rewards(value, least):
    tracker = PromptTracker(least=least)
    for _ in range(2):
        assert torch.equal(tracker.advantages(["a"] * 7, torch.full((7,), value)), torch.zeros(7))


def test_tracker_takes_a_prompts_own_statistics_once_it_has_enough():
    tracker = PromptTracker(size=4, least=3)
    first = tracker.advantages(["a", "b"], torch.tensor([0.0, 2.0]), eps=0.0)
    assert first.tolist() == [-1.0, 1.0]  # of the batch
    tracker.advantages(["a", "a"], torch.tensor([2.0, 4.0]))
    found = tracker.advantages(["a"], torch.tensor([6.0]), eps=0.0)  # a: 0 2 4 6
    assert found.item() == pytest.approx(3 / 5**0.5)
    found = tracker.advantages(["a"], torch.tensor([8.0]), eps=0.0)  # a: 2 4 6 8, the oldest is gone
    assert found.item() == pytest.approx(3 / 5**0.5)
    again = PromptTracker(size=4, least=3)
    again.load_state_dict(tracker.state_dict())
    assert torch.equal(again.advantages(["a"], torch.tensor([1.0])), tracker.advantages(["a"], torch.tensor([1.0])))


def test_a_group_of_one_and_an_unknown_scale_are_refused():
    with pytest.raises(ValueError, match="one sample"):
        group_advantages(REWARDS, torch.tensor([0, 0, 1, 1, 2]))
    with pytest.raises(ValueError, match="'std'"):
        group_advantages(REWARDS, GROUPS, scale="std")
