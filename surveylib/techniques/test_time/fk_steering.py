"""FK steering: sequential Monte Carlo towards a reward (Singhal et al., arXiv 2501.06848).

K particles of a prompt run the base sampler together. At chosen steps each gets a potential from the reward
r_s = r(D(x0_s)) of a look-ahead to the clean sample, and the particles are resampled by their weights (section 3):

    DIFF   G_s = exp(lambda (r_s - r_{s-1}))
    MAX    G_s = exp(lambda max_{j <= s} r_j)
    ADD    G_s = exp(lambda sum_{j <= s} r_j)
    end    G_0 = exp(lambda r(x_0)) / prod_{s} G_s

so that the product over a path is exp(lambda r(x_0)) and the particles approach p*(x) ∝ p(x) exp(lambda r(x)), the
optimum of KL-regularised alignment with beta = 1/lambda, as K grows, for any look-ahead. Between resamplings the
weights accumulate, w <- w G; a resampling sets them to 1. prod of the mean weights estimates Z = E_p[exp(lambda r)]
without bias.

Special: no gradient; clones separate only by the sampler's noise, so deterministic dynamics are refused. With no
resampling before the end it is soft best-of-N.

Deviations from zacharyhorvitz/Fk-Diffusion-Steering: weights that lead to no resampling are kept, not dropped
(`accumulate=False` drops them, which is no longer SMC: Z is biased); log space instead of a clamp at 1e10; systematic
instead of multinomial resampling by default; the end weighs the pictures themselves.
Chapter: techniques/07_searching_and_steering.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.rewards.contract import Reward
from surveylib.techniques.contract import Preset, Sampler, Samples, TechniqueError
from surveylib.techniques.paths import decode_all, score_all
from surveylib.techniques.test_time.base import (
    NO_TRAINING,
    check_rollout,
    counted,
    noise_generators,
    prompt_uniforms,
    take,
    texts,
)
from surveylib.techniques.test_time.best_of_n import best
from surveylib.techniques.test_time.lockstep import Stage, lockstep, look_ahead
from surveylib.techniques.test_time.resampling import (
    SCHEMES,
    Scheme,
    choose,
    effective_sample_size,
    log_mean_exp,
    resample,
)

Potential = Literal["diff", "max", "add"]


@dataclass(frozen=True)
class FKConfig:
    """Settings of FK steering.

    particles: K. potential: "diff", "max" or "add". strength: lambda, in 1 / units of the reward.
    resample_at: shares of the steps done, each in (0, 1), where particles are weighed; () weighs at the end alone.
    ess: resample where the effective sample size falls below this share of K (1: always, unless weights are equal).
    accumulate: keep weights where nothing was resampled. scheme: "systematic", "stratified" or "multinomial".
    lookahead: 0 takes Tweedie's estimate of the step just done, at no cost; k > 0 spends k network calls a particle on
    the ODE from the new sample. select: "best" of the last particles by reward, or "sample" one by its weight.
    steps, eta, guidance: of the rollout; guidance None takes the model's own. batch: particles in one network call.
    """

    particles: int = 4
    potential: Potential = "max"
    strength: float = 10.0
    resample_at: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    ess: float = 0.5
    accumulate: bool = True
    scheme: Scheme = "systematic"
    lookahead: int = 0
    select: Literal["best", "sample"] = "best"
    steps: int = 100
    eta: float = 1.0
    guidance: float | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        check_rollout(self.steps, self.eta, self.batch)
        for name, allowed in (("potential", ("diff", "max", "add")), ("scheme", SCHEMES),
                              ("select", ("best", "sample"))):
            if getattr(self, name) not in allowed:
                raise TechniqueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.particles < 1 or self.lookahead < 0:
            raise TechniqueError(f"particles={self.particles} must be at least 1, lookahead={self.lookahead} at least "
                                 "0")
        if not 0 <= self.strength < math.inf or not 0 <= self.ess <= 1:
            raise TechniqueError(f"strength={self.strength} must be finite and not negative, ess={self.ess} in [0, 1]")
        if not all(0 < share < 1 for share in self.resample_at):
            raise TechniqueError(f"resample_at={self.resample_at} are shares of the steps done, each in (0, 1)")
        if self.eta == 0 and self.particles > 1 and self.resample_at:
            raise TechniqueError("eta=0 is deterministic: clones of a particle would stay equal to the end. Set eta to "
                                 "1, or resample_at=() to weigh the finished pictures alone")


def no_history(prompts: int, particles: int) -> dict[str, Tensor]:
    """What potentials remember of a particle's path, each (B, K) float64: the last reward, the greatest, their sum, and
    the sum of the log-potentials so far. It belongs to the particle and is resampled with it."""
    zeros = torch.zeros(prompts, particles, dtype=torch.float64)
    return {"last": zeros, "greatest": zeros - math.inf, "sum": zeros, "spent": zeros}


def log_potential(potential: Potential, rewards: Tensor, history: Mapping[str, Tensor], strength: float) -> Tensor:
    """log G (B, K) of look-ahead rewards (B, K); lambda is `strength`."""
    if potential == "diff":
        return strength * (rewards - history["last"])
    if potential == "max":
        return strength * torch.maximum(rewards, history["greatest"])
    return strength * (rewards + history["sum"])


def last_log_potential(rewards: Tensor, history: Mapping[str, Tensor], strength: float) -> Tensor:
    """log G_0 (B, K) of the finished pictures' rewards: what is missing to lambda r(x_0)."""
    return strength * rewards - history["spent"]


def remember(history: Mapping[str, Tensor], rewards: Tensor, log_g: Tensor) -> dict[str, Tensor]:
    """The history after one more potential."""
    return {"last": rewards, "greatest": torch.maximum(history["greatest"], rewards),
            "sum": history["sum"] + rewards, "spent": history["spent"] + log_g}


def stages_of(resample_at: Sequence[float], steps: int) -> tuple[int, ...]:
    """Indices of the steps after which particles are weighed: round(share * steps) steps are done then. Never the last
    step, which has its own potential."""
    done = {max(1, round(share * steps)) for share in resample_at}
    return tuple(sorted(count - 1 for count in done if count < steps))


class FKSteering(Sampler):
    """FK steering. trace: one entry a weighing: "step", "rewards" (B, K), "ess" (B,), "resampled" (B,), "ancestors"
    (B, K); at the end also "log_weights" (B, K), "log_z" (B,), "roots" (B,) the number of distinct first ancestors,
    "chosen" (B,)."""

    name = "fk_steering"
    Config = FKConfig

    @torch.no_grad()
    def sample(self, model: DiffusionModel, prompts: Sequence[str], reward: Reward, *, seed: int = 0) -> Samples:
        """See `Sampler.sample`."""
        self.check(model, reward)
        c, prompts = self.config, texts(prompts)
        with counted(model, reward) as ledger:
            condition = model.encode(prompts).repeat_interleave(c.particles)
            swarm = Swarm(len(prompts), c, seed)
            latents = self._run(model, condition, reward, swarm)
            pictures = decode_all(model, latents, c.batch)
            rewards = score_all(reward, pictures, condition.prompts, c.batch).cpu().reshape(-1, c.particles)
        swarm.finish(rewards)
        if c.select == "best":
            chosen = best(rewards)
        else:
            uniforms = prompt_uniforms(seed, len(prompts), 1, "choice")[:, 0]
            chosen = choose(swarm.log_weights, uniforms, ~swarm.resampled)
        swarm.trace[-1]["chosen"] = chosen
        return Samples(take(pictures, chosen), take(latents, chosen), take(rewards.flatten(), chosen), swarm.trace,
                       ledger)

    def _run(self, model: DiffusionModel, condition: Condition, reward: Reward, swarm: Swarm) -> Tensor:
        """All particles from noise to clean latents (B K, ...), resampled on the way."""
        c = self.config
        stages = stages_of(c.resample_at, c.steps)
        generators = noise_generators(swarm.seed, swarm.prompts, c.particles)
        run = lockstep(model, condition, generators, dynamics=DDIM(c.eta), steps=c.steps, guidance=c.guidance,
                       batch=c.batch)
        stage = next(run)
        while True:
            x = stage.x
            if stage.index in stages and c.particles > 1:
                clean = self._clean(model, condition, stage)
                pictures = decode_all(model, clean, c.batch)
                x = swarm.weigh(stage.index, score_all(reward, pictures, condition.prompts, c.batch), x)
            if stage.index == c.steps - 1:
                return x
            stage = run.send(x)

    def _clean(self, model: DiffusionModel, condition: Condition, stage: Stage) -> Tensor:
        c = self.config
        if not c.lookahead:
            return stage.x0
        return look_ahead(model, condition, stage.x, stage.index, calls=c.lookahead, steps=c.steps,
                          guidance=c.guidance, batch=c.batch)


class Swarm:
    """Weights, histories and ancestry of the particles of B prompts.

    log_weights: (B, K) since the last resampling. log_z: (B,) log of the estimate of E_p[exp(lambda r)].
    roots: (B, K) the first ancestor of each particle. resampled: (B,) prompts resampled at least once.
    trace: see `FKSteering`.
    """

    def __init__(self, prompts: int, config: FKConfig, seed: int) -> None:
        self.prompts, self.config, self.seed = prompts, config, seed
        k = config.particles
        self.log_weights = torch.zeros(prompts, k, dtype=torch.float64)
        self.log_z = torch.zeros(prompts, dtype=torch.float64)
        self.history = no_history(prompts, k)
        self.roots = torch.arange(k).expand(prompts, k)
        self.resampled = torch.zeros(prompts, dtype=torch.bool)
        self.trace: list[dict[str, Any]] = []

    def weigh(self, index: int, rewards: Tensor, x: Tensor) -> Tensor:
        """Takes the look-ahead rewards (B K,) of one stage in; returns the samples (B K, ...), resampled where the
        effective sample size asks for it."""
        c = self.config
        rewards = rewards.double().cpu().reshape(self.prompts, -1)
        log_g = log_potential(c.potential, rewards, self.history, c.strength)
        self.log_weights = self.log_weights + log_g
        self.history = remember(self.history, rewards, log_g)
        ess = effective_sample_size(self.log_weights)
        poor = ess < c.ess * c.particles * (1 - 1e-9)  # equal weights are never poor, whatever the rounding
        drawn = resample(self.log_weights, prompt_uniforms(self.seed, self.prompts, c.particles, index, "resample"),
                         c.scheme)
        ancestors = torch.where(poor[:, None], drawn, torch.arange(c.particles))
        self.log_z = torch.where(poor, self.log_z + log_mean_exp(self.log_weights), self.log_z)
        dropped = poor if c.accumulate else torch.ones_like(poor)
        self.log_weights = torch.where(dropped[:, None], torch.zeros_like(self.log_weights), self.log_weights)
        self.history = {name: value.gather(1, ancestors) for name, value in self.history.items()}
        self.roots = self.roots.gather(1, ancestors)
        self.resampled = self.resampled | poor
        self.trace.append({"step": index, "rewards": rewards, "ess": ess, "resampled": poor, "ancestors": ancestors})
        rows = (torch.arange(self.prompts)[:, None] * c.particles + ancestors).flatten()
        return x[rows.to(x.device)]

    def finish(self, rewards: Tensor) -> None:
        """Weighs the finished pictures, rewards (B, K)."""
        rewards = rewards.double()
        self.log_weights = self.log_weights + last_log_potential(rewards, self.history, self.config.strength)
        self.log_z = self.log_z + log_mean_exp(self.log_weights)
        self.trace.append({"step": self.config.steps - 1, "rewards": rewards, "log_z": self.log_z,
                           "ess": effective_sample_size(self.log_weights), "log_weights": self.log_weights,
                           "roots": torch.tensor([len(row.unique()) for row in self.roots])})


FKSteering.PRESETS = {
    "full": Preset(FKConfig(guidance=7.5, batch=4), NO_TRAINING, model="sdxl", reward="imagereward",
                   source="arXiv 2501.06848 and its launch.sh: K 4, MAX, lambda 10, 100 steps, resampled at 20, 40, 60 "
                          "and 80",
                   cost="4 x 100 steps x 2 branches = 800 network calls, 20 decodes a picture"),
    "single": Preset(FKConfig(steps=50, guidance=7.5, batch=4), NO_TRAINING, model="sd1.5", reward="imagereward",
                     source="ours: the paper's setting in half the steps", cost="400 network calls a picture"),
    "toy": Preset(FKConfig(particles=8, potential="diff", strength=3.0, steps=20, guidance=3.0), NO_TRAINING,
                  model="shapes-sd", reward="shapes-pickscore", source="ours",
                  cost="320 network calls a picture, about a second"),
}
