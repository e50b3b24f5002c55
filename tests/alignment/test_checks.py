"""Changed settings are refused at the border when they do not fit, and every preset's own settings fit."""

from dataclasses import asdict

import pytest

from surveylib.alignment.checks import check_settings, fits
from surveylib.alignment.run import Recipe
from surveylib.techniques.contract import TechniqueError, Training
from surveylib.techniques.registry import preset, technique_names


@pytest.mark.parametrize("technique", technique_names())
@pytest.mark.parametrize("scale", ["toy", "single", "full"])
def test_the_presets_fit(technique, scale):
    chosen = preset(technique, scale)
    check_settings(type(chosen.config), asdict(chosen.config), technique)
    check_settings(Training, asdict(chosen.training), technique)


@pytest.mark.parametrize("training", [
    {"clip_norm": -1}, {"warmup": -3}, {"ema": 2}, {"ema": 1.0}, {"betas": (0.9,)}, {"betas": (0.9, 1.0)},
    {"samples": "abc"}, {"samples": True}, {"epochs": 1.5}, {"micro_batch": 1.5}, {"lora_targets": "abc"}, {"lr": None},
], ids=str)
def test_a_training_that_does_not_fit(training):
    (name, value), = training.items()
    with pytest.raises(TechniqueError) as refused:
        Recipe("ddpo", "rehearsal", training=training).preset()
    assert name in str(refused.value) and repr(value) in str(refused.value) and "allowed" in str(refused.value)


@pytest.mark.parametrize(("technique", "config"), [
    ("ddpo", {"clip_advantage": -1}), ("ddpo", {"tracker_size": 0}), ("diffusion_kto", {"empty_prompts": 7}),
    ("ddpo", {"guidance": "abc"}), ("ddpo", {"reduction": "median"})], ids=str)
def test_settings_of_a_technique_that_do_not_fit(technique, config):
    with pytest.raises(TechniqueError, match=f"{next(iter(config))}.*allowed"):
        Recipe(technique, "rehearsal", config=config).preset()


def test_what_fits():
    assert fits(1, float) and fits([0.9, 0.99], tuple[float, float]) and fits(None, int | None)
    assert not fits(True, int) and not fits(1.0, int)
    assert not fits("a", tuple[str, ...]) and not fits((1,), tuple[str, ...])
