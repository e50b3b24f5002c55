"""The reverse process as a generator: sampling, policy gradients, reward gradients, search and particles all use it.

It yields one `Step` after the other and keeps nothing; the caller stores, plots, stops. Gradients are chosen by step:

======================  =======================================================================================
``gradient``            effect
======================  =======================================================================================
``"none"``              no graph at all
``"all"``               every network call is in the graph (AlignProp without truncation)
``{3, 7}``, ``{-1}``    only these calls are. At other steps the network output is a constant, but the sampler's
                        own linear dependence on x stays, so a later loss still reaches the chosen steps
======================  =======================================================================================

``range(n - K, n)`` is DRaFT-K, ``range(k, n)`` truncated AlignProp, ``{k}`` with ``step.prediction.x0`` is ReFL, a
set of steps with ``detach_input=True`` is DRTune.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed
from tqdm.auto import tqdm

from surveylib.diffusion.dynamics import DDIM, Dynamics, Reduction, Transition, make_dynamics
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.solvers import Solver, make_solver

Gradient = Literal["none", "all"] | Collection[int]
Generator = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True, eq=False)
class Step:
    """What happened in one reverse step.

    Attributes:
        index: 0 for the noisiest step.
        t, s: its time and the next, cleaner one (0-dimensional, float64, CPU, the schedule's units).
        x: the sample at t, (B, ...). x_next: the sample at s.
        prediction: the guided prediction at (x, t).
        transition: the Gaussian that x_next was drawn from.
        noise: the z of x_next = mean + std z, or None in a deterministic step.
        log_prob: (B,) log-probability of x_next held constant, or None in a deterministic step.
    """

    index: int
    t: Tensor
    s: Tensor
    x: Tensor
    prediction: Prediction
    transition: Transition
    x_next: Tensor
    noise: Tensor | None
    log_prob: Tensor | None


def rollout(
    model: DiffusionModel,
    condition: Condition,
    *,
    dynamics: Dynamics | Sequence[Dynamics] | str,
    steps: int | Sequence[float] | Tensor = 20,
    guidance: float | Tensor | None = None,
    x: Tensor | None = None,
    generator: Generator = None,
    noises: Sequence[Tensor | None] | Tensor | None = None,
    gradient: Gradient = "none",
    detach_input: bool = False,
    checkpoint: bool = False,
    progress: bool | str = False,
    reduction: Reduction = "sum",
) -> Iterator[Step]:
    """Yields the reverse steps from noise to a clean sample.

    Args:
        dynamics: one for all steps, its name, or one for each (an SDE window inside an ODE, as in MixGRPO).
        steps: number of network calls, or the falling times themselves (a rollout may start at any time, from its x).
        guidance: see `DiffusionModel.predict`.
        x: (B, *latent_shape) at the first time; default: ``model.initial_noise`` from ``generator``.
        generator: for all noise; a list of B generators makes each sample independent of how batches are cut.
        noises: the z of each step, (steps, B, *latent_shape) or a sequence; entries of deterministic steps may be None.
        gradient: see the module's table. Indices may be negative.
        detach_input: the network sees x cut from the graph in the chosen steps too (DRTune, arXiv 2405.00760).
        checkpoint: recompute the chosen network calls in the backward pass instead of storing their activations.
        progress: a tqdm bar; a string is its label.
        reduction: of ``Step.log_prob``: ``"sum"`` (log-density) or ``"mean"`` (official RL code).

    ``new_x = (yield step)``: a caller that drives the generator with ``.send(new_x)`` replaces the sample that the next
    step starts from (resampled particles, edited latents); ``send`` returns the next step.

    Raises (at the first ``next``):
        ValueError: shapes, counts or step indices that do not fit.
    """
    times = _times(model, steps)
    count = len(times) - 1
    per_step = _per_step(dynamics, count)
    if noises is not None:
        _check_count("noises", noises, count)
    chosen = _chosen_steps(gradient, count)
    if x is None:
        x = model.initial_noise(len(condition), generator)
    x = x.detach() if gradient == "none" else x
    network_call = partial(_network_output, model, condition=condition, guidance=guidance)
    for index in tqdm(range(count), desc=progress if isinstance(progress, str) else None, disable=not progress):
        t, s = times[index], times[index + 1]
        with torch.set_grad_enabled(gradient != "none"):  # never around the yield: it would leak into the caller
            live = index in chosen
            x_in = x if live and not detach_input else x.detach()
            output = network_call(x_in, t, live=live, checkpoint=checkpoint)
            prediction = Prediction(x, t, output, model.prediction_kind, model.schedule)
            transition = per_step[index].transition(prediction, s)
            given = None if noises is None else noises[index]
            step = _draw(index, prediction, s, transition, given, generator, reduction)
        sent = yield step
        x = step.x_next if sent is None else sent


def _per_step(dynamics: Dynamics | Sequence[Dynamics] | str, count: int) -> list[Dynamics]:
    dynamics = make_dynamics(dynamics) if isinstance(dynamics, str) else dynamics
    per_step = [dynamics] * count if isinstance(dynamics, Dynamics) else list(dynamics)
    _check_count("dynamics", per_step, count)
    return per_step


def _draw(
    index: int,
    prediction: Prediction,
    s: Tensor,
    transition: Transition,
    noise: Tensor | None,
    generator: Generator,
    reduction: Reduction,
) -> Step:
    if transition.deterministic:
        noise = log_prob = None
        x_next = transition.mean
    else:
        if noise is None:
            mean = transition.mean
            noise = randn_tensor(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        elif noise.shape != transition.mean.shape:
            raise ValueError(f"noise of step {index} has shape {tuple(noise.shape)}, the samples have "
                             f"{tuple(transition.mean.shape)}: give one for each sample")
        x_next = transition.sample(noise)
        log_prob = transition.log_prob(x_next.detach(), reduction)
    return Step(index, prediction.t, s, prediction.x, prediction, transition, x_next, noise, log_prob)


def _network_output(
    model: DiffusionModel,
    x: Tensor,
    t: Tensor,
    *,
    condition: Condition,
    guidance: float | Tensor | None,
    live: bool,
    checkpoint: bool,
) -> Tensor:
    with torch.set_grad_enabled(live and torch.is_grad_enabled()):
        if live and checkpoint and torch.is_grad_enabled():
            return checkpointed(model.output, x, t, condition, guidance, use_reentrant=False)
        output = model.output(x, t, condition, guidance)
    return output if live else output.detach()


def _times(model: DiffusionModel, steps: int | Sequence[float] | Tensor) -> Tensor:
    if isinstance(steps, int):
        return model.schedule.grid(steps)
    times = torch.as_tensor(steps, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2 or not (times.diff() < 0).all():
        raise ValueError("steps as times must be at least two numbers that fall, such as schedule.grid(20)[5:]")
    return times


def _chosen_steps(gradient: Gradient, count: int) -> set[int]:
    if isinstance(gradient, str):
        if gradient not in ("none", "all"):
            raise ValueError(f"unknown gradient {gradient!r}: choose 'none', 'all' or a collection of step indices")
        return set(range(count)) if gradient == "all" else set()
    outside = [index for index in gradient if not -count <= index < count]
    if outside:
        raise ValueError(f"gradient steps {outside} do not exist in a rollout of {count} steps")
    return {index % count for index in gradient}


def _check_count(name: str, values: Any, count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{len(values)} {name} given for {count} steps: give one for each step")


def step_log_prob(
    model: DiffusionModel,
    condition: Condition,
    dynamics: Dynamics,
    *,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    x_next: Tensor,
    guidance: float | Tensor | None = None,
    reduction: Reduction,
) -> tuple[Tensor, Transition]:
    """Log-probability of stored steps under the present weights, with gradient: what policy gradients replay.

    Args:
        x, x_next: (B, *latent_shape), as stored. t, s: () or (B,): every sample may be at another step.

    Returns:
        (B,) log-probabilities and the transition (for KL terms). Before any update they equal the rollout's.
    """
    transition = dynamics.transition(model.predict(x, t, condition, guidance), s)
    return transition.log_prob(x_next.detach(), reduction), transition


@torch.no_grad()
def sample(
    model: DiffusionModel,
    prompts: Condition | Sequence[str] | str,
    *,
    dynamics: Dynamics | Sequence[Dynamics] | str | None = None,
    solver: Solver | str | None = None,
    steps: int | Sequence[float] | Tensor = 20,
    guidance: float | Tensor | None = None,
    x: Tensor | None = None,
    generator: Generator = None,
    progress: bool | str = False,
) -> Tensor:
    """Latents (B, *latent_shape) for the prompts; ``model.decode`` makes pictures of them. No gradient.

    Give ``dynamics`` or ``solver`` (or their names), not both. Default: the deterministic sampler ``DDIM(eta=0)``.
    """
    if dynamics is not None and solver is not None:
        raise ValueError("give either dynamics or solver, not both")
    if isinstance(prompts, Condition):
        condition = prompts
    else:
        condition = model.encode([prompts] if isinstance(prompts, str) else prompts)
    if solver is not None:
        solver = make_solver(solver) if isinstance(solver, str) else solver
        x = model.initial_noise(len(condition), generator) if x is None else x
        return solver.sample(model, condition, x=x, times=_times(model, steps), guidance=guidance, progress=progress)
    if isinstance(dynamics, str):
        dynamics = make_dynamics(dynamics)
    path = rollout(
        model,
        condition,
        dynamics=DDIM(0.0) if dynamics is None else dynamics,
        steps=steps,
        guidance=guidance,
        x=x,
        generator=generator,
        progress=progress,
    )
    return deque(path, maxlen=1).pop().x_next  # keeps one step at a time

