"""Which times a denoising loss is evaluated at: samplers of t for a batch.

Every sampler is ``sampler(n, schedule, *, generator=None, ...) -> (n,)`` on the CPU, int64 timesteps for VP schedules
and float32 sigmas in (0, 1] for flow schedules. A CPU generator makes them a function of the seed on every device.

Sources: uniform, DDPM (arXiv 2006.11239, algorithm 1); logit-normal, SD3 (arXiv 2403.03206, eq. 19); stratified,
variational diffusion models (arXiv 2107.00630); the rollout grid is the set of times that a sampler with
``steps`` network calls visits (few-step models, policy gradients).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surveylib.diffusion.schedules import FlowSchedule, Schedule, shift_sigma


def uniform(n: int, schedule: Schedule, *, generator: torch.Generator | None = None, shifted: bool = False) -> Tensor:
    """Independent uniform times. ``shifted`` (flow): the schedule's shift is applied, as in sampling."""
    return times_of_uniform(torch.rand(n, generator=generator), schedule, shifted)


def logit_normal(
    n: int,
    schedule: Schedule,
    *,
    generator: torch.Generator | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    shifted: bool = False,
) -> Tensor:
    """logit of the noise level ~ N(mean, std²): mean > 0 leans towards noise. SD3 trains with (0, 1)."""
    return times_of_uniform(torch.sigmoid(mean + std * torch.randn(n, generator=generator)), schedule, shifted)


def stratified(
    n: int, schedule: Schedule, *, generator: torch.Generator | None = None, shifted: bool = False
) -> Tensor:
    """One uniform time in each of ``n`` equal strata, in random order: same marginal, less variance of the mean."""
    strata = torch.randperm(n, generator=generator)
    return times_of_uniform((strata + torch.rand(n, generator=generator)) / n, schedule, shifted)


def rollout_grid(
    n: int,
    schedule: Schedule,
    *,
    generator: torch.Generator | None = None,
    steps: int = 20,
    first: int = 0,
    last: int | None = None,
) -> Tensor:
    """Independent times out of the ``steps`` that a sampler visits; ``[first, last)`` restricts the step indices."""
    times = schedule.grid(steps)[:-1][first:last]
    if not len(times):
        raise ValueError(f"no step left between {first} and {last} of {steps} steps")
    chosen = times[torch.randint(len(times), (n,), generator=generator)]
    return chosen.long() if schedule.family == "vp" else chosen.float()


def times_of_uniform(u: Tensor, schedule: Schedule, shifted: bool = False) -> Tensor:
    """Numbers in [0, 1] (0 clean, 1 noisy) as times: floor(T u) for VP, sigma for flow (never exactly 0)."""
    if schedule.family == "vp":
        T = schedule.num_train_timesteps
        return (u * T).long().clamp(0, T - 1)
    sigma = u.clamp(min=1e-5)
    if shifted and isinstance(schedule, FlowSchedule):
        sigma = shift_sigma(sigma, schedule.shift)
    return sigma.float()


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "stratified": stratified,
    "rollout_grid": rollout_grid,
}


def sample_times(name: str, n: int, schedule: Schedule, **options: Any) -> Tensor:
    """Times by the sampler's name (see `SAMPLERS`).

    Raises:
        ValueError: an unknown name; the error lists what exists.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown timestep sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name](n, schedule, **options)
