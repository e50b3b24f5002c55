"""Methods that follow the reward's gradient, in the Gaussian world: the controlled one goes to the tilt, the others to
the mode.

The problem is that of the policy gradients: two peaks, the reward -(x - 1)^2 / 2, beta = 0.5, the same small network.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM, Dynamics
from surveylib.evaluation.gaussian.policy_gradient import PROBLEM, Outcome, draw_samples, policy
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import Technique, Training
from surveylib.techniques.reward_gradient.adjoint_matching import AdjointMatching, AdjointMatchingConfig
from surveylib.techniques.reward_gradient.draft import DRaFT, DRaFTConfig
from surveylib.techniques.reward_gradient.refl import ReFL, ReFLConfig
from surveylib.worlds.gaussian.mixture import ANY

TRAINING = Training(epochs=60, samples=256, samples_per_prompt=256, lr=3e-3, weight_decay=0.0, lora_rank=None,
                    micro_batch=100_000, sample_batch=100_000)


def run(technique: Technique, dynamics: Dynamics, family: str, training: Training, seed: int, settle: int) -> Outcome:
    """Aligns a copy of the policy, then `settle` epochs more at a tenth of the learning rate."""
    model, reward, calls = deepcopy(policy(family, seed)), PointReward(PROBLEM.reward), 0
    for phase in (training, replace(training, epochs=settle, lr=training.lr / 10)):
        for progress in align(model, technique, reward, [ANY], phase, seed=seed):
            last = progress.ledger.network_calls
        calls += last if phase.epochs else 0
    return Outcome(model, draw_samples(model, dynamics, technique.config.steps, seed), calls)


@cache
def adjoint_matching(family: str = "vp", seed: int = 0) -> Outcome:
    """Adjoint Matching with lambda = 1 / beta, all steps trained."""
    config = AdjointMatchingConfig(reward_scale=1 / PROBLEM.beta, steps=24, guidance=1.0, trained=None)
    return run(AdjointMatching(config), DDIM(1.0), family, TRAINING, seed, settle=30)


@cache
def draft(variant: str = "k", seed: int = 0) -> Outcome:
    """DRaFT, which has no KL term, run until it stands still."""
    config = DRaFTConfig(variant=variant, last=2, steps=20, guidance=1.0)
    return run(DRaFT(config), DDIM(0.0), "vp", replace(TRAINING, epochs=100), seed, settle=0)


@cache
def refl(seed: int = 0) -> Outcome:
    """ReFL without ceiling, window over the whole second half."""
    config = ReFLConfig(steps=20, first=10, last=19, scale=1.0, ceiling=None, guidance=1.0)
    return run(ReFL(config), DDIM(0.0), "vp", replace(TRAINING, epochs=100), seed, settle=0)


def rows(seed: int = 0) -> list[dict]:
    """One row a method; see `Problem.row`."""
    made = [
        ("Adjoint Matching (VP)", adjoint_matching("vp", seed), "lambda = 1 / beta"),
        ("Adjoint Matching (flow)", adjoint_matching("flow", seed), "lambda = 1 / beta"),
        ("DRaFT-K", draft("k", seed), "no KL term: past the tilt, to the mode"),
        ("ReFL", refl(seed), "no KL term: past the tilt, to the mode"),
    ]
    return [PROBLEM.row(name, outcome.samples, outcome.calls, note) for name, outcome, note in made]
