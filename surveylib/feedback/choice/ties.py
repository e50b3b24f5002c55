"""Models of ties: Rao-Kupper and Davidson. Outcomes are first, tie, second: preference 1, 0.5, 0 and nothing between.

* Rao-Kupper (1967, JASA 62): a tie when the difference stays under a threshold η >= 0:
  P(first) = σ(Δ - η), P(second) = σ(-Δ - η), the rest is a tie. In the paper's terms θ = e^η.
* Davidson (1970, JASA 65): a tie has weight ν √(π_a π_b) beside π_a and π_b, π = e^θ, ν >= 0.

Both are Bradley-Terry when the parameter is 0. Given that it is no tie, Davidson is Bradley-Terry for any ν;
Rao-Kupper is not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from surveylib.feedback.choice.graph import NoFiniteFit
from surveylib.feedback.choice.model import ChoiceModel


def rao_kupper(difference: Tensor, threshold: Tensor | float) -> Tensor:
    """Log-probabilities of (first, tie, second), (M, 3), for differences Δ (M,) and threshold η >= 0 in nats."""
    threshold = torch.as_tensor(threshold, dtype=difference.dtype)
    first, second = logsigmoid(difference - threshold), logsigmoid(-difference - threshold)
    return torch.stack([first, torch.log(torch.expm1(2 * threshold)) + first + second, second], dim=1)


def davidson(difference: Tensor, nu: Tensor | float) -> Tensor:
    """Log-probabilities of (first, tie, second), (M, 3), for differences Δ (M,) and tie weight ν >= 0."""
    tie = torch.log(torch.as_tensor(nu, dtype=difference.dtype)).expand_as(difference)
    return torch.log_softmax(torch.stack([difference / 2, tie, -difference / 2], dim=1), dim=1)


def log_likelihood(outcomes: Tensor, preference: Tensor) -> Tensor:
    """(M,): the entry of ``outcomes`` (M, 3) that ``preference`` (1, 0.5 or 0) names."""
    return outcomes.gather(1, (2 - 2 * preference).long()[:, None])[:, 0]


def sample(outcomes: Tensor, generator: torch.Generator) -> Tensor:
    """Preferences (M,), each 1, 0.5 or 0, drawn from log-probabilities (M, 3)."""
    return 1 - torch.multinomial(outcomes.double().exp(), 1, generator=generator)[:, 0].double() / 2


class TieModel(ChoiceModel):
    """What Rao-Kupper and Davidson share: one positive extra, searched on the log scale."""

    log_scale = True

    def start(self, data):
        return torch.tensor([-1.0], dtype=torch.float64)

    def natural(self, free, data):
        return free.exp()

    def check(self, data, prior):
        y = data.preference
        other = ~((y == 0) | (y == 0.5) | (y == 1))
        if bool(other.any()):
            m = int(other.nonzero()[0])
            raise ValueError(f"{self.title}: comparison {m} has preference {float(y[m])}; this model knows 1, 0.5 "
                             "(tie) and 0. Give single judgements, or fit BradleyTerry, which takes shares")
        ties = int((y == 0.5).sum())
        if prior is None and ties in (0, len(y)):
            what, remedy = ("no tie", "fit BradleyTerry") if ties == 0 else ("nothing but ties", "collect more")
            raise NoFiniteFit(f"{self.title}: {what} in {len(y)} comparisons, so the parameter {self.extras(data)[0]} "
                              f"has no finite estimate on the log scale. {remedy}, or pass prior=2.0")


class RaoKupper(TieModel):
    """The model for `fit`. One extra, ``threshold``: η > 0 in nats."""

    name, title = "rao_kupper", "Rao-Kupper"

    def extras(self, data):
        return ("threshold",)

    def log_likelihood(self, strengths, extras, data):
        return log_likelihood(rao_kupper(strengths[data.first] - strengths[data.second], extras[0]), data.preference)


class Davidson(TieModel):
    """The model for `fit`. One extra, ``nu``: ν > 0."""

    name, title = "davidson", "Davidson"

    def extras(self, data):
        return ("nu",)

    def log_likelihood(self, strengths, extras, data):
        return log_likelihood(davidson(strengths[data.first] - strengths[data.second], extras[0]), data.preference)
