"""Maximum likelihood for every choice model: Newton's method with exact derivatives by automatic differentiation.

Strengths are θ = Q z with Q an orthonormal basis of the vectors of mean zero (Helmert), so that the shift that no
comparison can see is not searched over. Everything runs in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import helmert
from torch import Tensor
from torch.autograd import grad

from surveylib.feedback.choice.graph import REMEDY, NoFiniteFit, check_finite_fit
from surveylib.feedback.choice.intervals import estimate_intervals
from surveylib.feedback.choice.result import ChoiceFit

if TYPE_CHECKING:
    from surveylib.feedback.choice.model import ChoiceModel, Data

STEPS, HALVINGS = 100, 40
DECREMENT = 1e-12   # stop when Newton's predicted gain in mean log-likelihood is below this
FLAT = 1e-7         # curvature, relative to the largest on the way, under which a direction counts as not determined


@cache
def zero_mean_basis(n: int) -> Tensor:
    """(n, n-1) float64, orthonormal columns of mean zero."""
    return torch.from_numpy(helmert(n).T.copy())


@dataclass(frozen=True, eq=False)
class Problem:
    """A model on a data set as a function of the free vector z = (strengths in the basis, free extras)."""

    model: ChoiceModel
    data: Data
    prior: float | None

    @property
    def n(self) -> int:
        return len(self.data.items)

    def parameters(self, z: Tensor) -> Tensor:
        """(n + E,): strengths, then extras, of the free vector."""
        strengths = zero_mean_basis(self.n) @ z[:self.n - 1]
        return torch.cat([strengths, self.model.natural(z[self.n - 1:], self.data)])

    def log_likelihood(self, z: Tensor) -> Tensor:
        """(M,) log-probability of each record."""
        parameters = self.parameters(z)
        return self.model.log_likelihood(parameters[:self.n], parameters[self.n:], self.data)

    def scores(self, z: Tensor) -> Tensor:
        """(M, F) gradient of each record's log-likelihood: the derivative of a vector product, column by column."""
        z = z.detach().requires_grad_()
        value = self.log_likelihood(z)
        mixed = torch.ones_like(value, requires_grad=True)
        product, = grad(value, z, mixed, create_graph=True)  # (F,), linear in mixed
        return torch.stack([grad(entry, mixed, retain_graph=True)[0] for entry in product], dim=1)

    def jacobian(self, z: Tensor) -> Tensor:
        """(n + E, F) derivative of the parameters."""
        return torch.autograd.functional.jacobian(self.parameters, z)

    def objective(self, z: Tensor, weight: Tensor) -> Tensor:
        """Minus the weighted log-posterior over the total weight; |z|² is the squared length of the strengths."""
        penalty = 0.0 if self.prior is None else (z**2).sum() / (2 * self.prior**2)
        return (penalty - (weight * self.log_likelihood(z)).sum()) / weight.sum()

    def start(self) -> Tensor:
        """Equal strengths and the model's start for the extras."""
        return torch.cat([torch.zeros(self.n - 1, dtype=torch.float64), self.model.start(self.data)])

    def names(self) -> list[str]:
        """Names of the parameters, in the order of `parameters`."""
        return [*self.data.items, *self.model.extras(self.data)]


def derivatives(objective: Callable[[Tensor], Tensor], z: Tensor) -> tuple[float, Tensor, Tensor]:
    """Value, gradient (F,) and Hessian (F, F) of a scalar function."""
    z = z.detach().requires_grad_()
    value = objective(z)
    gradient, = grad(value, z, create_graph=True)
    hessian = torch.stack([grad(entry, z, retain_graph=True)[0] for entry in gradient])
    return value.item(), gradient.detach(), (hessian + hessian.T) / 2


def newton(problem: Problem, weight: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The optimum z (F,) and the Hessian there of minus the weighted log-posterior, (F, F).

    Newton steps on the eigenvalues' absolute values (the ability model is not concave), halved until the objective
    falls. Raises RuntimeError when it does not converge, NoFiniteFit when the optimum is flat or far away.
    """
    def objective(z: Tensor) -> Tensor:
        return problem.objective(z, weight)

    z, steepest = start, 0.0
    for _ in range(STEPS):
        value, gradient, hessian = derivatives(objective, z)
        curvature, directions = torch.linalg.eigh(hessian)
        steepest = max(steepest, float(curvature[-1]))
        size = curvature.abs().clamp(min=1e-12 * steepest)
        step = -directions @ ((directions.T @ gradient) / size)
        gain = -float(gradient @ step) / 2
        if gain < DECREMENT:
            check_curvature(problem, z, curvature, directions, steepest)
            return z + step, hessian * weight.sum()
        z = line_search(objective, z, value, step, gain)
    raise RuntimeError(f"{problem.model.title}: no convergence in {STEPS} Newton steps; {REMEDY}")


@torch.no_grad()
def line_search(
    objective: Callable[[Tensor], Tensor], z: Tensor, value: float, step: Tensor, gain: float
) -> Tensor:
    """z after the step, halved until the objective falls by a tenth of the predicted gain (or to rounding)."""
    length = min(1.0, 10.0 / float(step.abs().max()))
    for _ in range(HALVINGS):
        if float(objective(z + length * step)) <= value - 0.1 * length * gain + 1e-15 * abs(value):
            break
        length /= 2
    return z + length * step


def check_curvature(problem: Problem, z: Tensor, curvature: Tensor, directions: Tensor, steepest: float) -> None:
    """Raise NoFiniteFit where the log-posterior is flat in some direction: not identified, or running to infinity."""
    if float(curvature[0]) > FLAT * steepest:
        return
    moved = (problem.jacobian(z) @ directions[:, 0]).abs()
    names = [name for name, m in zip(problem.names(), moved.tolist()) if m > 0.3 * float(moved.max())]
    raise NoFiniteFit(f"{problem.model.title}: the data do not determine {', '.join(names)} (not identified, or "
                      f"running to infinity). {REMEDY[0].upper() + REMEDY[1:]}.")


def fit_strengths(
    model: ChoiceModel, data: Data, *, prior: float | None, interval: str, cluster: object, level: float,
    resamples: int, seed: int,
) -> ChoiceFit:
    """Fit, then intervals. Arguments and errors as in `ChoiceModel.fit`."""
    if prior is not None and not (math.isfinite(prior) and prior > 0):
        raise ValueError(f"prior is {prior}: give the prior's standard deviation, above 0, or None for maximum "
                         "likelihood")
    if len(data.items) < 2:
        raise NoFiniteFit(f"only one item ({', '.join(data.items)}): there is nothing to compare")
    model.check(data, prior)
    problem = Problem(model, data, prior)
    if prior is None:
        check_finite_fit(data.items, *data.wins()[:2])
    optimum, hessian = newton(problem, data.weight, problem.start())
    spread = estimate_intervals(problem, optimum, hessian, interval=interval, cluster=cluster, level=level,
                                resamples=resamples, seed=seed)
    n = problem.n
    return ChoiceFit(
        model=model.name, items=data.items, strengths=spread.value[:n], standard_errors=spread.standard_error[:n],
        low=spread.low[:n], high=spread.high[:n], covariance=spread.covariance[:n, :n],
        extras=dict(zip(model.extras(data), spread.estimates()[n:])),
        log_likelihood=float((data.weight * problem.log_likelihood(optimum)).sum()),
        n_records=len(data), total_weight=float(np.sum(data.weight.numpy())), prior=prior, level=level,
        interval=spread.description, resamples=spread.resamples, failed_resamples=spread.failed,
        skipped=dict(data.skipped))
