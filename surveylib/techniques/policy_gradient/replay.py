"""Stored steps and what is computed on them again: shared by the policy gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import Dynamics, Transition, kl_divergence
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.paths import Paths


def stored_steps(paths: Paths, timestep_fraction: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    """The steps of N paths that have noise, and their indices (K,).

    timestep_fraction: share of these steps that is kept, the noisiest first, rounded up. The fields are
    x, x_next (N, K, *latent_shape), t, s, old (N, K). Where the steps follow one another and are more than half of the
    path, x and x_next are views of it; of fewer steps two copies are smaller than the path.

    Raises:
        TechniqueError: no step has noise.
    """
    k = paths.stochastic.nonzero().flatten()
    if not len(k):
        raise TechniqueError(f"none of the {len(paths.stochastic)} steps has noise, so no step has a probability: "
                             "choose stochastic dynamics and at least two steps")
    k = k[: math.ceil(timestep_fraction * len(k) - 1e-9)]
    t, s = paths.times(k)
    old = paths.log_prob[:, k.to(paths.log_prob.device)]
    return {"x": _states(paths, k), "x_next": _states(paths, k + 1), "t": t, "s": s, "old": old}, k


def _states(paths: Paths, k: Tensor) -> Tensor:
    """x at the given rising indices, (N, len(k), *latent_shape): a view of the path, or a copy; see `stored_steps`."""
    first, last = int(k[0]), int(k[-1]) + 1
    if last - first == len(k) and 2 * len(k) >= paths.x.shape[1]:
        return paths.x[:, first:last]
    return paths.x[:, k.to(paths.x.device)]


def check_fraction(timestep_fraction: float) -> None:
    """Raises TechniqueError for a share of the steps outside (0, 1]."""
    if not 0 < timestep_fraction <= 1:
        raise TechniqueError(f"timestep_fraction={timestep_fraction} must be in (0, 1]: the share of the chain's steps "
                             "that is trained, the noisiest first")


@torch.no_grad()
def reference_transitions(
    model: DiffusionModel, condition: Condition, dynamics: Dynamics, steps: dict[str, Tensor],
    guidance: float | None, batch: int,
) -> tuple[Tensor, Tensor]:
    """Means (N, K, *latent_shape) and stds (N, K, 1, ...) of the reference at stored steps, `batch` items at a time.

    The reference does not move within an epoch, so its means are computed once and not in every loss. The std is the
    sampler's and the same for all weights.
    """
    x, t, s = steps["x"], steps["t"], steps["s"]
    n, k = x.shape[:2]
    rows = torch.arange(n).repeat_interleave(k)
    x, t, s = x.flatten(0, 1), t.flatten(), s.flatten()
    with model.reference():
        found = [dynamics.transition(model.predict(x[i], t[i], condition[rows[i]], guidance), s[i])
                 for i in torch.arange(n * k).split(batch)]
    mean, std = torch.cat([f.mean for f in found]), torch.cat([f.std for f in found])
    return mean.unflatten(0, (n, k)), std.unflatten(0, (n, k))


def kl_ahead(kl: Tensor) -> Tensor:
    """Sum of the KL terms of the later steps, (N, K) -> (N, K); 0 for the last.

    Taken off the reward it makes the gradient of the path's KL whole. It is weighed against rewards, so it must be the
    KL itself, a sum over dimensions, also where losses use means: there everything else is divided by the dimensions.
    """
    return kl.flip(1).cumsum(1).flip(1) - kl


def kl_to_mean(transition: Transition, mean: Tensor, reduction: str) -> Tensor:
    """KL of a transition from the one with the same std around `mean`, (M,); its gradient is in the first."""
    return kl_divergence(transition, Transition(mean, transition.std), reduction)
