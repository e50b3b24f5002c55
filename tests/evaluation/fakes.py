"""A fine-tuning technique and a sampler of a few lines, on the shipped model, for tests of the measurement."""

from dataclasses import dataclass

import torch

from surveylib.diffusion.dynamics import DDIM
from surveylib.runs.randomness import normal
from surveylib.techniques.contract import Batch, Preset, Sampler, Samples, Technique, Training
from surveylib.techniques.paths import decode_all, score_all
from surveylib.techniques.test_time.base import NO_TRAINING, base_latents, counted

SHAPES = {"model": "shapes-sd", "reward": "shapes-pickscore", "source": "ours", "cost": "nothing"}


@dataclass(frozen=True)
class FakeConfig:
    push: float = 1.0


class Fake(Technique):
    """Pushes the network's output towards zero; with push 0 it learns nothing, and spends calls all the same."""

    name, Config = "fake", FakeConfig

    def collect(self, model, draw, signal):
        condition = model.encode(draw.prompts)
        x = normal(draw.indices, model.latent_shape, draw.seed, draw.epoch)
        return Batch(condition, {"x": x}, metrics={"reward": float(draw.epoch)})

    def loss(self, model, items, signal, means):
        output = model.output(items["x"], 500.0, items.condition, 1.0)
        return self.config.push * output.flatten(1).pow(2).mean(1), {}


class Idle(Fake):
    """No network call at all."""

    name = "idle"

    def loss(self, model, items, signal, means):
        return 0 * sum(p.sum() for p in model.trainable_parameters()) * torch.ones(len(items)), {}


@dataclass(frozen=True)
class FakeSamplerConfig:
    strength: float = 1.0
    steps: int = 3


class FakeSampler(Sampler):
    """The base sampler with `steps` steps; a strength above 1 takes the negative picture."""

    name, Config = "fake_sampler", FakeSamplerConfig

    @torch.no_grad()
    def sample(self, model, prompts, reward, *, seed=0):
        with counted(model, reward) as ledger:
            latents = base_latents(model, prompts, dynamics=DDIM(0.0), steps=self.config.steps, seed=seed)
            pictures = decode_all(model, latents)
            pictures = 1 - pictures if self.config.strength > 1 else pictures
        return Samples(pictures, latents, score_all(reward, pictures, prompts), [], ledger)


Fake.PRESETS = {"toy": Preset(FakeConfig(), Training(samples=4, lr=1e-3, lora_rank=2), **SHAPES)}
Idle.PRESETS = {"toy": Preset(FakeConfig(), Training(samples=4, lora_rank=2), **SHAPES)}
FakeSampler.PRESETS = {"toy": Preset(FakeSamplerConfig(), NO_TRAINING, **SHAPES)}


class Still(Fake):
    """`Fake` that learns nothing: what it measures is the base model."""

    name = "still"


Still.PRESETS = {"toy": Preset(FakeConfig(push=0.0), Training(samples=4, lr=1e-3, lora_rank=2), **SHAPES)}
