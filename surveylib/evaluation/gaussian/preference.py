"""Preferences in the Gaussian world: what choices alone say, and how much of the way a bound goes.

The same problem as the policy gradients. Pairs are drawn from the base density and answered by Bradley and Terry's
rule on the reward; the network never sees the reward. Exact DPO would end at p exp(r / beta_KL). Diffusion-DPO
minimises an upper bound of a loss whose ratio is approximate: the logarithm of the sigmoid stands outside the mean over
noise levels and noise, and the levels are drawn evenly, not as the likelihood weighs them. `nominal_beta` is what beta
would be if neither mattered; the gap that is left at this value is shown, not tuned away.

Rankings are drawn by Plackett and Luce's rule, whose pairs follow Bradley and Terry's. RankDPO with unit weights
therefore has the minimiser of Diffusion-DPO at the same beta. Its own weights (DCG) favour pairs that ended far apart
in a ranking; those follow a steeper rule, and it goes further. A like is drawn with probability sigmoid(r - mean r).
KTO's utility is bounded, so that what counts in the end is whether a point is liked more often than not: it has no tilt
to go to. D3PO takes comparisons for certain, which no finite reward explains, and goes to the mode, with a narrow band
of ratios as with a wide one.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache

import torch

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM
from surveylib.evaluation.gaussian.policy_gradient import (
    PROBLEM,
    SAMPLES,
    TRAINING,
    Outcome,
    draw_samples,
    policy,
    run,
)
from surveylib.techniques.contract import Technique
from surveylib.techniques.preference.d3po import D3PO, D3POConfig
from surveylib.techniques.preference.data import RecordedPreferences, from_tensors, shares_beaten
from surveylib.techniques.preference.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from surveylib.techniques.preference.diffusion_kto import DiffusionKTO, DiffusionKTOConfig
from surveylib.techniques.preference.rankdpo import RankDPO, RankDPOConfig
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


def rankings(n: int = 4096, k: int = 4, seed: int = 0) -> RecordedPreferences:
    """`n` rankings of k samples of the base density by Plackett and Luce's rule: the order of r plus Gumbel noise."""
    generator = torch.Generator().manual_seed(seed)
    points = PROBLEM.base.sample(k * n, generator).reshape(n, k, 1).float()
    uniform = torch.rand(n, k, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    values = PROBLEM.reward(points.flatten(0, 1)).reshape(n, k) - (-uniform.log()).log()
    return from_tensors("rankings", [ANY] * n, points, shares_beaten(values))


def likes(n: int = 16384, seed: int = 0) -> RecordedPreferences:
    """`n` samples of the base density, each liked with probability sigmoid(r - mean r)."""
    generator = torch.Generator().manual_seed(seed)
    points = PROBLEM.base.sample(n, generator).reshape(n, 1, 1).float()
    r = PROBLEM.reward(points.flatten(0, 1))
    label = (torch.rand(n, generator=generator) < torch.sigmoid(r - r.mean())).long()
    return from_tensors("binary", [ANY] * n, points, label)


def nominal_beta() -> float:
    """beta_KL times the span of the log signal-to-noise ratio: one dimension, levels weighted as an even draw of t."""
    schedule = policy("vp").schedule
    ends = schedule.log_snr(torch.tensor(0.0)), schedule.log_snr(torch.tensor(float(schedule.start)))
    return PROBLEM.beta * float(ends[0] - ends[1])


def _recorded(technique: Technique, data: RecordedPreferences, seed: int) -> tuple[Outcome, dict[str, float]]:
    """(outcome, metrics of the first update) of a copy of the policy that learns from recorded feedback."""
    model = deepcopy(policy("vp", seed))
    progress = list(align(model, technique, data, [], UPDATES, seed=seed))
    samples = draw_samples(model, DDIM(1.0), STEPS, seed, SAMPLES)
    return Outcome(model, samples, progress[-1].ledger.network_calls), progress[0].metrics


@cache
def diffusion_dpo(factor: float = 1.0, seed: int = 0) -> tuple[Outcome, dict[str, float]]:
    """(outcome, metrics of the first update) at `factor` times the nominal beta."""
    technique = DiffusionDPO(DiffusionDPOConfig(beta=factor * nominal_beta(), empty_prompts=0.0))
    return _recorded(technique, pairs(seed=seed), seed)


@cache
def rankdpo(factor: float = 1.0, weights: str = "unit", seed: int = 0) -> Outcome:
    """RankDPO on rankings of four, noise shared, at `factor` times the nominal beta."""
    config = RankDPOConfig(beta=factor * nominal_beta(), weights=weights, shared_noise=True)
    return _recorded(RankDPO(config), rankings(seed=seed), seed)[0]


@cache
def diffusion_kto(factor: float = 1.0, seed: int = 0) -> Outcome:
    """Diffusion-KTO on likes; its beta has no half in it, so the nominal one is half that of the pairs."""
    config = DiffusionKTOConfig(beta=factor * nominal_beta() / 2, empty_prompts=0.0)
    return _recorded(DiffusionKTO(config), likes(seed=seed), seed)[0]


@cache
def d3po(clip: float = 0.1, seed: int = 0) -> Outcome:
    """D3PO with the band 1 - clip to 1 + clip for each step's ratio."""
    config = D3POConfig(beta=PROBLEM.beta, clip=clip, steps=24, eta=1.0, guidance=1.0, reduction="sum")
    return run(D3PO(config), DDIM(1.0), "vp", seed=seed, training=replace(TRAINING, lr=1e-3), settle=0)


def cases(seed: int = 0) -> Iterator[tuple[str, Outcome, str]]:
    """(technique, outcome, what to know), one after the other."""
    for factor in FACTORS:
        note = "the gap of the bound" if factor == 1 else "too small: far past the tilt" if factor < 0.2 else ""
        outcome, _ = diffusion_dpo(factor, seed)
        yield "diffusion_dpo", outcome, f"{factor:g} x nominal beta{': ' if note else ''}{note}"
    yield "rankdpo", rankdpo(1.0, "unit", seed), "unit weights, 1 x nominal beta: as Diffusion-DPO"
    yield "rankdpo", rankdpo(1.0, "dcg", seed), "DCG weights, 1 x nominal beta: a steeper rule"
    yield "diffusion_kto", diffusion_kto(1.0, seed), "likes, 1 x nominal beta: to what is liked more often than not"
    yield "d3po", d3po(0.1, seed), "comparisons taken for certain, band 0.1: past the tilt, to the mode"
    yield "d3po", d3po(0.9, seed), "band 0.9: past the tilt, to the mode"


def rows(seed: int = 0) -> list[dict]:
    """Rows of the table; see `TiltProblem.row`."""
    return [PROBLEM.row(name, outcome.samples, outcome.calls, note) for name, outcome, note in cases(seed)]
