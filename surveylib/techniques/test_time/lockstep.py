"""Many rollouts side by side, in pieces that fit in memory, with the samples exchanged between steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM, Dynamics
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.rollout import rollout

_ODE = DDIM(0.0)


@dataclass(frozen=True, eq=False)
class Stage:
    """One reverse step of all particles. index: 0 for the noisiest. x0: (N, ...) Tweedie's clean samples, predicted at
    the step's start. x: (N, ...) the samples after it."""

    index: int
    x0: Tensor
    x: Tensor


def lockstep(
    model: DiffusionModel,
    condition: Condition,
    generators: list[torch.Generator],
    *,
    dynamics: Dynamics,
    steps: int,
    guidance: float | None,
    batch: int,
) -> Iterator[Stage]:
    """Yields the steps of N rollouts, `batch` network calls at a time; ``.send(x)`` replaces the samples (N, ...) that
    the next step starts from."""
    pieces = torch.arange(len(condition)).split(batch)
    runs = [rollout(model, condition[rows], dynamics=dynamics, steps=steps, guidance=guidance,
                    generator=[generators[i] for i in rows.tolist()]) for rows in pieces]
    done = [next(run) for run in runs]
    for index in range(steps):
        x0, x = torch.cat([step.prediction.x0 for step in done]), torch.cat([step.x_next for step in done])
        sent = yield Stage(index, x0, x)
        if index + 1 < steps:
            parts = [None] * len(runs) if sent is None else [sent[rows.to(sent.device)] for rows in pieces]
            done = [run.send(part) for run, part in zip(runs, parts)]


def look_ahead(
    model: DiffusionModel,
    condition: Condition,
    x: Tensor,
    index: int,
    *,
    calls: int,
    steps: int,
    guidance: float | None,
    batch: int,
) -> Tensor:
    """Clean samples (N, ...) that x (N, ...), the samples after step `index`, would become under the ODE in at most
    `calls` more network calls. One call is Tweedie's estimate at x."""
    times = model.schedule.grid(steps)[index + 1:]
    calls = min(calls, len(times) - 1)
    places = torch.linspace(0, len(times) - 1, calls + 1).round().long()
    parts = []
    for rows in torch.arange(len(condition)).split(batch):
        path = rollout(model, condition[rows], dynamics=_ODE, steps=times[places], guidance=guidance,
                       x=x[rows.to(x.device)])
        *_, last = path
        parts.append(last.prediction.x0)
    return torch.cat(parts)
