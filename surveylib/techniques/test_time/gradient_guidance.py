"""Training-free guidance by the reward's gradient: TFG and the methods that it contains (Ye et al., arXiv 2409.15761).

With f(x0) = lambda r(D(x0)), x0_t Tweedie's estimate at x_t and S(x_t, x0_t) the base sampler's draw of x_s:

    f~(x0)  = log (1/K) sum_k exp f(x0 + sigma_t delta_k),  delta ~ N(0, I)              (smoothing)
    D_t     = rho_t grad_{x_t} f~(x0_t(x_t))                                             (through the network)
    D_0     = sum of N_iter steps x0 <- x0 + mu_t grad_{x0} f~(x0), from x0_t            (not through the network)
    x_s     = S(x_t, x0_t) + D_t / sqrt(alpha_t) + a_s D_0                               (algorithm 1)
    N_recur times: x_t <- sqrt(alpha_t) x_s + sqrt(1 - alpha_t) z, and again             (recurrence, time travel)

=====================  =========================================  ==================================================
setting                arXiv                                      what it is
=====================  =========================================  ==================================================
``dps``                2209.14687                                 rho alone, constant, added to x_s
``freedom``            2303.09833                                 rho alone, rms tied to that of guidance, time travel
``mpgd``               2311.16424                                 mu alone: no gradient through the network
``lgd``                LGD-MC, as TFG's authors write it          rho with smoothing
``universal_guidance`` 2302.07121                                 rho and mu, added to epsilon, recurrence
=====================  =========================================  ==================================================

Special: one gradient a step and no particles. x0_t is the mean of x0 given x_t; r(x0_t) is not the soft value
log E[exp(lambda r(x0)) | x_t], and the samples are not from p* ∝ p exp(lambda r), except for a linear reward on a
Gaussian. Chapter: techniques/07_searching_and_steering.

Deviations: written for a reward to be raised, so DPS's norm ||y - A(x0)|| is the reward -||y - A(x0)||; gradients of
each sample stand alone; for flow models D_t is not divided (alpha_t is 0 in their first step); a step whose gradients
are all zero is not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.guidance import guided_output
from surveylib.diffusion.inversion import renoise
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.schedules import Schedule
from surveylib.rewards.contract import Reward
from surveylib.techniques.contract import Preset, Sampler, Samples, TechniqueError
from surveylib.techniques.paths import decode_all, score_all
from surveylib.techniques.test_time.base import NO_TRAINING, check_rollout, counted, loss_scale, row_generators, texts

Rule = Literal["tfg", "constant", "unit", "cfg"]
Growth = Literal["increase", "decrease", "constant"]
Streams = Callable[..., list[torch.Generator]]  # key -> one generator a sample


@dataclass(frozen=True)
class GuidanceConfig:
    """Settings of gradient guidance.

    rho, mu: strengths of the gradient on x_t (through the network) and on x0 (not). 0 leaves it out.
    strength: lambda in f = lambda r. sigma, draws: smoothing, K draws of width sigma s_t.
    rule: how a gradient g becomes a step. "tfg": rho_t g with rho_t after `growth`, x_t's divided by sqrt(alpha_t);
    "constant": rho g; "unit": rho g / ||g||; "cfg": rho w rms(eps_c - eps_u) / rms(g) g, w the guidance scale.
    growth: rho_t of "tfg" ∝ alpha_t ("increase"), 1 - alpha_t ("decrease") or "constant"; mean rho over the steps.
    where: add to the next "sample" or to "epsilon" (eps <- eps - s_t D_t - (a_t / s_t) D_0).
    iterations: N_iter. recurrences: N_recur, 1 for none; recur_window, window: shares of the steps done, [from, to),
    in which steps are repeated, and in which there is guidance at all.
    steps, eta, guidance: of the rollout; guidance None takes the model's own. batch: pictures in one network call.
    """

    rho: float = 1.0
    mu: float = 1.0
    strength: float = 1.0
    sigma: float = 0.01
    draws: int = 4
    rule: Rule = "tfg"
    growth: Growth = "increase"
    where: Literal["sample", "epsilon"] = "sample"
    iterations: int = 1
    recurrences: int = 1
    recur_window: tuple[float, float] = (0.0, 1.0)
    window: tuple[float, float] = (0.0, 1.0)
    steps: int = 100
    eta: float = 1.0
    guidance: float | None = None
    batch: int = 16

    def __post_init__(self) -> None:
        check_rollout(self.steps, self.eta, self.batch)
        for name, allowed in (("rule", ("tfg", "constant", "unit", "cfg")), ("where", ("sample", "epsilon")),
                              ("growth", ("increase", "decrease", "constant"))):
            if getattr(self, name) not in allowed:
                raise TechniqueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        for name in ("rho", "mu", "strength", "sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TechniqueError(f"{name}={getattr(self, name)} must be finite and not negative")
        for name in ("draws", "iterations", "recurrences"):
            if getattr(self, name) < 1:
                raise TechniqueError(f"{name}={getattr(self, name)} must be at least 1")


def smoothed(f: Callable[[Tensor], Tensor], x0: Tensor, noises: Tensor | None) -> Tensor:
    """f~(x0) (B,): log of the mean of exp f over x0 + noises; noises (K, B, ...), or None for f itself."""
    if noises is None:
        return f(x0)
    values = torch.stack([f(x0 + noise) for noise in noises])
    return torch.logsumexp(values, 0) - math.log(len(noises))


def strengths(schedule: Schedule, steps: int, growth: Growth) -> Tensor:
    """(steps,) factors of mean 1 over the steps: rho_t / rho. alpha_t is (a_t / a_s)² of the step from t to s."""
    times = schedule.grid(steps)
    a, _ = schedule.coefficients(times)
    alpha = (a[:-1] / a[1:]) ** 2
    weights = {"increase": alpha, "decrease": 1 - alpha, "constant": torch.ones_like(alpha)}[growth]
    return weights * steps / weights.sum()


def scaled(gradient: Tensor, rule: Rule, size: float, gap: Tensor | None, guidance: float) -> Tensor:
    """The step along a gradient (B, ...), by the rules of `GuidanceConfig`; a zero gradient gives zero."""
    if rule in ("tfg", "constant"):
        return size * gradient
    shape = (-1, *[1] * (gradient.ndim - 1))
    norm = gradient.flatten(1).norm(dim=1).reshape(shape)
    direction = torch.where(norm > 0, gradient / norm.clamp(min=1e-30), torch.zeros_like(gradient))
    if rule == "unit":
        return size * direction
    return size * guidance * gap.flatten(1).norm(dim=1).reshape(shape) * direction  # rms ratio = ratio of norms


def guided_epsilon(prediction: Prediction, d_t: Tensor, d_0: Tensor) -> Prediction:
    """eps - s D_t - (a / s) D_0, written for x0 (x0 + s²/a D_t + D_0); D_t is left out where a = 0."""
    a, s = prediction.a, prediction.s
    pull = s**2 / a * d_t if bool((a > 0).all()) else torch.zeros_like(d_t)
    return prediction.with_x0(prediction.x0 + pull + d_0)


def predict_branches(
    model: DiffusionModel, x: Tensor, t: Tensor, condition: Condition, guidance: float | None
) -> tuple[Prediction, Tensor | None]:
    """The guided prediction, and eps_c - eps_u without gradient where there are two branches (else None)."""
    scale = model.default_guidance if guidance is None else guidance
    if model.guidance_mode == "embedded" or scale == 1:
        return model.predict(x, t, condition, guidance), None
    halves: list[Tensor] = []

    def call(x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        halves.append(model.network_output(x, t, tensors, None))
        return halves[0]

    times = t.to(torch.float64 if x.dtype == torch.float64 else torch.float32).to(x.device).expand(len(x))
    output = guided_output(call, x, times, condition.tensors, condition.negative, scale)
    unconditional, conditional = halves[0].detach().chunk(2)
    kind, schedule = model.prediction_kind, model.schedule
    gap = (Prediction(x.detach(), t, conditional, kind, schedule).epsilon
           - Prediction(x.detach(), t, unconditional, kind, schedule).epsilon)
    return Prediction(x, t, output, kind, schedule), gap


class TFG(Sampler):
    """Training-free guidance; the methods it contains are subclasses with other settings. trace: one entry a step:
    "step", "value" (B,) of f at x0_t, "size" (B,) norm of what was added to the sample."""

    name = "tfg"
    needs = ("reward", "gradient")
    Config = GuidanceConfig
    SETTING: ClassVar[GuidanceConfig] = GuidanceConfig()

    def __init__(self, config: GuidanceConfig | None = None) -> None:
        super().__init__(self.SETTING if config is None else config)

    def check(self, model: DiffusionModel, reward: Reward) -> None:
        """As in `Sampler.check`; the rule "cfg" needs two branches."""
        super().check(model, reward)
        c = self.config
        scale = model.default_guidance if c.guidance is None else c.guidance
        if c.rule == "cfg" and (c.rho or c.mu) and (model.guidance_mode == "embedded" or scale == 1):
            raise TechniqueError("rule='cfg' ties the step to classifier-free guidance, and this model runs without "
                                 "(guidance 1 or embedded): set guidance > 1, or rule='unit'")

    def sample(self, model: DiffusionModel, prompts: Sequence[str], reward: Reward, *, seed: int = 0) -> Samples:
        """See `Sampler.sample`."""
        self.check(model, reward)
        prompts = texts(prompts)
        with counted(model, reward) as ledger:
            condition = model.encode(prompts)
            parts, traces = [], []
            for rows in torch.arange(len(prompts)).split(self.config.batch):
                x, trace = self._rollout(model, condition[rows], reward, partial(row_generators, seed, rows.tolist()))
                parts.append(x)
                traces.append(trace)
            latents = torch.cat(parts)
            pictures = decode_all(model, latents, self.config.batch)
            rewards = score_all(reward, pictures, prompts, self.config.batch)
        trace = [{"step": entries[0]["step"]} | {k: torch.cat([e[k] for e in entries]) for k in ("value", "size")}
                 for entries in zip(*traces)]
        return Samples(pictures, latents, rewards, trace, ledger)

    def _rollout(self, model: DiffusionModel, condition: Condition, reward: Reward, noise: Streams):
        c = self.config
        times = model.schedule.grid(c.steps)
        factors = strengths(model.schedule, c.steps, c.growth) if c.rule == "tfg" else torch.ones(c.steps)
        stream, draws = noise("rollout"), partial(noise, "smoothing") if c.sigma > 0 else lambda *key: []
        x, trace = model.initial_noise(len(condition), stream), []
        for i, (t, s) in enumerate(pairwise(times)):
            active = (c.rho > 0 or c.mu > 0) and _inside(i, c.steps, c.window)
            step = _GuidedStep(model, condition, reward, c, float(factors[i]) if active else 0.0)
            x_next, entry = step(x, t, s, stream, draws(i, 0))
            moved = entry["size"] > 0
            for turn in range(1, c.recurrences if _inside(i, c.steps, c.recur_window) else 1):
                if not moved.any():  # no gradient, nothing to repeat: the base sampler's picture stays the same
                    break
                again = noise("recurrence", i, turn)
                up = renoise(model.schedule, x_next, s, t, randn_tensor(x.shape, again, x.device, x.dtype))
                repeated, new = step(up, t, s, again, draws(i, turn))
                rows = moved.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
                x_next = torch.where(rows, repeated, x_next)
                entry = {name: torch.where(moved, new[name], entry[name]) for name in entry}
            x = x_next
            trace.append({"step": i, **entry})
        return x, trace


@dataclass(frozen=True, eq=False)
class _GuidedStep:
    """One step from t to s. factor: of rho and mu in this step; 0 is the base sampler's step."""

    model: DiffusionModel
    condition: Condition
    reward: Reward
    config: GuidanceConfig
    factor: float

    def __call__(
        self, x: Tensor, t: Tensor, s: Tensor, stream: list[torch.Generator], smoothing: list[torch.Generator]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The next sample and its part of the trace."""
        c, dynamics = self.config, DDIM(self.config.eta)
        through = c.rho > 0 and self.factor > 0
        x = x.detach().requires_grad_(through)
        with torch.set_grad_enabled(through):
            prediction, gap = predict_branches(self.model, x, t, self.condition, c.guidance)
        d_t, value = torch.zeros_like(x), torch.full((len(x),), float("nan"))
        if through:
            gradient, value = self._gradient(prediction.x0, x, prediction, smoothing)
            d_t = self._step(gradient, c.rho, gap)
        prediction = prediction.detach()
        d_0 = torch.zeros_like(x)
        if c.mu > 0 and self.factor > 0:
            d_0, before = self._ascend(prediction, gap, smoothing)
            value = value if through else before
        transition = dynamics.transition(prediction, s)
        noise = None if transition.deterministic else randn_tensor(x.shape, stream, x.device, x.dtype)
        base = transition.sample(noise)
        if not bool((d_t != 0).any() or (d_0 != 0).any()):
            x_next = base
        elif c.where == "epsilon":
            x_next = dynamics.transition(guided_epsilon(prediction, d_t, d_0), s).sample(noise)
        else:
            a_next = self.model.schedule.coefficients(s)[0].to(x)
            divisor = (prediction.a / a_next) if c.rule == "tfg" and self.model.schedule.family == "vp" else 1.0
            x_next = base + d_t / divisor + a_next * d_0
        size = (x_next - base).flatten(1).norm(dim=1)
        return x_next.detach(), {"value": value.cpu(), "size": size.detach().cpu()}

    def _gradient(
        self, x0: Tensor, variable: Tensor, prediction: Prediction, smoothing: list[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Gradient of f~(x0) in `variable`, and f~ (B,)."""
        c = self.config
        noises = None
        if c.sigma > 0:
            draws = [randn_tensor(x0.shape, smoothing, x0.device, x0.dtype) for _ in range(c.draws)]
            noises = c.sigma * prediction.s.detach() * torch.stack(draws)
        scale = loss_scale(self.model)
        with torch.enable_grad():
            value = smoothed(self._f, x0, noises)
            gradient = torch.autograd.grad(scale * value.sum(), variable)[0] / scale
        return gradient, value.detach()

    def _f(self, x0: Tensor) -> Tensor:
        return self.config.strength * self.reward(self.model.decode(x0, clamp=True), self.condition.prompts)

    def _ascend(
        self, prediction: Prediction, gap: Tensor | None, smoothing: list[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """D_0, the way of N_iter steps on x0, and f~ (B,) where it starts."""
        x0, first = prediction.x0, None
        for _ in range(self.config.iterations):
            x0 = x0.detach().requires_grad_()
            gradient, value = self._gradient(x0, x0, prediction, smoothing)
            first = value if first is None else first
            x0 = x0.detach() + self._step(gradient, self.config.mu, gap)
        return x0 - prediction.x0, first

    def _step(self, gradient: Tensor, size: float, gap: Tensor | None) -> Tensor:
        c = self.config
        scale = self.model.default_guidance if c.guidance is None else c.guidance
        return scaled(gradient, c.rule, size * self.factor, gap, scale)


def _inside(index: int, steps: int, window: tuple[float, float]) -> bool:
    return window[0] <= index / steps < window[1]


class DPS(TFG):
    """Diffusion posterior sampling (arXiv 2209.14687): x_s = S + zeta grad_{x_t} r(x0_t), r = -||y - A(x0)||."""

    name = "dps"
    SETTING = GuidanceConfig(rho=0.3, mu=0.0, sigma=0.0, draws=1, rule="constant", steps=1000)


class FreeDoM(TFG):
    """FreeDoM (arXiv 2303.09833): the step's rms is 0.2 w rms(eps_c - eps_u); time travel in the middle."""

    name = "freedom"
    SETTING = GuidanceConfig(rho=0.2, mu=0.0, sigma=0.0, draws=1, rule="cfg", recurrences=3, recur_window=(0.3, 0.6),
                             window=(0.3, 0.7), steps=100)


class MPGD(TFG):
    """Manifold preserving guided diffusion (arXiv 2311.16424): x0 moves, the network is not differentiated."""

    name = "mpgd"
    SETTING = GuidanceConfig(rho=0.0, mu=15.0, sigma=0.0, draws=1, rule="cfg", window=(0.3, 0.7), steps=100)


class LGD(TFG):
    """Loss-guided diffusion, Monte Carlo: the gradient of the smoothed reward through the network."""

    name = "lgd"
    SETTING = GuidanceConfig(rho=1.0, mu=0.0, sigma=0.1, draws=10, rule="constant", steps=100)


class UniversalGuidance(TFG):
    """Universal guidance (arXiv 2302.07121): forward on x_t and backward on x0, both through epsilon, repeated."""

    name = "universal_guidance"
    SETTING = GuidanceConfig(rho=6.0, mu=0.01, sigma=0.0, draws=1, rule="constant", where="epsilon", iterations=5,
                             recurrences=6, steps=500, guidance=3.0)


_SD = {"model": "sd1.5", "reward": "pickscore"}
_SHAPES = {"model": "shapes-sd", "reward": "shapes-pickscore", "source": "ours"}
TFG.PRESETS = {
    "full": Preset(GuidanceConfig(rho=0.25, mu=2.0, sigma=0.1, draws=1, iterations=4, batch=1), NO_TRAINING, **_SD,
                   source="arXiv 2409.15761, scripts for style on SD1.5",
                   cost="100 steps x 2 branches = 200 network calls with gradient, 500 reward gradients a picture"),
    "single": Preset(GuidanceConfig(rho=0.25, mu=2.0, sigma=0.1, draws=1, steps=50, batch=1), NO_TRAINING, **_SD,
                     source="ours: half the steps, one inner step", cost="100 network calls with gradient a picture"),
    "toy": Preset(GuidanceConfig(rho=0.1, mu=0.1, sigma=0.1, draws=1, rule="cfg", steps=20, guidance=3.0), NO_TRAINING,
                  **_SHAPES, cost="40 network calls with gradient a picture, under a second"),
}
DPS.PRESETS = {
    "full": Preset(replace(DPS.SETTING, batch=1), NO_TRAINING, **_SD,
                   source="arXiv 2209.14687: zeta 0.3, 1000 steps, on the norm of a residual; the reward is ours",
                   cost="2,000 network calls with gradient a picture"),
    "single": Preset(replace(DPS.SETTING, steps=100, rule="unit", batch=1), NO_TRAINING,
                     **_SD, source="ours: unit gradients, so that the reward's units do not matter",
                     cost="200 network calls with gradient a picture"),
    "toy": Preset(replace(DPS.SETTING, steps=20, rule="unit", guidance=3.0), NO_TRAINING,
                  **_SHAPES, cost="40 network calls with gradient a picture"),
}
FreeDoM.PRESETS = {
    "full": Preset(replace(FreeDoM.SETTING, batch=1), NO_TRAINING, **_SD,
                   source="arXiv 2303.09833 and its SD style script: 0.2 w rms ratio, steps 30 to 70 of 100, 3 repeats",
                   cost="320 network calls a picture, 200 of them with gradient"),
    "single": Preset(replace(FreeDoM.SETTING, steps=50, batch=1), NO_TRAINING, **_SD,
                     source="ours: half the steps", cost="160 network calls a picture"),
    "toy": Preset(replace(FreeDoM.SETTING, steps=20, guidance=3.0), NO_TRAINING, **_SHAPES,
                  cost="64 network calls a picture, 40 of them with gradient"),
}
MPGD.PRESETS = {
    "full": Preset(replace(MPGD.SETTING, batch=4), NO_TRAINING, **_SD,
                   source="arXiv 2311.16424 and its SD style script: 15 w rms ratio, steps 30 to 70 of 100",
                   cost="200 network calls, 40 reward gradients a picture; none through the network"),
    "single": Preset(replace(MPGD.SETTING, steps=50, batch=4), NO_TRAINING, **_SD,
                     source="ours: half the steps", cost="100 network calls, 20 reward gradients a picture"),
    "toy": Preset(replace(MPGD.SETTING, mu=1.0, steps=20, guidance=3.0), NO_TRAINING,
                  **_SHAPES, cost="40 network calls, 8 reward gradients a picture"),
}
UniversalGuidance.PRESETS = {
    "full": Preset(replace(UniversalGuidance.SETTING, batch=1), NO_TRAINING, **_SD,
                   source="arXiv 2302.07121, README for style: weight 6, 6 repeats, guidance 3, 500 steps; "
                          "the backward step is ours",
                   cost="6,000 network calls with gradient a picture"),
    "single": Preset(replace(UniversalGuidance.SETTING, steps=50, recurrences=2, batch=1),
                     NO_TRAINING, **_SD, source="ours: fewer steps and repeats",
                     cost="200 network calls with gradient a picture"),
    "toy": Preset(replace(UniversalGuidance.SETTING, rho=0.5, steps=20, recurrences=2),
                  NO_TRAINING, **_SHAPES, cost="80 network calls with gradient a picture"),
}
