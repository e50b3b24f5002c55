"""The command that makes the shipped rewards, end to end on a random trunk and a few prompts."""

import dataclasses
import json

import pytest
import torch
from clip_for_tests import make_trunk

from surveylib.rewards.learned import toy
from surveylib.rewards.learned.store import load_learned
from surveylib.rewards.learned.train import PRESETS


@pytest.mark.parametrize("name", sorted(toy.REWARDS))
def test_a_reward_is_trained_scored_and_described(name, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "load_trunk", lambda source, unlock: make_trunk(unlock))
    monkeypatch.setattr(toy, "load_learned", lambda folder: load_learned(folder, make_trunk()))
    monkeypatch.setattr(toy.test_pairs, "__defaults__", (6,))
    config = dataclasses.replace(PRESETS[toy.REWARDS[name].preset], steps=2, batch=8, every=2)
    assert len(list(toy.make(name, tmp_path, 12, "rendered", "a test", config))) == 2
    facts = json.loads((tmp_path / name / "model" / "scores.json").read_text())
    card = (tmp_path / name / "model" / "README.md").read_text()
    for split in toy.SUITES:
        assert 0 <= facts[split]["accuracy"]["low"] <= facts[split]["accuracy"]["value"] <= 1
        assert f"{100 * facts[split]['accuracy']['value']:.1f} %" in card and split in card
        assert facts[split]["ceiling"] is None or 0.5 < facts[split]["ceiling"] <= 1
    assert facts["kilobytes"] < 2000 and (facts["held-out"]["ceiling"] is None) == (name == "shapes-aesthetic")


@pytest.mark.truth
def test_choice_probabilities_are_the_mean_over_people_without_ties():
    spec = toy.REWARDS["shapes-pickscore"]
    pairs, pool = toy.test_pairs(spec, "held-out", "rendered", 6)
    p = toy.choice_probabilities(pairs, pool)
    row = len(pairs) // 2
    pictures = pairs.images[torch.stack([pairs.first[row], pairs.second[row]])]
    utilities = pool.utility(pictures, [pairs.prompts[row]] * 2)
    by_hand = torch.stack([a.pair_probabilities(*u)[0] for a, u in zip(pool.annotators, utilities)]).mean(0)
    assert p[row].item() == pytest.approx((by_hand[0] / (by_hand[0] + by_hand[2])).item(), abs=1e-6)
    assert ((p > 0) & (p < 1)).all() and toy.category_of("a red circle") == "colours"
