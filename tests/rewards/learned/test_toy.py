"""The command that makes the shipped rewards, end to end on a random trunk and a few prompts."""

import dataclasses
import json

import pytest
import torch
from clip_for_tests import make_trunk

from surveylib.feedback.pairs import to_pairs
from surveylib.rewards.learned import toy
from surveylib.rewards.learned.store import load_learned
from surveylib.rewards.learned.train import PRESETS
from surveylib.rewards.learned.trunk import load_trunk
from surveylib.rewards.registry import load_reward


@pytest.mark.parametrize("name", sorted(toy.REWARDS))
def test_a_reward_is_trained_scored_and_described(name, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "load_trunk", lambda source, unlock: make_trunk(unlock))
    monkeypatch.setattr(toy, "load_learned", lambda folder: load_learned(folder, make_trunk()))
    monkeypatch.setattr(toy.test_records, "__defaults__", (6,))
    monkeypatch.setattr(toy.attribute_accuracy, "__defaults__", (4, 0))
    config = dataclasses.replace(PRESETS[toy.REWARDS[name].preset], steps=2, batch=8, every=2)
    assert len(list(toy.make(name, tmp_path, 12, "rendered", "a test", config))) == 2
    facts = json.loads((tmp_path / name / "model" / "scores.json").read_text())
    card = (tmp_path / name / "model" / "README.md").read_text()
    main = "spearman" if name == "shapes-aesthetic" else "accuracy"
    for split in toy.SUITES:
        got = facts[split][main]
        assert -1 <= got["low"] <= got["value"] <= got["high"] <= 1 and split in card
        assert (f"{got['value']:.3f}" if main == "spearman" else f"{100 * got['value']:.1f} %") in card
        assert (0.5 if main == "accuracy" else 0) < facts[split]["ceiling"] <= 1
    assert facts["kilobytes"] < 2000
    assert ("one attribute" in facts) == ("One wrong attribute" in card) == (name != "shapes-aesthetic")


class Constant:
    def score(self, images, prompts):
        return torch.zeros(len(images))


class Against:
    """The judge with its sign turned."""

    def score(self, images, prompts):
        return -load_reward("faithfulness").score(images, prompts)


@pytest.mark.truth
@pytest.mark.parametrize("reward, rate", [(load_reward("faithfulness"), 1.0), (Against(), 0.0), (Constant(), 0.5)])
def test_one_wrong_attribute_is_seen_by_the_judge_alone(reward, rate):
    table = toy.attribute_accuracy(reward, 20, seed=3)
    assert list(table) == [*toy.KINDS, "swap"]
    assert all(row == {"rate": rate, "pairs": 20} for row in table.values()), table


def test_pairs_share_what_is_not_changed_and_bad_input_is_refused():
    prompts, right, wrong = toy.attribute_pairs("background", 8, seed=1)
    again = toy.attribute_pairs("background", 8, seed=1)
    assert prompts == again[0] and torch.equal(right, again[1]) and torch.equal(wrong, again[2])
    same = (right == wrong).all(1).flatten(1).float().mean(1)  # the things' own pixels, the background apart
    assert ((same > 0.01) & (same < 0.9)).all()
    for kind, n in (("texture", 8), ("shape", 0)):
        with pytest.raises(ValueError, match="kind is one of shape"):
            toy.attribute_pairs(kind, n)


def test_loading_the_trunk_draws_no_progress_bar(capfd):
    load_trunk()
    assert "Loading weights" not in "".join(capfd.readouterr())


@pytest.mark.truth
def test_choice_probabilities_are_the_mean_over_people_without_ties():
    spec = toy.REWARDS["shapes-pickscore"]
    records, pool = toy.test_records(spec, "pickapic", "held-out", "rendered", 6)
    pairs = to_pairs(records)
    p = toy.choice_probabilities(pairs, pool)
    row = len(pairs) // 2
    pictures = pairs.images[torch.stack([pairs.first[row], pairs.second[row]])]
    utilities = pool.utility(pictures, [pairs.prompts[row]] * 2)
    by_hand = torch.stack([a.pair_probabilities(*u)[0] for a, u in zip(pool.annotators, utilities)]).mean(0)
    assert p[row].item() == pytest.approx((by_hand[0] / (by_hand[0] + by_hand[2])).item(), abs=1e-6)
    assert ((p > 0) & (p < 1)).all() and toy.category_of("a red circle") == "colours"
