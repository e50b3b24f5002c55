"""Changed settings are refused at the border when they do not fit, and every preset's own settings fit."""

import warnings
from dataclasses import asdict

import pytest

from surveylib.alignment.run import Recipe
from surveylib.techniques.checks import check_settings, fits, warn_of_clip
from surveylib.techniques.contract import TechniqueError, Training
from surveylib.techniques.policy_gradient.ddpo import DDPO, DDPOConfig
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
    ("dpok", {"value_steps": 0}), ("dpok", {"value_batch": 0}), ("dpok", {"clip": float("inf")}),
    ("raft", {"eta": 3}), ("diffusion_dpo", {"beta": float("inf")}), ("dpok", {"kl_weight": float("nan")}),
    ("ddpo", {"guidance": "abc"}), ("ddpo", {"reduction": "median"})], ids=str)
def test_settings_of_a_technique_that_do_not_fit(technique, config):
    with pytest.raises(TechniqueError, match=f"{next(iter(config))}.*allowed"):
        Recipe(technique, "rehearsal", config=config).preset()


def test_what_fits():
    assert fits(1, float) and fits([0.9, 0.99], tuple[float, float]) and fits(None, int | None)
    assert not fits(True, int) and not fits(1.0, int)
    assert not fits("a", tuple[str, ...]) and not fits((1,), tuple[str, ...])


@pytest.mark.parametrize("make", [
    lambda: DDPO(DDPOConfig(clip_advantage=-1)), lambda: Training(clip_norm=-1), lambda: Training(lr=float("nan")),
    lambda: Training(ema=2), lambda: Training(lora_rank=0), lambda: DDPO(DDPOConfig(reduction="max")),
])
def test_from_python_too(make):
    with pytest.raises(TechniqueError, match="allowed"):
        make()


def test_more_rewards_than_are_kept_cannot_be_asked_for():
    with pytest.raises(TechniqueError, match=r"tracker_least=99 must lie between 1 and tracker_size=4"):
        DDPOConfig(tracker_least=99, tracker_size=4)


def test_sums_of_log_probabilities_with_the_clip_of_means_are_warned_of():
    with pytest.warns(UserWarning, match=r"clip=0.0001 belongs to reduction='mean'.*512 dimensions.*clip=0.0512"):
        warn_of_clip(DDPOConfig(reduction="sum"), 512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for config in (DDPOConfig(), DDPOConfig(reduction="sum", clip=0.05), DDPOConfig("sf", reduction="sum")):
            warn_of_clip(config, 512)
        warn_of_clip(DDPOConfig(reduction="sum"), 2)
