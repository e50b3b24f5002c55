"""Weighted regression in the Gaussian world: one round is the tilt, many rounds are the mode.

The same problem as the policy gradients. RWR's weights are exact here: beta in units of the reward, nothing
standardised. The sampler is an ODE with many steps, whose own error is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

from torch import Tensor

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM
from surveylib.evaluation.gaussian.policy_gradient import PROBLEM, Outcome, draw_samples, policy, run
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import Training
from surveylib.techniques.reward_weighted.raft import RAFT, RAFTConfig
from surveylib.techniques.reward_weighted.rwr import RWR, RWRConfig
from surveylib.worlds.gaussian.mixture import ANY

STEPS = 40
ONE_ROUND = Training(epochs=1, samples=4096, samples_per_prompt=4096, updates=8, passes=40, lr=1e-3, weight_decay=0.0,
                     lora_rank=None, micro_batch=100_000, sample_batch=100_000)


def rwr(seed: int = 0, rounds: int = 1, source: str = "policy") -> Outcome:
    """RWR with exact weights, `rounds` times trained to the end."""
    training = replace(ONE_ROUND, epochs=rounds, passes=40 if rounds == 1 else 20)
    return run(_rwr(source), DDIM(0.0), "flow", seed=seed, training=training, settle=0)


def rwr_by_round(rounds: int, seed: int = 0) -> Iterator[Tensor]:
    """Samples (n, 1) after each round of RWR with exact weights: one run, looked at `rounds` times."""
    model, reward = deepcopy(policy("flow", seed)), PointReward(PROBLEM.reward)
    for _ in align(model, _rwr(), reward, [ANY], replace(ONE_ROUND, epochs=rounds), seed=seed):
        yield draw_samples(model, DDIM(0.0), STEPS, seed)


def _rwr(source: str = "policy") -> RWR:
    return RWR(RWRConfig(beta=PROBLEM.beta, standardise="none", source=source, steps=STEPS, eta=0.0, guidance=1.0))


def raft(seed: int = 0, rounds: int = 4) -> Outcome:
    """RAFT, the best of 8."""
    config = RAFTConfig(steps=STEPS, guidance=1.0)
    training = replace(ONE_ROUND, epochs=rounds, samples_per_prompt=8, passes=10)
    return run(RAFT(config), DDIM(0.0), "flow", seed=seed, training=training, settle=0)


def cases(seed: int = 0) -> Iterator[tuple[str, Outcome, str]]:
    """(technique, outcome, what to know), one after the other."""
    yield "rwr", rwr(seed), "one round to the end: the tilt"
    yield "rwr", rwr(seed, rounds=4), "four rounds: p exp(4 r / beta), past the tilt"
    yield "rwr", rwr(seed, rounds=4, source="reference"), "four rounds that sample the reference: the tilt"
    yield "raft", raft(seed), "best of 8, four rounds: goes to the mode"


def rows(seed: int = 0) -> list[dict]:
    """Rows of the table; see `TiltProblem.row`."""
    return [PROBLEM.row(name, outcome.samples, outcome.calls, note) for name, outcome, note in cases(seed)]
