"""Weighted particles: effective sample size, resampling, the choice of one. All in log space, float64, on the CPU.

Ancestors are drawn by inverting the weights' distribution function W at K points (Douc, Cappé, Moulines,
arXiv cs/0507025):

* multinomial   u_k                 independent
* stratified    (k + u_k) / K       one in each K-th
* systematic    (k + u_0) / K       one uniform number for all; particle j gets floor or ceil of K w_j children

Each gives particle j K w_j children on average, so that the mean of any function over the particles is unbiased.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from surveylib.techniques.contract import TechniqueError

Scheme = Literal["systematic", "stratified", "multinomial"]
SCHEMES = ("systematic", "stratified", "multinomial")


def normalised(log_weights: Tensor) -> Tensor:
    """Weights (B, K) that sum to 1 over the particles of each prompt.

    Raises:
        TechniqueError: a NaN or +inf log-weight, or a prompt whose weights are all zero; it names the prompts.
    """
    log_weights = log_weights.double()
    bad = (log_weights.isnan() | (log_weights == float("inf"))).any(1)
    if bad.any():
        raise TechniqueError(f"a log-weight is NaN or infinite for prompts {_numbers(bad)}: check the reward and lower "
                             "the strength")
    dead = (log_weights == float("-inf")).all(1)
    if dead.any():
        raise TechniqueError(f"all particles of prompts {_numbers(dead)} have weight zero: no particle is left to go "
                             "on with. Give the reward a finite least value, or use more particles")
    return torch.softmax(log_weights, 1)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """1 / sum of squared normalised weights, (B,), between 1 and K."""
    return 1 / normalised(log_weights).square().sum(1)


def resample(log_weights: Tensor, uniforms: Tensor, scheme: Scheme = "systematic") -> Tensor:
    """Ancestors (B, K), numbers of particles, of log-weights (B, K) and uniform numbers (B, K) in [0, 1).

    Raises:
        TechniqueError: as `normalised`, or an unknown scheme.
    """
    k = log_weights.shape[1]
    if scheme == "multinomial":
        points = uniforms.double()
    elif scheme in SCHEMES:
        inside = uniforms[:, :1].expand_as(uniforms) if scheme == "systematic" else uniforms
        points = (torch.arange(k, dtype=torch.float64) + inside.double()) / k
    else:
        raise TechniqueError(f"unknown resampling scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    return _invert(normalised(log_weights), points)


def choose(log_weights: Tensor, uniforms: Tensor, exchangeable: Tensor | None = None) -> Tensor:
    """One particle (B,) of each prompt, with the probability of its weight; log-weights (B, K), uniforms (B,).

    Where all weights of an `exchangeable` prompt are equal the choice is particle 0, the base sampler's picture: any of
    them is a fair draw. Resampled particles are not exchangeable: systematic and stratified resampling sort them by
    ancestor, so that the first place always holds a child of the first ancestors.

    Args:
        exchangeable: (B,) bool, prompts whose particles were never resampled; None: all.
    """
    weights = normalised(log_weights)
    chosen = _invert(weights, uniforms.double()[:, None])[:, 0]
    equal = (log_weights == log_weights[:, :1]).all(1)
    if exchangeable is not None:
        equal = equal & exchangeable
    return torch.where(equal, torch.zeros_like(chosen), chosen)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log of the mean weight over the particles, (B,): the factor by which one stage multiplies the estimate of Z."""
    return torch.logsumexp(log_weights.double(), 1) - torch.tensor(log_weights.shape[1], dtype=torch.float64).log()


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """First particle whose cumulated weight exceeds each point; a particle of weight zero is never taken."""
    cumulated = weights.cumsum(1)
    cumulated = cumulated / cumulated[:, -1:]  # the sum is 1 up to rounding; the last point must not fall off the end
    places = torch.searchsorted(cumulated, points.contiguous(), right=True)
    last = weights.shape[1] - 1 - (weights > 0).flip(1).int().argmax(1, keepdim=True)
    return torch.minimum(places, last)


def _numbers(rows: Tensor) -> str:
    return ", ".join(map(str, rows.nonzero().flatten().tolist()))
