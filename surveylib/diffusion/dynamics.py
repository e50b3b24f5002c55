"""One reverse step as an exact Gaussian: ``x_s ~ N(mean, std²)`` given x_t, for every sampler with noise in it.

With the prediction's x0 and eps at (x_t, t), coefficients (a, s) at t and (a', s') at the next, cleaner time:

* **DDIM form** (`DDPM`, `DDIM`, `CPS`, `TurboAncestral`):  mean = a' x0 + sqrt(s'² - std²) eps.
  They differ in std alone.
* **Euler-Maruyama of the reverse SDE** (`FlowSDE`, `DanceSDE`, `ReverseSDE`), with step d = sigma - sigma':
  mean = x - d [ v + g²/(2 sigma) eps ],  std = g sqrt(d).  g = 0 is the ODE.

All run on both families. The SDEs are written in flow coordinates y = x / (a + s), sigma = s / (a + s), in which a VP
process is a flow too (y = (1 - sigma) x0 + sigma eps, same x0 and eps); for flow models y = x.

First and last step. At sigma = 1 `FlowSDE`'s g is infinite; as the official code does, 1 - sigma is replaced there by
1 - sigma'. The last step, to the clean time, is deterministic and lands on x0 (std = 0, no log-probability): official
code adds noise there and then drops the step from training. On a VP schedule whose last abar is not 1 (Stable
Diffusion) it ends at a' x0 + s' eps. diffusers' DDIM with eta > 0 has noise in that step, too little to be seen. On
Stable Diffusion's leading grid that does no harm. On a trailing one, whose last step is long, a change of the network
counts many times there what it counts in any other step, in the log-probability and in the KL: a policy gradient would
learn little but the last step. `DDIM(eta, last_noise=True)` is diffusers' sampler.

Deterministic multi-step solvers are in `surveylib.diffusion.solvers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.schedules import broadcast

Reduction = Literal["sum", "mean"]
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Transition:
    """An isotropic Gaussian over the next sample.

    Attributes:
        mean: (B, ...), float32 or float64.
        std: standard deviation, () or (B, 1, ...); 0 where the step is deterministic.
    """

    mean: Tensor
    std: Tensor

    @property
    def deterministic(self) -> bool:
        """True when no sample of the batch receives noise."""
        return not bool((self.std > 0).any())

    def sample(self, noise: Tensor | None) -> Tensor:
        """mean + std z; ``noise`` z has the shape of the mean (None only for a deterministic step)."""
        if noise is None:
            if not self.deterministic:
                raise ValueError("a stochastic step needs noise: pass a tensor of the shape of the mean")
            return self.mean
        return self.mean + self.std * noise.to(self.mean)

    def log_prob(self, x_next: Tensor, reduction: Reduction) -> Tensor:
        """Log-density of ``x_next``, (B,). See `log_prob`."""
        return log_prob(x_next, self, reduction)


def log_prob(x_next: Tensor, transition: Transition, reduction: Reduction) -> Tensor:
    """log N(x_next; mean, std²) in float32 (float64 stays), shape (B,).

    Args:
        x_next: (B, ...), the sample exactly as it was stored: round it to the storage type before, not after.
        reduction: ``"sum"`` is the log-density. ``"mean"`` divides it by the number of dimensions, as DDPO, TRL,
            Flow-GRPO and DanceGRPO do: the exponential of a difference of means is not a likelihood ratio, and clip
            ranges of 1e-4 belong to it. There is no default because every constant of a method depends on it.

    Raises:
        ValueError: a step without noise (std = 0), a shape that differs, an unknown reduction.
    """
    if x_next.shape != transition.mean.shape:
        raise ValueError(f"x_next {tuple(x_next.shape)} and mean {tuple(transition.mean.shape)} differ in shape")
    if not bool((transition.std > 0).all()):
        raise ValueError("a deterministic step has no log-probability: leave out steps whose std is 0")
    mean, std = transition.mean, transition.std
    dtype = torch.promote_types(mean.dtype, torch.float32)
    mean, std, x_next = mean.to(dtype), std.to(dtype), x_next.to(dtype)
    density = -((x_next - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * LOG_2PI
    return reduce(density, reduction)


def kl_divergence(p: Transition, q: Transition, reduction: Reduction) -> Tensor:
    """KL(p || q) of two transitions with the same std: (mean_p - mean_q)² / (2 std²), shape (B,)."""
    if not torch.equal(p.std, q.std):
        raise ValueError("the two transitions must have the same std")
    if not bool((p.std > 0).all()):
        raise ValueError("a deterministic step has no KL divergence: leave out steps whose std is 0")
    return reduce((p.mean - q.mean) ** 2 / (2 * p.std**2), reduction)


def reduce(value: Tensor, reduction: Reduction) -> Tensor:
    """Sum or mean over all dimensions but the first."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"unknown reduction {reduction!r}: choose 'sum' (log-density) or 'mean' (official RL code)")
    return value.flatten(1).sum(1) if reduction == "sum" else value.flatten(1).mean(1)


class Dynamics:
    """Base class: ``transition(prediction, s)`` is the Gaussian over x_s given x_t."""

    name: ClassVar[str]

    def transition(self, prediction: Prediction, s: Tensor | float) -> Transition:
        """The reverse transition from ``prediction.t`` to the cleaner time ``s`` (() or (B,), the schedule's units).

        Differentiable in the prediction. ``std`` never depends on the network.
        """
        raise NotImplementedError


def ddim_form(prediction: Prediction, s: Tensor | float, std: Tensor) -> Transition:
    """mean = a' x0 + sqrt(s'² - std²) eps (DDIM, arXiv 2010.02502, eq. 12) with ``std`` of shape () or (B,)."""
    a_next, s_next = prediction.schedule.coefficients(s)
    std = std.to(s_next)
    direction = (s_next**2 - std**2).clamp(min=0).sqrt()
    x = prediction.x
    mean = broadcast(a_next, x) * prediction.x0 + broadcast(direction, x) * prediction.epsilon
    return Transition(mean, broadcast(std, x))


def posterior_std(prediction: Prediction, s: Tensor | float) -> Tensor:
    """std of q(x_s | x_t, x0): s' sqrt(1 - r²) with r = (s'/a') / (s/a), float64, () or (B,).

    For VP its square is (1 - abar')/(1 - abar) (1 - abar/abar') (DDPM, eq. 7). In the last step too.
    """
    a, sigma = prediction.schedule.coefficients(prediction.t)
    a_next, s_next = prediction.schedule.coefficients(s)
    ratio = (s_next * a) / (a_next * sigma)
    return s_next * (1 - ratio**2).clamp(min=0).sqrt()


def without_last(std: Tensor, prediction: Prediction, s: Tensor | float) -> Tensor:
    """``std`` with 0 in the step to the clean time."""
    return torch.where(prediction.schedule.is_end(s).to(std.device), torch.zeros_like(std), std)


class DDIM(Dynamics):
    """DDIM with eta (arXiv 2010.02502, eq. 16): 0 is the deterministic sampler, 1 the ancestral one.

    For flow models eta = 0 is Euler's method on the ODE.

    Args:
        last_noise: keep the noise that diffusers' DDIM has in the last step of a schedule that ends below abar = 1.
    """

    name = "ddim"

    def __init__(self, eta: float = 0.0, last_noise: bool = False) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        self.eta, self.last_noise = float(eta), last_noise

    def __repr__(self) -> str:
        return f"DDIM(eta={self.eta:g}{', last_noise=True' if self.last_noise else ''})"

    def transition(self, prediction: Prediction, s: Tensor | float) -> Transition:
        std = self.eta * posterior_std(prediction, s)
        return ddim_form(prediction, s, std if self.last_noise else without_last(std, prediction, s))


class DDPM(Dynamics):
    """Ancestral sampling (arXiv 2006.11239, algorithm 2): the posterior's mean, and one of the paper's two variances.

    Args:
        variance: ``"small"`` is the posterior's (then this is DDIM with eta = 1); ``"large"`` that of the forward
            step, s² - (a s'/a')².
    """

    name = "ddpm"

    def __init__(self, variance: Literal["small", "large"] = "small") -> None:
        if variance not in ("small", "large"):
            raise ValueError(f"unknown variance {variance!r}: choose 'small' or 'large'")
        self.variance = variance

    def __repr__(self) -> str:
        return f"DDPM(variance={self.variance!r})"

    def transition(self, prediction: Prediction, s: Tensor | float) -> Transition:
        posterior = ddim_form(prediction, s, without_last(posterior_std(prediction, s), prediction, s))
        if self.variance == "small":
            return posterior
        a, sigma = prediction.schedule.coefficients(prediction.t)
        a_next, s_next = prediction.schedule.coefficients(s)
        std = without_last((sigma**2 - (a * s_next / a_next) ** 2).clamp(min=0).sqrt(), prediction, s)
        return Transition(posterior.mean, broadcast(std, prediction.x))


class TurboAncestral(Dynamics):
    """The few-step ancestral sampler of SDXL-Turbo (diffusers' EulerAncestralDiscreteScheduler); the scheduler that
    SD-Turbo comes with is the deterministic Euler, which is `DDIM` with eta = 0.

    In variance-exploding coordinates k = s/a: k_up² = k'² (k² - k'²)/k², k_down = k'²/k, x' = x0 + k_down eps + k_up z.
    Brought back to x this is DDIM with eta = 1 (a test says so), on a ``trailing`` grid of 1 to 4 steps.
    PSO (arXiv 2410.03190) uses it with std = a' k_up.
    """

    name = "turbo_ancestral"

    def __repr__(self) -> str:
        return "TurboAncestral()"

    def transition(self, prediction: Prediction, s: Tensor | float) -> Transition:
        a, sigma = prediction.schedule.coefficients(prediction.t)
        a_next, s_next = prediction.schedule.coefficients(s)
        k, k_next = sigma / a, s_next / a_next
        k_up = torch.sqrt((k_next**2 * (1 - (k_next / k) ** 2)).clamp(min=0))  # written so that k = inf is defined
        return ddim_form(prediction, s, without_last(a_next * k_up, prediction, s))


class CPS(Dynamics):
    """Coefficients-Preserving Sampling (arXiv 2509.05952): std = s' sin(eta pi/2), in the DDIM form.

    The coefficients of x0 and of the total noise stay (a', s'), so that a picture carries no surplus noise at any step.
    eta = 0 is the ODE; eta = 1 replaces all noise at each step (x' = a' x0 + s' z, the sampler of consistency models).

    **It does not sample the model's distribution.** The noise it puts in is of order 1 at each step, however short the
    step is. Each step denoises from sigma to sigma' cos(eta pi/2) in one straight jump, then adds noise back to sigma'.
    The jump stays long when the steps become many, so its error does not vanish: x0 is a posterior mean, which spreads
    less than x0 itself, and the eps that goes with it is not independent of it. On a point mass nothing is lost; on
    spread data variance is. On N(m, 1) with exact scores, uniform flow grid, eta = 0.7, the samples have 0.644 of the
    data's variance at 20 steps and 0.723 at 1000; the limit of many steps is cos²(eta pi/4) = 0.727 for any variance
    (`tests/truth/test_sde_marginals.py`). `FlowSDE` and `DanceSDE` converge to the right marginals.

    The official log-probability is -mean((x' - mean)²), without variance and constant; `log_prob` here is the true one.
    """

    name = "cps"

    def __init__(self, eta: float = 0.7) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        self.eta = float(eta)

    def __repr__(self) -> str:
        return f"CPS(eta={self.eta:g})"

    def transition(self, prediction: Prediction, s: Tensor | float) -> Transition:
        _, s_next = prediction.schedule.coefficients(s)
        std = s_next * math.sin(self.eta * math.pi / 2)
        return ddim_form(prediction, s, without_last(std, prediction, s))


class ReverseSDE(Dynamics):
    """One Euler-Maruyama step of the reverse SDE with the same marginals as the ODE, for any diffusion g(sigma) >= 0.

    x' = x - d [ v + g²/(2 sigma) eps ] + g sqrt(d) z,  d = sigma - sigma', score = -eps / sigma.
    Weak order 1 in the number of steps for bounded g. ``ReverseSDE(lambda sigma, sigma_next: 3 * sigma**2)`` is the
    SDE of RBF (rollover budget forcing, arXiv 2503.19385).

    Args:
        g: ``g(sigma, sigma_next) -> tensor``, sigmas in [0, 1], float64.
    """

    name = "reverse_sde"

    def __init__(self, g: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._g = g

    def __repr__(self) -> str:
        return "ReverseSDE(g)"

    def diffusion(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """g at sigma."""
        return self._g(sigma, sigma_next)

    def transition(self, prediction: Prediction, s: Tensor | float) -> Transition:
        schedule = prediction.schedule
        a, noise = schedule.coefficients(prediction.t)
        a_next, noise_next = schedule.coefficients(s)
        scale, scale_next = a + noise, a_next + noise_next  # 1 for flow: y = x / scale
        sigma, sigma_next = noise / scale, noise_next / scale_next
        step = sigma - sigma_next
        g = self.diffusion(sigma, sigma_next) * torch.ones_like(sigma)
        g = torch.where(schedule.is_end(s).to(g.device), torch.zeros_like(g), g)  # last step: the ODE, lands on x0
        x = prediction.x
        drift = prediction.velocity + broadcast(g**2 / (2 * sigma), x) * prediction.epsilon
        mean = x / broadcast(scale, x) - broadcast(step, x) * drift
        return Transition(broadcast(scale_next, x) * mean, broadcast(scale_next * g * step.sqrt(), x))


class FlowSDE(ReverseSDE):
    """Flow-GRPO's SDE (arXiv 2505.05470): g = a sqrt(sigma / (1 - sigma)), a = 0.7.

    With dt = sigma' - sigma < 0: mean = x (1 + g² dt/(2 sigma)) + v (1 + g² (1 - sigma)/(2 sigma)) dt and
    std = g sqrt(-dt).
    At sigma = 1, where g is infinite, 1 - sigma' stands for 1 - sigma (official code). The first steps add noise of
    order a however short they are; the path forgets it, so that marginals converge with order min(1, a²) in the steps
    (`tests/truth/test_sde_marginals.py`).
    """

    name = "flow_sde"

    def __init__(self, a: float = 0.7) -> None:
        if a < 0:
            raise ValueError(f"a must not be negative, got {a}")
        self.a = float(a)

    def __repr__(self) -> str:
        return f"FlowSDE(a={self.a:g})"

    def diffusion(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        rest = 1 - torch.where(sigma >= 1, sigma_next, sigma)
        return self.a * torch.sqrt(sigma / rest)


class DanceSDE(ReverseSDE):
    """DanceGRPO's SDE (arXiv 2505.07818): constant g = eta, 0.3 in the official FLUX recipe."""

    name = "dance_sde"

    def __init__(self, eta: float = 0.3) -> None:
        if eta < 0:
            raise ValueError(f"eta must not be negative, got {eta}")
        self.eta = float(eta)

    def __repr__(self) -> str:
        return f"DanceSDE(eta={self.eta:g})"

    def diffusion(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return torch.full_like(sigma, self.eta)


DYNAMICS: dict[str, type[Dynamics]] = {
    cls.name: cls for cls in (DDPM, DDIM, FlowSDE, DanceSDE, CPS, TurboAncestral)
}


def make_dynamics(name: str, **options: Any) -> Dynamics:
    """Dynamics by name: ``ddpm``, ``ddim``, ``flow_sde``, ``dance_sde``, ``cps``, ``turbo_ancestral``.

    Raises:
        ValueError: an unknown name; the error lists what exists.
    """
    if name not in DYNAMICS:
        raise ValueError(f"unknown dynamics {name!r}: choose one of {', '.join(DYNAMICS)}")
    return DYNAMICS[name](**options)
