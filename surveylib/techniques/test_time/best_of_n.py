"""Best-of-N, and its soft form.

N pictures x^1 .. x^N ~ p(x | c) are drawn from the base sampler, and one is kept:

    best   argmax_i r(x^i)                                                                       (best-of-N)
    soft   i with probability exp(lambda r(x^i)) / sum_j exp(lambda r(x^j))                      (soft best-of-N)

Special: no gradient, any reward, any sampler, all candidates at once. The best is at most log N - (N - 1)/N nats away
from the base model, whatever the reward (formula used by Gao et al., arXiv 2210.10760, section 3; with equality where
no two candidates tie). The soft choice is self-normalised importance sampling: as N grows it draws from the optimum
p*(x) ∝ p(x) exp(lambda r(x)) of KL-regularised alignment, beta = 1/lambda; one step of sequential Monte Carlo.

Candidate k has the same noise for every N, so that the best reward never falls as N grows.
Chapter: techniques/07_searching_and_steering.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.model import DiffusionModel
from surveylib.rewards.contract import Reward
from surveylib.techniques.contract import Preset, Sampler, Samples, TechniqueError
from surveylib.techniques.paths import decode_all, score_all
from surveylib.techniques.test_time.base import (
    NO_TRAINING,
    check_rollout,
    counted,
    noise_generators,
    prompt_uniforms,
    sample_all,
    take,
    texts,
)
from surveylib.techniques.test_time.resampling import choose, effective_sample_size


@dataclass(frozen=True)
class BestOfNConfig:
    """Settings of best-of-N.

    n: candidates a prompt. select: "best" or "soft". strength: lambda of the soft choice, in 1 / units of the reward.
    steps, eta, guidance: of the rollout; guidance None takes the model's own. batch: pictures in one rollout.
    """

    n: int = 16
    select: Literal["best", "soft"] = "best"
    strength: float = 1.0
    steps: int = 50
    eta: float = 0.0
    guidance: float | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        check_rollout(self.steps, self.eta, self.batch)
        if self.n < 1:
            raise TechniqueError(f"n={self.n} must be at least 1")
        if self.select not in ("best", "soft"):
            raise TechniqueError(f"select={self.select!r}: choose 'best' or 'soft'")
        if not 0 <= self.strength < math.inf:
            raise TechniqueError(f"strength={self.strength} must be finite and not negative")


def best(rewards: Tensor) -> Tensor:
    """Number (B,) of the best of rewards (B, N); the first of equals."""
    return (rewards == rewards.max(1, keepdim=True).values).int().argmax(1)


def soft_best(rewards: Tensor, strength: float, uniforms: Tensor) -> Tensor:
    """Number (B,) drawn with probability ∝ exp(strength r); uniforms (B,) in [0, 1)."""
    return choose(strength * rewards.double(), uniforms)


def kl_bound(n: int) -> float:
    """log n - (n - 1)/n: KL(best-of-n || base) in nats without ties, an upper bound with them."""
    return math.log(n) - (n - 1) / n


def law_of_best(probabilities: Tensor, n: int) -> Tensor:
    """Exact distribution (m,) of the best of n draws over m outcomes in rising order of reward: F_i^n - F_{i-1}^n."""
    cumulated = probabilities.double().cumsum(0)
    return (cumulated**n).diff(prepend=cumulated.new_zeros(1))


def expected_best(rewards: Tensor, n: int) -> Tensor:
    """Mean (B,) of the best of n out of N drawn rewards (B, N) over all subsets: the curve of one run over n <= N.

    Unbiased for the expected best of n (sum over order statistics of C(i - 1, n - 1) / C(N, n) r_(i)).
    """
    total = rewards.shape[1]
    if not 1 <= n <= total:
        raise TechniqueError(f"n={n} must lie between 1 and the {total} candidates there are")
    weights = [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)]
    return rewards.double().sort(1).values @ torch.tensor(weights, dtype=torch.float64)


class BestOfN(Sampler):
    """Best-of-N and soft best-of-N. trace: one entry, "rewards" (B, N), "chosen" (B,), "ess" (B,) of the soft weights,
    "best_so_far" (B, N): the curve over n."""

    name = "best_of_n"
    Config = BestOfNConfig

    @torch.no_grad()
    def sample(self, model: DiffusionModel, prompts: Sequence[str], reward: Reward, *, seed: int = 0) -> Samples:
        """See `Sampler.sample`."""
        self.check(model, reward)
        c, prompts = self.config, texts(prompts)
        with counted(model, reward) as ledger:
            condition = model.encode(prompts).repeat_interleave(c.n)
            latents = sample_all(model, condition, noise_generators(seed, len(prompts), c.n), dynamics=DDIM(c.eta),
                                 steps=c.steps, guidance=c.guidance, batch=c.batch)
            pictures = decode_all(model, latents, c.batch)
            rewards = score_all(reward, pictures, condition.prompts, c.batch).cpu().reshape(-1, c.n)
        if c.select == "best":
            chosen = best(rewards)
        else:
            chosen = soft_best(rewards, c.strength, prompt_uniforms(seed, len(prompts), 1, "choice")[:, 0])
        trace = [{"rewards": rewards, "chosen": chosen, "best_so_far": rewards.cummax(1).values,
                  "ess": effective_sample_size(c.strength * rewards)}]
        return Samples(take(pictures, chosen), take(latents, chosen), take(rewards.flatten(), chosen), trace, ledger)


BestOfN.PRESETS = {
    "full": Preset(BestOfNConfig(n=64, guidance=7.5, batch=16), NO_TRAINING, model="sd1.5", reward="pickscore",
                   source="ours: no paper fixes N",
                   cost="64 x 50 steps x 2 branches = 6,400 network calls a picture"),
    "single": Preset(BestOfNConfig(n=16, steps=30, guidance=7.5, batch=8), NO_TRAINING, model="sd1.5",
                     reward="pickscore", source="ours", cost="960 network calls a picture"),
    "toy": Preset(BestOfNConfig(n=16, steps=10, guidance=3.0), NO_TRAINING, model="shapes-sd",
                  reward="shapes-pickscore", source="ours", cost="320 network calls a picture, about a second"),
}
