"""Preference data by name."""

import pytest
import torch

from surveylib.alignment.preferences import load_preferences
from surveylib.alignment.run import Recipe, run
from surveylib.diffusion.zoo import load_model
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
