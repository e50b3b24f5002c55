"""Preference data by name."""

import pytest
import torch

from surveylib.alignment.preferences import load_preferences, own_preferences
from surveylib.alignment.run import Recipe, run
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.registry import load_reward
from surveylib.techniques.contract import TechniqueError


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
