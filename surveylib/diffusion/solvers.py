"""Deterministic solvers of the probability-flow ODE, for sampling only (no transition, no log-probability).

In the coordinates y = x / (a + s), sigma = s / (a + s) the ODE of both families is dy/dsigma = eps - x0, regular at
both ends. Euler's method in them is DDIM with eta = 0.

Sources: Heun, arXiv 2206.00364, algorithm 1; DPM-Solver++, arXiv 2211.01095 (through diffusers).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor
from tqdm.auto import tqdm

from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.schedules import VPSchedule


class Solver:
    """Base class: `sample` carries x from the first of ``times`` to the last.

    Attributes:
        order: global order of the method in the step size.
        calls_per_step: network calls of a step (the last step may need fewer).
    """

    name: ClassVar[str]
    order: ClassVar[int]
    calls_per_step: ClassVar[int]

    def sample(
        self,
        model: DiffusionModel,
        condition: Condition,
        *,
        x: Tensor,
        times: Tensor,
        guidance: float | Tensor | None = None,
        progress: bool | str = False,
    ) -> Tensor:
        """Clean samples (B, *latent_shape). ``times`` falls, as of ``schedule.grid``; ``x`` is at the first time."""
        raise NotImplementedError


class Euler(Solver):
    """First order, one call a step; equal to DDIM with eta = 0."""

    name, order, calls_per_step = "euler", 1, 1

    def sample(self, model, condition, *, x, times, guidance=None, progress=False):
        for t, s in _pairs(times, progress):
            prediction = model.predict(x, t, condition, guidance)
            x = _line(model, x, t, s, prediction.velocity)
        return x


class Heun(Solver):
    """Second order: the mean of the velocities at both ends of the step; Euler in the last step, to the clean time."""

    name, order, calls_per_step = "heun", 2, 2

    def sample(self, model, condition, *, x, times, guidance=None, progress=False):
        for t, s in _pairs(times, progress):
            velocity = model.predict(x, t, condition, guidance).velocity
            end = _line(model, x, t, s, velocity)
            if not bool(model.schedule.is_end(s)):
                velocity = (velocity + model.predict(end, s, condition, guidance).velocity) / 2
                end = _line(model, x, t, s, velocity)
            x = end
        return x


class DPMSolverPP(Solver):
    """DPM-Solver++(2M) of diffusers on this library's times: second order, one call a step."""

    name, order, calls_per_step = "dpm_solver_pp", 2, 1

    def sample(self, model, condition, *, x, times, guidance=None, progress=False):
        scheduler = _dpm_scheduler(model, times)
        for index, (t, _) in enumerate(_pairs(times, progress)):
            prediction = model.predict(x, t, condition, guidance)
            output = prediction.velocity if model.schedule.family == "flow" else prediction.x0
            x = scheduler.step(output, scheduler.timesteps[index], x, return_dict=False)[0]
        return x


def _dpm_scheduler(model: DiffusionModel, times: Tensor) -> DPMSolverMultistepScheduler:
    schedule = model.schedule
    if isinstance(schedule, VPSchedule):
        abar = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alphas_cumprod.clamp(min=2**-24)])
        kind = {"trained_betas": (1 - abar[1:] / abar[:-1]).tolist(), "prediction_type": "sample"}
    else:
        kind = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    scheduler = DPMSolverMultistepScheduler(num_train_timesteps=schedule.num_train_timesteps, **kind)
    scheduler.set_timesteps(len(times) - 1)
    a, s = schedule.coefficients(times)
    # diffusers stores s/a for VP and sigma itself for flow, and appends the clean end
    sigmas = s if schedule.family == "flow" else s / a.clamp(min=2**-12)
    scheduler.sigmas = torch.cat([sigmas[:-1], sigmas.new_zeros(1)]).float()
    scheduler.timesteps = schedule.network_time(times[:-1])
    scheduler.set_begin_index(0)
    return scheduler


def _line(model: DiffusionModel, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor) -> Tensor:
    """One straight step: y' = y + (sigma' - sigma) velocity."""
    (a, noise), (a_next, noise_next) = model.schedule.coefficients(t), model.schedule.coefficients(s)
    scale, scale_next = a + noise, a_next + noise_next
    step = noise_next / scale_next - noise / scale
    return scale_next.item() * (x / scale.item() + step.item() * velocity)


def _pairs(times: Tensor, progress: bool | str) -> Any:
    pairs = list(pairwise(times))
    return tqdm(pairs, desc=progress if isinstance(progress, str) else None, disable=not progress)


SOLVERS: dict[str, type[Solver]] = {cls.name: cls for cls in (Euler, Heun, DPMSolverPP)}


def make_solver(name: str) -> Solver:
    """A solver by name: ``euler``, ``heun``, ``dpm_solver_pp``.

    Raises:
        ValueError: an unknown name; the error lists what exists.
    """
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}: choose one of {', '.join(SOLVERS)}")
    return SOLVERS[name]()
