"""Position bias: Bradley-Terry with a constant for the first place, P(first preferred) = σ(θ_first - θ_second + δ).

δ > 0 favours the first (left) place (Davidson and Beaver 1977, Biometrics 33, on within-pair order effects; there the
factor is multiplicative, e^-δ on the second). Identified as soon as some item is shown in both places in a connected
design; pairs in random order always do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from surveylib.feedback.choice.model import ChoiceModel


def log_likelihood(
    strengths: Tensor, position: Tensor | float, first: Tensor, second: Tensor, preference: Tensor
) -> Tensor:
    """y log σ(Δ + δ) + (1 - y) log σ(-Δ - δ), in nats, (M,), with δ = ``position`` in nats of log-odds."""
    difference = strengths[first] - strengths[second] + position
    return preference * logsigmoid(difference) + (1 - preference) * logsigmoid(-difference)


def sample(
    strengths: Tensor, position: float, first: Tensor, second: Tensor, generator: torch.Generator
) -> Tensor:
    """Preferences (M,), 1 where the first won and 0 where the second did."""
    difference = (strengths[first] - strengths[second]).double() + position
    return torch.bernoulli(torch.sigmoid(difference), generator=generator)


class PositionBias(ChoiceModel):
    """The model for `fit`. One extra, ``position``: δ, free, 0 without bias."""

    name, title = "position_bias", "Bradley-Terry with position bias"

    def extras(self, data):
        return ("position",)

    def start(self, data):
        return torch.zeros(1, dtype=torch.float64)

    def log_likelihood(self, strengths, extras, data):
        return log_likelihood(strengths, extras[0], data.first, data.second, data.preference)
