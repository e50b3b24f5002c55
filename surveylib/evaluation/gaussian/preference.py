"""Diffusion-DPO in the Gaussian world: what choices alone say, and how much of the way a bound goes.

The same problem as the policy gradients. Pairs are drawn from the base density and answered by Bradley and Terry's
rule on the reward; the network never sees the reward. Exact DPO would end at p exp(r / beta_KL). Diffusion-DPO
minimises an upper bound of its loss: the logarithm of the sigmoid stands outside the mean over noise levels and noise,
and the levels are drawn evenly, not as the likelihood weighs them. `nominal_beta` is what beta would be if neither
mattered; the gap that is left at this value is shown, not tuned away.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache

import torch

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM
from surveylib.evaluation.gaussian.policy_gradient import PROBLEM, SAMPLES, TRAINING, Outcome, draw_samples, policy
from surveylib.techniques.preference.data import RecordedPreferences, from_tensors
from surveylib.techniques.preference.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from surveylib.worlds.gaussian.mixture import ANY

STEPS = 40
UPDATES = replace(TRAINING, epochs=60, samples=512, samples_per_prompt=1, lr=2e-3)
FACTORS = (0.1, 0.4, 1.0, 3.0)  # of the nominal beta


def pairs(n: int = 8192, seed: int = 0) -> RecordedPreferences:
    """`n` pairs of samples of the base density, the preferred one drawn by Bradley and Terry's rule."""
    generator = torch.Generator().manual_seed(seed)
    points = PROBLEM.base.sample(2 * n, generator).reshape(n, 2, 1).float()
    first, second = PROBLEM.reward(points.flatten(0, 1)).reshape(n, 2).unbind(1)
    label = (torch.rand(n, generator=generator) >= torch.sigmoid(first - second)).long()
    return from_tensors("pairs", [ANY] * n, points, label)


def nominal_beta() -> float:
    """beta_KL times the span of the log signal-to-noise ratio: one dimension, levels weighted as an even draw of t."""
    schedule = policy("vp").schedule
    ends = schedule.log_snr(torch.tensor(0.0)), schedule.log_snr(torch.tensor(float(schedule.start)))
    return PROBLEM.beta * float(ends[0] - ends[1])


@cache
def diffusion_dpo(factor: float = 1.0, seed: int = 0) -> tuple[Outcome, dict[str, float]]:
    """(outcome, metrics of the first update) at `factor` times the nominal beta."""
    model = deepcopy(policy("vp", seed))
    technique = DiffusionDPO(DiffusionDPOConfig(beta=factor * nominal_beta(), empty_prompts=0.0))
    progress = list(align(model, technique, pairs(seed=seed), [], UPDATES, seed=seed))
    samples = draw_samples(model, DDIM(1.0), STEPS, seed, SAMPLES)
    return Outcome(model, samples, progress[-1].ledger.network_calls), progress[0].metrics


def cases(seed: int = 0) -> Iterator[tuple[str, Outcome, str]]:
    """(technique, outcome, what to know), one after the other."""
    for factor in FACTORS:
        note = "the gap of the bound" if factor == 1 else "too small: far past the tilt" if factor < 0.2 else ""
        outcome, _ = diffusion_dpo(factor, seed)
        yield "diffusion_dpo", outcome, f"{factor:g} x nominal beta{': ' if note else ''}{note}"


def rows(seed: int = 0) -> list[dict]:
    """Rows of the table; see `TiltProblem.row`."""
    return [PROBLEM.row(name, outcome.samples, outcome.calls, note) for name, outcome, note in cases(seed)]
