"""Test-time methods in the Gaussian world: many particles reach the optimum, one-step look-ahead does not.

The same problem as the other families, exact scores, a cosine schedule. Each sample is one prompt with its own
particles, so that `SAMPLES` of them are independent draws of what the method samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.schedules import Schedule, VPSchedule
from surveylib.evaluation.gaussian.closure import TiltProblem
from surveylib.evaluation.gaussian.policy_gradient import PROBLEM
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import Sampler, Samples
from surveylib.techniques.test_time.best_of_n import BestOfN, BestOfNConfig
from surveylib.techniques.test_time.dno import DNO, DNOConfig
from surveylib.techniques.test_time.fk_steering import FKConfig, FKSteering
from surveylib.techniques.test_time.gradient_guidance import DPS, TFG, GuidanceConfig
from surveylib.worlds.gaussian.mixture import ANY, spread
from surveylib.worlds.gaussian.models import ExactModel
from surveylib.worlds.gaussian.tilt import QuadraticReward

SAMPLES = 4096
STRENGTH = 1 / PROBLEM.beta
CURVED = TiltProblem("one peak, quadratic reward, beta 1/3", spread(), QuadraticReward((0.0,)), 1 / 3)
TOGETHER = 10**6  # points in one network call


def draw(sampler: Sampler, samples: int = SAMPLES, seed: int = 0, problem: TiltProblem = PROBLEM) -> Samples:
    """Independent draws of a sampler, with exact scores."""
    model = ExactModel(problem.base, VPSchedule.cosine())
    return sampler.sample(model, [ANY] * samples, PointReward(problem.reward), seed=seed)


def soft_best_of_n(n: int, problem: TiltProblem = PROBLEM) -> BestOfN:
    """Soft best-of-N under the ODE."""
    return BestOfN(BestOfNConfig(n=n, select="soft", strength=1 / problem.beta, steps=20, eta=0.0, guidance=1.0,
                                 batch=TOGETHER))


def fk(particles: int, potential: str = "diff") -> FKSteering:
    """FK steering with accumulated weights, one particle drawn by its weight."""
    return FKSteering(FKConfig(particles=particles, potential=potential, select="sample", strength=STRENGTH, steps=20,
                               guidance=1.0, batch=TOGETHER))


def one_step_look_ahead(steps: int = 80, problem: TiltProblem = PROBLEM) -> TFG:
    """The score plus grad of lambda r(x0_t): right but for the spread of x0 around its mean x0_t."""
    return TFG(GuidanceConfig(rho=1.0, mu=0.0, strength=1 / problem.beta, sigma=0.0, draws=1, rule="constant",
                              where="epsilon", steps=steps, guidance=1.0, batch=TOGETHER))


def dps(steps: int = 80) -> DPS:
    """DPS with a constant zeta: the longer the rollout, the more often it is added."""
    return DPS(GuidanceConfig(rho=0.1, mu=0.0, strength=STRENGTH, sigma=0.0, draws=1, rule="constant", steps=steps,
                              guidance=1.0, batch=TOGETHER))


def dno(gamma: float = 0.0) -> DNO:
    """DNO on all noises."""
    return DNO(DNOConfig(iterations=60, lr=0.05, gamma=gamma, block=1, permutations=0, steps=20, guidance=1.0,
                         checkpoint=False, batch=TOGETHER))


def linear_law(schedule: Schedule, steps: int, *, eta: float = 1.0, guidance: float = 0.0) -> Tensor:
    """Variance of the samples that DDIM makes for data N(0, 1), exactly: every step is x' = k x + std z.

    Args:
        guidance: lambda A of one-step look-ahead with the reward -A x²/2, 0 for the base sampler.
    """
    times, dynamics = schedule.grid(steps), DDIM(eta)
    variance = torch.ones((), dtype=torch.float64)
    x = torch.ones(1, 1, dtype=torch.float64)
    for t, s in pairwise(times):
        a, sd = schedule.coefficients(t)
        k = a / (a**2 + sd**2)  # x0_t = k x
        pull = guidance * k**2 * sd**2 / a if a > 0 else 0.0  # eps moves by s grad r(x0_t), x0 by s² / a of it
        x0 = (k - pull) * x
        transition = dynamics.transition(Prediction(x, t, x0, "x0", schedule), s)
        variance = transition.mean.squeeze() ** 2 * variance + transition.std**2
    return variance


def cases() -> Iterator[tuple[str, Sampler, TiltProblem, str]]:
    """(technique, sampler, world, what to know), one after the other."""
    for n in (1, 4, 32):
        yield "best_of_n", soft_best_of_n(n), PROBLEM, f"soft, {n} candidates"
    for n in (4, 24):
        yield "fk_steering", fk(n), PROBLEM, f"DIFF, accumulated, {n} particles"
    for potential in ("max", "add"):
        yield "fk_steering", fk(24, potential), PROBLEM, f"{potential.upper()}, accumulated, 24 particles"
    for steps in (80, 320):
        yield "tfg", one_step_look_ahead(steps), PROBLEM, f"one-step look-ahead in epsilon, {steps} steps"
    yield "dps", dps(20), PROBLEM, "zeta 0.1, 20 steps"
    yield "dps", dps(80), PROBLEM, "zeta 0.1, 80 steps: nearer to the mode"
    yield "dno", dno(), PROBLEM, "no regulariser: goes to the mode"
    yield "best_of_n", soft_best_of_n(32, CURVED), CURVED, "soft, 32 candidates"
    for steps in (80, 320):
        yield "tfg", one_step_look_ahead(steps, CURVED), CURVED, f"one-step look-ahead, {steps} steps: too narrow"


def rows(seed: int = 0) -> list[dict]:
    """Rows of the table; see `TiltProblem.row`. Calls are of the network, a sample."""
    found = []
    for name, sampler, problem, note in cases():
        drawn = draw(sampler, seed=seed, problem=problem)
        found.append(problem.row(name, drawn.latents, drawn.ledger.network_calls // SAMPLES, note))
    return found
