"""Annotator ability: heteroscedastic Bradley-Terry, P(annotator k prefers a to b) = σ(α_k (θ_a - θ_b)).

α_k is the inverse of annotator k's temperature: 0 is a coin, negative answers against the others, large is certain.
Only products α_k θ are seen, so the mean ability is fixed to 1, which sets the scale of the strengths: strengths are
those of an annotator of average ability. Annotators are names in the data. (Crowd-BT, Chen and others 2013, is another
model: there annotator k flips the answer of one shared Bradley-Terry model with probability 1 - η_k.)

The likelihood is not concave: the search starts at α = 1, that is from Bradley-Terry. Where annotators that answer
against the others are in the majority, all signs turn; nothing in the data can tell.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from surveylib.feedback.choice.fit import zero_mean_basis
from surveylib.feedback.choice.model import ChoiceModel


def log_likelihood(
    strengths: Tensor, ability: Tensor, annotator: Tensor, first: Tensor, second: Tensor, preference: Tensor
) -> Tensor:
    """y log σ(α Δ) + (1 - y) log σ(-α Δ), in nats, (M,).

    Args:
        ability: (K,) α. annotator: (M,) int64, who judged. The rest as in Bradley-Terry.
    """
    difference = ability[annotator] * (strengths[first] - strengths[second])
    return preference * logsigmoid(difference) + (1 - preference) * logsigmoid(-difference)


def sample(
    strengths: Tensor, ability: Tensor, annotator: Tensor, first: Tensor, second: Tensor, generator: torch.Generator
) -> Tensor:
    """Preferences (M,), 1 where the first won and 0 where the second did."""
    difference = (ability[annotator] * (strengths[first] - strengths[second])).double()
    return torch.bernoulli(torch.sigmoid(difference), generator=generator)


class AnnotatorAbility(ChoiceModel):
    """The model for `fit`. Extras: ``ability of NAME`` for each annotator, mean 1."""

    name, title = "annotator_ability", "Bradley-Terry with annotator ability"

    def check(self, data, prior):
        if data.annotator is None:
            raise ValueError(f"{self.title}: the data name no annotators; give annotator=... or fit BradleyTerry")

    def extras(self, data):
        return tuple(f"ability of {name}" for name in data.annotators)

    def start(self, data):
        return torch.zeros(len(data.annotators) - 1, dtype=torch.float64)

    def natural(self, free, data):
        return 1 + zero_mean_basis(len(free) + 1) @ free

    def log_likelihood(self, strengths, extras, data):
        return log_likelihood(strengths, extras, data.annotator_number, data.first, data.second, data.preference)
