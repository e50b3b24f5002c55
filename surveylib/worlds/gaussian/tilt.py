"""The optimum of KL-regularised alignment, exactly: p*(x) ∝ p(x) exp(r(x) / beta).

It maximises E[r] - beta KL(q || p) over all q; the maximum is beta log Z with Z = E_p[exp(r / beta)]
(arXiv 1805.00909; DPO, arXiv 2305.18290, appendix A.1). For a Gaussian mixture p the tilt is again a mixture when r is

* linear,       r = c.x + b:                     means move by S_k c / beta, weights follow
* quadratic,    r = -(x - m)' A (x - m) / 2:     precisions grow by A / beta
* log-mixture,  r = scale log q(x), scale/beta a positive integer n: the product of p and n times q

and on a grid for any r. Since the optimum is a mixture, its own scores are known at every noise level, and with them
the soft value of a noisy sample (`soft_value`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from surveylib.worlds.gaussian.grid import Grid, GridDensity
from surveylib.worlds.gaussian.mixture import GaussianMixture


@dataclass(frozen=True)
class LinearReward:
    """r(x) = c.x + offset, with ``direction`` c of d numbers. Call: (B, d) -> (B,)."""

    direction: tuple[float, ...]
    offset: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return x @ torch.as_tensor(self.direction, dtype=x.dtype, device=x.device) + self.offset


@dataclass(frozen=True)
class QuadraticReward:
    """r(x) = -(x - m)' A (x - m) / 2: "be near m". Call: (B, d) -> (B,).

    ``centre``: m, d numbers. ``precision``: A, a number (times the identity) or d rows of d numbers, symmetric; it may
    be negative ("be far from m") while the tilt stays normalisable.
    """

    centre: tuple[float, ...]
    precision: float | tuple[tuple[float, ...], ...] = 1.0

    def matrix(self) -> Tensor:
        """A as (d, d), float64."""
        precision = torch.as_tensor(self.precision, dtype=torch.float64)
        return precision if precision.ndim == 2 else precision * torch.eye(len(self.centre), dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        difference = x - torch.as_tensor(self.centre, dtype=x.dtype, device=x.device)
        return -0.5 * torch.einsum("bi,ij,bj->b", difference, self.matrix().to(x), difference)


@dataclass(frozen=True)
class LogMixtureReward:
    """r(x) = scale log q(x) for a mixture q: a reward with several peaks. Call: (B, d) -> (B,)."""

    mixture: GaussianMixture
    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * self.mixture.log_prob(x)


@dataclass(frozen=True)
class Factor:
    """M functions exp(-x'J x/2 + h.x + c), summed: what a closed-form tilt multiplies the density by.

    J: (M, d, d), h: (M, d), c: (M,), float64.
    """

    J: Tensor
    h: Tensor
    c: Tensor


def multiply(mixture: GaussianMixture, factor: Factor) -> tuple[GaussianMixture, float]:
    """The normalised product of a mixture of K and a factor of M terms (K M components), and log of its integral.

    Raises:
        ValueError: the product cannot be normalised.
    """
    precision = torch.linalg.inv(mixture.covariances)[:, None]  # (K, 1, d, d)
    pull = (precision @ mixture.means[:, None, :, None]).squeeze(-1)  # (K, 1, d)
    new_precision = precision + factor.J
    if not (torch.linalg.eigvalsh(new_precision) > 0).all():
        raise ValueError("exp(r/beta) grows faster than the density falls: raise beta or weaken the reward")
    new_covariance = torch.linalg.inv(new_precision)  # (K, M, d, d)
    b = pull + factor.h  # (K, M, d)
    new_mean = (new_covariance @ b[..., None]).squeeze(-1)
    exponent = 0.5 * ((b * new_mean).sum(-1) - (pull * mixture.means[:, None]).sum(-1))
    log_det = torch.logdet(mixture.covariances)[:, None] - torch.logdet(new_covariance)
    log_weight = mixture.log_weights[:, None] + factor.c + exponent - 0.5 * log_det  # (K, M)
    log_z = torch.logsumexp(log_weight.flatten(), 0)
    names = [name for name in mixture.names for _ in range(factor.J.shape[0])]
    weights = (log_weight.flatten() - log_z).exp().clamp(min=1e-300)
    d = mixture.dim
    return GaussianMixture(new_mean.reshape(-1, d), new_covariance.reshape(-1, d, d), weights, names), float(log_z)


@singledispatch
def factors(reward: object, beta: float) -> list[Factor]:
    """exp(r / beta) as a product of `Factor`s.

    Raises:
        TypeError: a reward without a closed form.
    """
    known = "LinearReward, QuadraticReward, LogMixtureReward"
    raise TypeError(f"no closed form for {type(reward).__name__} (known: {known}): use tilted_on_grid")


@factors.register
def _(reward: LinearReward, beta: float) -> list[Factor]:
    c = torch.tensor([reward.direction], dtype=torch.float64)
    d = c.shape[1]
    return [Factor(c.new_zeros(1, d, d), c / beta, c.new_tensor([reward.offset / beta]))]


@factors.register
def _(reward: QuadraticReward, beta: float) -> list[Factor]:
    A, m = reward.matrix() / beta, torch.tensor(reward.centre, dtype=torch.float64)
    return [Factor(A[None], (A @ m)[None], (-0.5 * m @ A @ m)[None])]


@factors.register
def _(reward: LogMixtureReward, beta: float) -> list[Factor]:
    power = reward.scale / beta
    if power < 1 or abs(power - round(power)) > 1e-9:
        raise ValueError(
            f"scale/beta = {power:g} is not a positive integer: the tilt is no mixture then; use tilted_on_grid"
        )
    q = reward.mixture
    J = torch.linalg.inv(q.covariances)
    h = (J @ q.means[..., None]).squeeze(-1)
    c = q.log_weights - 0.5 * ((q.means * h).sum(1) + torch.logdet(2 * torch.pi * q.covariances))
    return [Factor(J, h, c)] * round(power)


def tilted(mixture: GaussianMixture, reward: object, beta: float) -> tuple[GaussianMixture, float]:
    """p*(x) ∝ p(x) exp(r(x) / beta) as a mixture, and log Z = log E_p[exp(r / beta)].

    Args:
        reward: `LinearReward`, `QuadraticReward` or `LogMixtureReward`. beta: > 0, in units of the reward.

    Raises:
        ValueError: beta <= 0, a tilt that is not normalisable or not a mixture. TypeError: no closed form.
    """
    _check_beta(beta)
    log_z = 0.0
    for factor in factors(reward, beta):
        mixture, part = multiply(mixture, factor)
        log_z += part
    return mixture, log_z


def tilted_on_grid(
    log_density: Callable[[Tensor], Tensor], reward: Callable[[Tensor], Tensor], beta: float, grid: Grid
) -> tuple[GridDensity, float]:
    """p* on a grid for any reward, and log Z. Both arguments are functions (N, d) -> (N,)."""
    _check_beta(beta)
    base = GridDensity.of(log_density, grid)
    optimum = GridDensity(grid, base.log_density + reward(grid.points).double() / beta)
    return optimum, optimum.log_normaliser


def soft_value(
    base: GaussianMixture, optimum: GaussianMixture, log_z: float, beta: float, x: Tensor, a: float, s: float
) -> Tensor:
    """v_t(x) = beta log E[exp(r(x0)/beta) | x_t = x] = beta (log p*_t(x) - log p_t(x) + log Z), (B,).

    Its gradient divided by beta is what exact guidance adds to the base model's score.
    """
    return beta * (optimum.log_prob(x, a, s) - base.log_prob(x, a, s) + log_z)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
