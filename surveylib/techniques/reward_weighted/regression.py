"""Weighted regression on the model's own samples: what RWR, RAFT and their kin share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surveylib.diffusion.denoising import denoising_error
from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.timesteps import times_of_uniform
from surveylib.runs.randomness import normal, uniform
from surveylib.techniques.contract import Items


def sample_latents(
    model: DiffusionModel, condition: Condition, generators: Sequence[torch.Generator], *,
    eta: float, steps: int, guidance: float | None, batch: int,
) -> Tensor:
    """Clean latents (N, *latent_shape), `batch` at a time, each with its own generator."""
    return torch.cat([
        sample(model, condition[rows], dynamics=DDIM(eta), steps=steps, guidance=guidance,
               generator=[generators[i] for i in rows.tolist()])
        for rows in torch.arange(len(condition)).split(batch)
    ])


def draws(weights: Tensor, times: int) -> dict[str, Tensor]:
    """The batch field that makes `times` items of each sample, (N, times): the sample's weight."""
    return {"weight": weights[:, None].expand(-1, times)}


def weighted_denoising_error(model: DiffusionModel, items: Items, guidance: float) -> Tensor:
    """weight * |prediction - target|^2 (mean over dimensions) at a fresh time and noise for each item, (M,).

    Items hold ``x0`` and ``weight``. The network is not called on items whose weight is 0.
    """
    loss = items["weight"] * torch.zeros_like(items["weight"])
    rows = items["weight"].nonzero().flatten()
    if not len(rows):
        return loss
    x0, keys = items["x0"][rows], items.keys[rows.cpu()]
    t = times_of_uniform(uniform(keys, "time"), model.schedule).to(x0.device)
    noise = normal(keys, model.latent_shape, "noise").to(x0)
    error = denoising_error(model, x0, items.condition[rows], t, noise, guidance=guidance)
    return loss.index_add(0, rows, items["weight"][rows] * error)
