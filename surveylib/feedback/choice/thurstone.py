"""Thurstone, case V: P(a preferred to b) = Φ(θ_a - θ_b) (Thurstone 1927, Psychological Review 34).

Each item's momentary value is N(θ, ½), independent; the difference of two has variance 1. Strengths are therefore in
standard deviations of a difference. Textbooks that give each item variance 1 have strengths √2 times as large.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr

from surveylib.feedback.choice.model import ChoiceModel


def log_likelihood(strengths: Tensor, first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
    """y log Φ(θ_first - θ_second) + (1 - y) log Φ(θ_second - θ_first), in nats, (M,). Arguments as in Bradley-Terry."""
    difference = strengths[first] - strengths[second]
    return preference * log_ndtr(difference) + (1 - preference) * log_ndtr(-difference)


def sample(strengths: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """Preferences (M,), 1 where the first won and 0 where the second did."""
    return torch.bernoulli(ndtr((strengths[first] - strengths[second]).double()), generator=generator)


class Thurstone(ChoiceModel):
    """The model for `fit`. Reads `Comparisons` with any preference in [0, 1]."""

    name, title = "thurstone", "Thurstone (case V)"

    def log_likelihood(self, strengths, extras, data):
        return log_likelihood(strengths, data.first, data.second, data.preference)
