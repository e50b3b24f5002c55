"""Bradley-Terry: P(a preferred to b) = σ(θ_a - θ_b) (Bradley and Terry 1952, Biometrika 39).

A preference y between 0 and 1 counts as y of a win and 1 - y of a loss: y log σ(Δ) + (1 - y) log σ(-Δ). Half-wins for
ties are a convention, not a model of ties; those are in `surveylib.feedback.choice.ties`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from surveylib.feedback.choice.model import ChoiceModel


def log_likelihood(strengths: Tensor, first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
    """y log σ(θ_first - θ_second) + (1 - y) log σ(θ_second - θ_first), in nats, (M,).

    Args:
        strengths: (n,). first, second: (M,) int64. preference: (M,) in [0, 1].
    """
    difference = strengths[first] - strengths[second]
    return preference * logsigmoid(difference) + (1 - preference) * logsigmoid(-difference)


def sample(strengths: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """Preferences (M,), 1 where the first won and 0 where the second did."""
    return torch.bernoulli(torch.sigmoid((strengths[first] - strengths[second]).double()), generator=generator)


class BradleyTerry(ChoiceModel):
    """The model for `fit`. Reads `Comparisons` with any preference in [0, 1]."""

    name, title = "bradley_terry", "Bradley-Terry"

    def log_likelihood(self, strengths, extras, data):
        return log_likelihood(strengths, data.first, data.second, data.preference)
