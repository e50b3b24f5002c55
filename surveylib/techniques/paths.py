"""Rollouts kept for learning: the path, its log-probabilities, the pictures at its end and their rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import Dynamics, Reduction
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.rollout import rollout
from surveylib.rewards.contract import Reward


@dataclass(frozen=True, eq=False)
class Paths:
    """N stored rollouts of T steps.

    x: (N, T + 1, *latent_shape), from noise to the clean sample, in the type of storage. t: (T + 1,) float64 times.
    log_prob: (N, T) under the weights that sampled; nan in steps without noise. stochastic: (T,) bool.
    mean: (N, T, *latent_shape) means of the transitions, or None.
    """

    x: Tensor
    t: Tensor
    log_prob: Tensor
    stochastic: Tensor
    mean: Tensor | None = None

    @property
    def x0(self) -> Tensor:
        """(N, *latent_shape), the clean samples."""
        return self.x[:, -1]

    def times(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Times (t, s) of the given steps, each (N, len(steps)), float64: what a batch stores by step."""
        n = len(self.x)
        return self.t[steps].expand(n, -1), self.t[steps + 1].expand(n, -1)


@torch.no_grad()
def sample_paths(
    model: DiffusionModel,
    condition: Condition,
    *,
    dynamics: Dynamics | Sequence[Dynamics],
    steps: int | Tensor,
    generators: list[torch.Generator],
    guidance: float | None = None,
    reduction: Reduction = "mean",
    start: Tensor | None = None,
    batch: int = 64,
    keep_means: bool = False,
) -> Paths:
    """Rolls out N samples, `batch` at a time, and keeps everything. Memory: N (T + 1) latents, twice with means.

    Args:
        generators: N, one a sample, for initial and step noise. start: (N, *latent_shape) initial noise if given.
        reduction: of the log-probabilities; there is no right default, each method says its own.
        dynamics, steps, guidance: as in `rollout`.
    """
    parts = []
    for rows in torch.arange(len(condition)).split(batch):
        chosen = [generators[i] for i in rows.tolist()]
        steps_done = rollout(model, condition[rows], dynamics=dynamics, steps=steps, guidance=guidance,
                             x=None if start is None else start[rows.to(start.device)], generator=chosen,
                             reduction=reduction)
        parts.append(_keep(steps_done, len(rows), keep_means))
    first = parts[0]
    mean = torch.cat([p.mean for p in parts]) if keep_means else None
    return Paths(torch.cat([p.x for p in parts]), first.t, torch.cat([p.log_prob for p in parts]), first.stochastic,
                 mean)


def _keep(steps: Iterator, n: int, keep_means: bool) -> Paths:
    x, t, log_prob, stochastic, means = [], [], [], [], []
    for step in steps:
        if not x:
            x.append(step.x)
            t.append(step.t)
        x.append(step.x_next)
        t.append(step.s)
        stochastic.append(step.log_prob is not None)
        log_prob.append(step.x.new_full((n,), float("nan")) if step.log_prob is None else step.log_prob)
        if keep_means:
            means.append(step.transition.mean)
    return Paths(torch.stack(x, 1), torch.stack(t), torch.stack(log_prob, 1), torch.tensor(stochastic),
                 torch.stack(means, 1) if keep_means else None)


@torch.no_grad()
def decode_all(model: DiffusionModel, latents: Tensor, batch: int = 64) -> Tensor:
    """Pictures of N latents, clamped to [0, 1], `batch` at a time, on the model's device."""
    return torch.cat([model.decode(part, clamp=True) for part in latents.split(batch)])


@torch.no_grad()
def score_all(reward: Reward, pictures: Tensor, prompts: Sequence[str], batch: int = 64) -> Tensor:
    """Rewards (N,) of N pictures, `batch` at a time."""
    pieces = range(0, len(pictures), batch)
    return torch.cat([reward(pictures[i : i + batch], list(prompts[i : i + batch])) for i in pieces])
