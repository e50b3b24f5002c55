"""The techniques that also run on the flow model of the Shapes world, `shapes-sd3`: what each gains or learns there."""

from dataclasses import replace

import pytest
import torch

from surveylib.alignment.engine import align, prepare_weights
from surveylib.alignment.settings import setting
from surveylib.diffusion.dynamics import DDIM
from surveylib.rewards.registry import load_reward
from surveylib.techniques.contract import Draw, Training
from surveylib.techniques.paths import score_all
from surveylib.techniques.preference.data import sampled
from surveylib.techniques.preference.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from surveylib.techniques.registry import make, preset
from surveylib.techniques.test_time.base import base_latents

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green", "yellow") for shape in ("circle", "square")]
BRIGHT = load_reward("brightness")
SHORT = {
    "draft": ({"steps": 4, "guidance": 1.0, "last": 1}, {"epochs": 8, "samples": 8, "lr": 2e-3, "micro_batch": 8}),
    "refl": ({"steps": 6, "first": 3, "last": 5, "guidance": 1.0},
             {"epochs": 8, "samples": 8, "lr": 2e-3, "micro_batch": 8}),
}
SEARCHES = {
    "best_of_n": {"n": 4, "steps": 5},
    "fk_steering": {"particles": 4, "steps": 6, "resample_at": (0.5,), "strength": 20.0},
}


@pytest.fixture(scope="module")
def place():
    return setting("toy", family="flow")


@torch.no_grad()
def drawn(model, seed=7, steps=6, each=1):
    """Pictures of the prompts from noise that does not depend on the model's weights."""
    return model.decode(base_latents(model, PROMPTS * each, dynamics=DDIM(0.0), steps=steps, guidance=1.0, seed=seed),
                        clamp=True)


def test_the_flow_family_is_the_shipped_model_at_toy_size(place):
    assert place.model_name == "shapes-sd3" and place.model.schedule.__class__.__name__ == "FlowSchedule"


@pytest.mark.parametrize("name", sorted(SHORT))
def test_a_reward_gradient_raises_its_reward_on_other_noise(place, name):
    settings, plan = SHORT[name]
    chosen = preset(name, "toy")
    training = replace(chosen.training, sample_batch=32, **({"samples_per_prompt": 1} | plan))
    model = place.load()
    before = score_all(BRIGHT, drawn(model, each=4), PROMPTS * 4)
    for _ in align(model, make(name, replace(chosen.config, **settings)), BRIGHT, PROMPTS, training):
        pass
    gain = score_all(BRIGHT, drawn(model, each=4), PROMPTS * 4) - before
    assert gain.mean() > 2 * gain.std() / len(gain) ** 0.5 and gain.mean() > 0.01


@pytest.mark.parametrize("dynamics", ["sde", "cps"])
def test_flow_grpo_starts_at_ratio_one_and_its_loss_falls(place, dynamics):
    settings = {"steps": 4, "guidance": 1.0, "beta": 0.0, "dynamics": dynamics, "clip": 0.5}
    technique = make("flow_grpo", replace(preset("flow_grpo", "toy").config, **settings))
    model = place.load()
    prepare_weights(model, Training(lora_rank=8), 0)
    items = technique.collect(model, Draw.of(PROMPTS, per_prompt=4), BRIGHT).all_items()
    optimiser = torch.optim.AdamW(model.trainable_parameters(), lr=1e-4)
    means = []
    for _ in range(4):
        losses, metrics = technique.loss(model, items, BRIGHT, {})
        means.append(losses.mean().item())
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
    assert abs(means[0]) < 1e-5  # ratio one: the advantages of every group sum to zero
    assert means == sorted(means, reverse=True) and means[-1] < -1e-5 and metrics["approx_kl"].max() > 0


def test_diffusion_dpo_learns_to_prefer_what_was_chosen(place):
    model = place.load()
    data = sampled(model, PROMPTS, BRIGHT, kind="pairs", k=2, temperature=1e-3, steps=4, seed=0)
    training = Training(epochs=12, samples=8, lr=2e-3, lora_rank=8, micro_batch=16)
    prepare_weights(model, training, 0)
    rows = [progress.metrics for progress in align(model, DiffusionDPO(DiffusionDPOConfig(beta=200.0)), data, [],
                                                   training)]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and rows[0]["implicit_accuracy"] == 0.5
    late = sum(row["implicit_accuracy"] for row in rows[-4:]) / 4
    assert late > 0.7


@pytest.mark.parametrize(("name", "settings"), SEARCHES.items())
def test_searching_finds_better_pictures_than_the_base(place, name, settings):
    chosen = replace(preset(name, "toy").config, **settings)
    alone = replace(chosen, **{count: 1 for count in ("n", "particles") if count in settings})  # the base sampler
    result, base = (make(name, c).sample(place.model, PROMPTS, BRIGHT, seed=0) for c in (chosen, alone))
    assert torch.allclose(score_all(BRIGHT, result.images, PROMPTS), result.rewards, atol=1e-5)
    assert (result.rewards - base.rewards).mean() > 0.01


def test_the_same_noise_gives_the_same_picture(place):
    with torch.no_grad():
        first, second = drawn(place.model), drawn(place.load())
    assert torch.equal(first, second)
