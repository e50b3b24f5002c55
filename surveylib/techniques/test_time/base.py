"""What all test-time methods share: noise by name, the base sampler they are compared with, and counted calls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import Dynamics
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.rollout import sample
from surveylib.rewards.contract import Reward
from surveylib.runs.ledger import Ledger
from surveylib.runs.randomness import generator
from surveylib.techniques.contract import TechniqueError, Training

NO_TRAINING = Training(epochs=0, samples=1, lora_rank=None)  # a preset's `training` where nothing is trained


HALF_SCALE = 8192.0  # of losses whose gradient goes through a float16 network (the DNO authors' first scale)


def loss_scale(model: DiffusionModel) -> float:
    """Factor for a loss before its gradient is taken, to be divided out again: small gradients vanish in float16."""
    return HALF_SCALE if model.dtype == torch.float16 else 1.0


def clip_each(gradient: Tensor, limit: float) -> Tensor:
    """A gradient (B, ...) with the norm of each sample's part at most `limit`."""
    norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    return gradient * (limit / norm).clamp(max=1).reshape(-1, *[1] * (gradient.ndim - 1))


def texts(prompts: Sequence[str] | str) -> list[str]:
    """The prompts as a list.

    Raises:
        TechniqueError: there are none.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise TechniqueError("no prompts: give at least one text")
    return prompts


def noise_generators(
    seed: int, prompts: int, particles: int = 1, stream: str = "rollout"
) -> list[torch.Generator]:
    """One generator for each (prompt, particle), particles of a prompt in a row: a function of (seed, number of the
    prompt, particle, stream). Step after step is drawn from it, so particle k is the same however many there are."""
    return [generator(seed, prompt, particle, stream) for prompt in range(prompts) for particle in range(particles)]


def row_generators(seed: int, rows: Sequence[int], *key: int | str) -> list[torch.Generator]:
    """One generator for the particle 0 of each of the prompts with numbers `rows`, a function of (seed, its number,
    key): noise beside the rollout's, which a method may use or not without moving anything else."""
    return [generator(seed, row, 0, *key) for row in rows]


def prompt_uniforms(seed: int, prompts: int, count: int, *key: int | str) -> Tensor:
    """(prompts, count) uniform in [0, 1), float64 on the CPU; row i is a function of (seed, i, key)."""
    rows = [torch.rand(count, generator=generator(seed, prompt, *key), dtype=torch.float64)
            for prompt in range(prompts)]
    return torch.stack(rows)


@torch.no_grad()
def sample_all(
    model: DiffusionModel,
    condition: Condition,
    generators: list[torch.Generator],
    *,
    dynamics: Dynamics,
    steps: int,
    guidance: float | None,
    batch: int,
) -> Tensor:
    """Latents (B, *latent_shape) of B rollouts, `batch` at a time; generators: B, one a rollout."""
    parts = [sample(model, condition[rows], dynamics=dynamics, steps=steps, guidance=guidance,
                    generator=[generators[i] for i in rows.tolist()])
             for rows in torch.arange(len(condition)).split(batch)]
    return torch.cat(parts)


def base_latents(
    model: DiffusionModel,
    prompts: Sequence[str],
    *,
    dynamics: Dynamics,
    steps: int,
    guidance: float | None = None,
    batch: int = 64,
    seed: int = 0,
) -> Tensor:
    """Latents (B, *latent_shape) of the base sampler with the noise that the test-time methods give their particle 0:
    what their pictures are compared with."""
    prompts = texts(prompts)
    return sample_all(model, model.encode(prompts), noise_generators(seed, len(prompts)), dynamics=dynamics,
                      steps=steps, guidance=guidance, batch=batch)


@contextmanager
def counted(model: DiffusionModel, reward: Reward) -> Iterator[Ledger]:
    """A ledger that counts what model and reward do inside the block, and its wall time."""
    ledger, began = Ledger(), time.perf_counter()
    with ledger.watch(model, reward):
        yield ledger
    ledger.wall = time.perf_counter() - began


def check_rollout(steps: int, eta: float, batch: int) -> None:
    """Refuses settings of a rollout that no sampler takes.

    Raises:
        TechniqueError: naming the setting and its range.
    """
    if steps < 1 or batch < 1:
        raise TechniqueError(f"steps={steps} and batch={batch} must be at least 1")
    if not 0 <= eta <= 1:
        raise TechniqueError(f"eta={eta} must be in [0, 1]: 0 is the ODE, 1 the ancestral sampler")


def take(values: Tensor, chosen: Tensor) -> Tensor:
    """Of values (B K, ...) with K particles a prompt in a row, the one at `chosen` (B,) of each prompt: (B, ...)."""
    grouped = values.reshape(len(chosen), -1, *values.shape[1:])
    return grouped[torch.arange(len(chosen), device=values.device), chosen.to(values.device)]
