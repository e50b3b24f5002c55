"""Preference data by name."""

from dataclasses import replace

import pytest
import torch

from surveylib.alignment import preferences
from surveylib.alignment.preferences import liked_and_disliked, load_preferences, own_preferences
from surveylib.alignment.run import Recipe, run
from surveylib.diffusion.zoo import load_model
from surveylib.feedback.datasets import CARDS
from surveylib.rewards.registry import load_reward
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.registry import preset, technique_class


@pytest.mark.parametrize("kind, k", [("pairs", 2), ("rankings", 4), ("binary", 1)])
def test_the_shipped_records(kind, k):
    data = load_preferences("shapes-small", kind, load_model("shapes-sd"))
    feedback = data.take(torch.arange(3))
    assert feedback.samples.shape == (3, k, 3, 64, 64)
    assert feedback.samples.min() >= 0 and feedback.samples.max() <= 1 and feedback.samples.std() > 0.05
    assert len(set(data.labels.flatten().tolist())) > 1  # both answers occur
    assert len(data) >= 30


@pytest.mark.parametrize("name, words", [("nonsense", "unknown preference data"), ("gone.parquet", "no preference")])
def test_names_that_do_not_exist(name, words):
    with pytest.raises((TechniqueError, FileNotFoundError), match=words):
        load_preferences(name, "pairs", load_model("tiny-sd"))


@pytest.mark.parametrize("technique", ["diffusion_dpo", "diffusion_kto", "rankdpo"])
def test_rehearsal_of_the_preference_techniques(technique, tmp_path):
    rows = [progress.metrics for progress in run(Recipe(technique, scale="rehearsal"), tmp_path)]
    assert len(rows) == 2 and all(row["loss"] == row["loss"] for row in rows)


def test_latents_are_encoded_once(monkeypatch):
    model = load_model("tiny-sd")
    data = load_preferences("tiny-pairs", "pairs", model)
    rows = torch.arange(len(data))
    first = data.latents(model, rows)
    monkeypatch.setattr(model, "encode_images", None)
    assert torch.equal(first, data.latents(model, rows))


@pytest.mark.parametrize("kind, k", [("pairs", 2), ("rankings", 4), ("binary", 1)])
def test_own_pictures_are_a_function_of_the_seed(kind, k):
    model, bright = load_model("shapes-sd"), load_reward("brightness")
    first, again, other = (own_preferences(model, kind, 3, reward=bright, steps=2, seed=s) for s in (0, 0, 1))
    assert first.samples.shape == (3 * k, 3, 64, 64) and torch.equal(first.samples, again.samples)
    assert torch.equal(first.labels, again.labels) and not torch.equal(first.samples, other.samples)


def test_own_pictures_of_an_unknown_kind():
    with pytest.raises(TechniqueError, match="unknown kind of preference data 'triples'"):
        own_preferences(load_model("shapes-sd"), "triples", 3)


def test_likes_out_of_pairs(monkeypatch):
    """What the preset of Diffusion-KTO reads: a public data set of pairs, one of them a tie."""
    pairs = [r for r in preferences.read_records(preferences.SMALL) if r.kind == "pair" and r.preference in (0, 1)][:5]
    tie = replace(pairs[0], preference=0.5)
    likes = list(liked_and_disliked([*pairs, tie]))
    assert [r.kind for r in likes] == ["binary"] * 10 + ["pair"]
    for pair, first, second in zip(pairs, likes[0:10:2], likes[1:10:2]):
        assert first.images == pair.images[:1] and second.images == pair.images[1:]
        assert first.liked == (pair.preference == 1) and second.liked != first.liked
    monkeypatch.setattr(preferences, "load", lambda key: iter([*pairs, tie]))
    data = load_preferences("pickapic", "binary", load_model("shapes-sd"))
    assert len(data) == 10 and data.labels.sum() == 5 and data.skipped == {"a record of kind pair": 1}
    assert len(load_preferences("pickapic", "pairs", load_model("shapes-sd"))) == 5


def test_own_pictures_answered_by_a_named_reward():
    """What the preset of RankDPO reads."""
    data = load_preferences("own:brightness", "rankings", load_model("tiny-sd"), prompts=["a cat", "a dog"])
    pictures, shares = data.take(torch.arange(2)).samples, data.labels
    assert pictures.shape[:2] == (2, 4)
    assert torch.equal(pictures.flatten(2).mean(2).argmax(1), shares.argmax(1)) and shares.max() == 1


@pytest.mark.parametrize("technique", ["diffusion_dpo", "diffusion_kto", "rankdpo", "d3po"])
@pytest.mark.parametrize("scale", ["single", "full"])
def test_a_preset_names_data_of_the_kind_it_needs(technique, scale):
    """Public data must hold the kind, or one that it can be made of."""
    needs, name = set(technique_class(technique).needs), preset(technique, scale).reward
    if "reward" in needs or name.startswith("own:"):
        return
    made_of = {"pairs": {"pair"}, "rankings": {"ranking"}, "binary": {"binary", "pair"}}
    kinds = CARDS[preferences.ALIASES.get(name, name)].kinds
    assert all(made_of[kind] & set(kinds) for kind in needs & set(made_of))
