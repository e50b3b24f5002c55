"""From a clean sample back to noise: deterministic inversion of the sampler, and re-noising by the forward process.

Inversion walks the sampler's grid upwards. The reverse step from t to t' < t evaluates the network at (x_t, t), which
inversion does not know yet; it starts from the guess x_t ~ x_t' and refines it by fixed-point iterations:

    x_t <- solve the step with the network's output at (x_t, t)          (``iterations`` times more)

``iterations=0`` is DDIM inversion (arXiv 2010.02502, section 4.3; diffusers' DDIMInverseScheduler). More iterations are
ReNoise's idea (arXiv 2403.14602). The round trip sample(invert(x)) misses x by O(h^(iterations + 1)) in the step size h
(`tests/truth/test_inversion.py` measures it).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.schedules import Schedule, broadcast


@torch.no_grad()
def invert(
    model: DiffusionModel,
    x0: Tensor,
    condition: Condition,
    *,
    steps: int = 50,
    guidance: float = 1.0,
    iterations: int = 0,
) -> Tensor:
    """The noise that ``sample(..., DDIM(0), steps)`` turns into ``x0``, up to the error above. (B, *latent_shape).

    Args:
        guidance: 1.0 by default: with strong guidance the fixed point need not exist.
        iterations: extra network calls a step.
    """
    times = model.schedule.grid(steps)
    path = inversion_path(model, x0, condition, times=times, guidance=guidance, iterations=iterations)
    return deque(path, maxlen=1).pop()[1]


def inversion_path(
    model: DiffusionModel,
    x0: Tensor,
    condition: Condition,
    *,
    times: Tensor,
    guidance: float = 1.0,
    iterations: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (t, x_t) upwards from ``times[-1]``, where ``x0`` is, to ``times[0]``. ``times`` falls, as of a grid."""
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    x = x0
    upwards = times.flip(0)
    for low, high in pairwise(upwards):
        guess = x
        for _ in range(iterations + 1):
            guess = step_up(x, low, model.predict(guess, high, condition, guidance))
        x = guess
        yield high, x


def step_up(x_low: Tensor, low: Tensor | float, prediction: Prediction) -> Tensor:
    """The sample at ``prediction.t`` whose deterministic step to ``low`` would land on ``x_low``.

    The network's word is held constant: eps for VP (DDIM's formula), the velocity for flow (Euler's).
    """
    a_low, s_low = (broadcast(c, x_low) for c in prediction.schedule.coefficients(low))
    if prediction.schedule.family == "flow":
        return x_low + (prediction.s - s_low) * prediction.velocity
    x0 = (x_low - s_low * prediction.epsilon) / a_low
    return prediction.a * x0 + prediction.s * prediction.epsilon


def renoise(schedule: Schedule, x: Tensor, t: Tensor | float, s: Tensor | float, noise: Tensor) -> Tensor:
    """The forward process from time ``t`` to a noisier time ``s``: (a_s/a_t) x + sqrt(s_s² - (a_s/a_t)² s_t²) z.

    Keeps the marginals: x ~ p_t gives p_s. ``t`` may be the clean time.

    Raises:
        ValueError: ``s`` is cleaner than ``t``.
    """
    a, sigma = schedule.coefficients(t)
    a_up, sigma_up = schedule.coefficients(s)
    ratio = a_up / a
    variance = sigma_up**2 - (ratio * sigma) ** 2
    if bool((variance < -1e-12).any()):
        raise ValueError(f"renoise goes to noisier times: {s} is cleaner than {t}")
    std = variance.clamp(min=0).sqrt()
    return broadcast(ratio, x) * x + broadcast(std, x) * noise

