"""Methods that follow the reward's gradient, in the Gaussian world: the controlled one goes to the tilt, the others to
the mode.

The first problem is that of the policy gradients: two peaks, the reward -(x - 1)^2 / 2, beta = 0.5, the same small
network. The second has the linear reward r = x at the same beta.

A chain of few steps does not sample the base density exactly, so even the exact optimum of the chain, its own samples
weighted by exp(r / beta), is not p*. `ceiling` says how far that optimum goes; the number of steps is chosen so that it
lies above the threshold of 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM, Dynamics
from surveylib.evaluation.gaussian.closure import TiltProblem
from surveylib.evaluation.gaussian.policy_gradient import PROBLEM, SAMPLES, Outcome, draw_samples, policy
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import Technique, Training
from surveylib.techniques.reward_gradient.adjoint_matching import AdjointMatching, AdjointMatchingConfig
from surveylib.techniques.reward_gradient.draft import DRaFT, DRaFTConfig
from surveylib.techniques.reward_gradient.refl import ReFL, ReFLConfig
from surveylib.worlds.gaussian.mixture import ANY, two_peaks
from surveylib.worlds.gaussian.models import GaussianModel
from surveylib.worlds.gaussian.tilt import LinearReward

PROBLEMS = {
    "quadratic": PROBLEM,
    "linear": TiltProblem("two peaks, linear reward, beta 0.5", two_peaks(), LinearReward((1.0,)), 0.5),
}
STEPS = 48  # of the memoryless chain
CHUNK = 2_000  # points that are sampled at once: what a processor's cache holds
TRAINING = Training(epochs=40, samples=96, samples_per_prompt=96, lr=4e-3, weight_decay=0.0, lora_rank=None,
                    micro_batch=100_000, sample_batch=100_000)
TO_THE_END = replace(TRAINING, epochs=100, samples=256, samples_per_prompt=256, lr=3e-3)


def draw(model: GaussianModel, dynamics: Dynamics, steps: int, seed: int, n: int = SAMPLES) -> Tensor:
    """(n, 1) samples of a model, `CHUNK` at a time, each with a seed of its own."""
    parts = [draw_samples(model, dynamics, steps, 10_000 * seed + k, CHUNK) for k in range(n // CHUNK)]
    return torch.cat(parts)


@cache
def ceiling(problem: str, family: str, steps: int = STEPS, seed: int = 0, n: int = 60_000) -> float:
    """Share of the KL that the exact optimum of the base model's chain closes: its samples, weighted by exp(r / beta).

    Args:
        n: samples of the base; `SAMPLES` of them are drawn again with the weights. With unequal weights the histogram
            is that of fewer samples, so that this is a little low.
    """
    known, base = PROBLEMS[problem], draw(policy(family, seed), DDIM(1.0), steps, seed + 1, n)
    weights = (known.reward(base) / known.beta).double().softmax(0)
    again = torch.multinomial(weights, SAMPLES, replacement=True, generator=torch.Generator().manual_seed(seed))
    return known.closed(base[again])


def run(
    technique: Technique, dynamics: Dynamics, family: str, training: Training, seed: int, settle: int,
    problem: str = "quadratic",
) -> Outcome:
    """Aligns a copy of the policy, then `settle` epochs more at a tenth of the learning rate."""
    model, reward, calls = deepcopy(policy(family, seed)), PointReward(PROBLEMS[problem].reward), 0
    for phase in (training, replace(training, epochs=settle, lr=training.lr / 10)):
        progress = list(align(model, technique, reward, [ANY], phase, seed=seed))
        calls += progress[-1].ledger.network_calls if progress else 0
    return Outcome(model, draw(model, dynamics, technique.config.steps, seed), calls)


@cache
def adjoint_matching(family: str = "vp", problem: str = "quadratic", seed: int = 0) -> Outcome:
    """Adjoint Matching with lambda = 1 / beta, all steps trained."""
    config = AdjointMatchingConfig(reward_scale=1 / PROBLEMS[problem].beta, steps=STEPS, guidance=1.0, trained=None)
    return run(AdjointMatching(config), DDIM(1.0), family, TRAINING, seed, 15, problem)


@cache
def draft(variant: str = "k", seed: int = 0) -> Outcome:
    """DRaFT, which has no KL term, run until it stands still."""
    config = DRaFTConfig(variant=variant, last=2, steps=20, guidance=1.0)
    return run(DRaFT(config), DDIM(0.0), "vp", TO_THE_END, seed, settle=0)


@cache
def refl(seed: int = 0) -> Outcome:
    """ReFL without ceiling, window over the whole second half."""
    config = ReFLConfig(steps=20, first=10, last=19, scale=1.0, ceiling=None, guidance=1.0)
    return run(ReFL(config), DDIM(0.0), "vp", TO_THE_END, seed, settle=0)


def cases(seed: int = 0) -> Iterator[tuple[str, str, Outcome, str]]:
    """(technique, problem, outcome, what to know), one after the other."""
    for problem in PROBLEMS:
        for family in ("vp", "flow"):
            limit = ceiling(problem, family, seed=seed)
            yield "adjoint_matching", problem, adjoint_matching(family, problem, seed), (
                f"{family}, lambda = 1 / beta, {STEPS} steps: the tilt; the exact optimum of this chain closes "
                f"{limit:.1%}")
    yield "draft", "quadratic", draft("k", seed), "last two steps, no KL term: past the tilt, to the mode"
    yield "draft", "quadratic", draft("lv", seed), "low variance, no KL term: past the tilt, to the mode"
    yield "refl", "quadratic", refl(seed), "no KL term: past the tilt, to the mode"


def rows(seed: int = 0) -> list[dict]:
    """Rows of the table; see `TiltProblem.row`."""
    return [PROBLEMS[problem].row(name, outcome.samples, outcome.calls, note)
            for name, problem, outcome, note in cases(seed)]
