"""The denoising error of clean samples: what pre-training, weighted regression and preference losses are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.predictions import check_kind, from_x0_epsilon
from surveylib.diffusion.schedules import broadcast


def denoising_error(
    model: DiffusionModel,
    x0: Tensor,
    condition: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    guidance: float = 1.0,
    kind: str | None = None,
) -> Tensor:
    """Per-sample mean squared error of the prediction at x_t = a x0 + s eps. Shape (B,), float32.

    The mean is over all dimensions but the batch, as in every official implementation that the cards cite; papers
    write the sum. Pairs of a preference loss share ``t`` and ``noise``: pass the same tensors for winner and loser.

    Args:
        model, condition: with B prompts.
        x0, noise: (B, *latent_shape). t: (B,) or a number.
        guidance: 1.0 (no guidance) is what models are trained with.
        kind: parametrisation in which the error is measured; default: the model's own (epsilon, velocity, ...).
    """
    kind = check_kind(kind or model.prediction_kind)
    prediction = model.predict(model.schedule.add_noise(x0, noise, t), t, condition, guidance)
    a, s = (broadcast(c, x0) for c in model.schedule.coefficients(t))
    target = from_x0_epsilon(x0, noise, kind, a, s)
    error = (prediction.in_kind(kind) - target).to(torch.promote_types(x0.dtype, torch.float32))
    return error.square().flatten(1).mean(1)
