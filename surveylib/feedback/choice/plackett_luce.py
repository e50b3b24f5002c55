"""Plackett-Luce: items are chosen one after the other, each with probability π_i / Σ of those left, π = e^θ.

(Luce 1959; Plackett 1975, Applied Statistics 24.) Three kinds of observation, one likelihood:

* full ranking i_1 > i_2 > ... > i_L:  Σ_k [ θ_{i_k} - log Σ_{l >= k} π_{i_l} ].
* top-k: the first k terms of it. The order of the others is not observed.
* partitioned, groups G_1 > G_2 > ... with the order inside a group unknown: the probability that the groups come in
  this order, summed over all orders inside them. For one group S before the rest R this is f(S) with
  f(∅) = 1,  f(A) = Σ_{i in A} f(A minus i) π_i / (π(R) + π(S) - π(A minus i)),
  a sum over subsets that is exact. A tied group therefore says nothing about its members against each other; it is not
  a model in which ties are an outcome of their own (Turner and others, arXiv 1810.12068, has one).

Top-k is the case of k groups of one and a last group with the rest. Two items are Bradley-Terry.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import torch
from torch import Tensor

from surveylib.feedback.choice.model import ChoiceModel
from surveylib.feedback.choice.rankings import Rankings, Stage, rankings


def group_first(strengths: Tensor, stage: Stage) -> Tensor:
    """Log-probability that the members come before all of the rest, order among them unknown: log f(S) above, (S,)."""
    member = strengths[stage.members]  # (S, m)
    rest = torch.where(stage.present, strengths[stage.rest], -torch.inf).logsumexp(1, keepdim=True)  # (S, 1)
    m = member.shape[1]
    log_f = {(): torch.zeros_like(rest[:, 0])}
    for size in range(1, m + 1):
        for chosen in combinations(range(m), size):
            terms = []
            for last in chosen:
                before = tuple(i for i in chosen if i != last)
                left = [i for i in range(m) if i not in before]
                terms.append(log_f[before] + member[:, last] - torch.cat([rest, member[:, left]], 1).logsumexp(1))
            log_f[chosen] = torch.stack(terms).logsumexp(0)
    return log_f[tuple(range(m))]


def log_likelihood(strengths: Tensor, data: Rankings) -> Tensor:
    """Log-probability in nats of each ranking, (M,), for strengths (n,)."""
    total = strengths.new_zeros(len(data))
    for stage in data.stages:
        total = total.index_add(0, stage.record, group_first(strengths, stage))
    return total


def sample(strengths: Tensor, shown: Tensor, generator: torch.Generator) -> Tensor:
    """Rankings (M, L) of the items ``shown`` (M, L) int64, best first: θ plus Gumbel noise, sorted."""
    uniform = torch.rand(shown.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    noisy = strengths[shown].double() - torch.log(-torch.log(uniform))
    return shown.gather(1, noisy.argsort(1, descending=True))


def partition(orders: Tensor, sizes: tuple[int, ...], items: tuple[str, ...] | None = None) -> Rankings:
    """Forget the order inside groups of the given sizes: (1, 1, 3) makes orders of five a top-2 observation.

    Raises ValueError where the sizes do not add up to the length of the rankings.
    """
    if sum(sizes) != orders.shape[1] or min(sizes) < 1:
        raise ValueError(f"sizes {sizes} must be positive and add up to {orders.shape[1]}, the length of the rankings")
    names = [str(i) for i in range(int(orders.max()) + 1)] if items is None else list(items)
    cuts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return rankings([[[names[i] for i in order[a:b]] for a, b in pairwise(cuts)] for order in orders.tolist()],
                    items=names)


class PlackettLuce(ChoiceModel):
    """The model for `fit`. Reads `Rankings`: full, top-k, partitioned, mixed, of any length."""

    name, title, reads = "plackett_luce", "Plackett-Luce", Rankings

    def log_likelihood(self, strengths, extras, data):
        return log_likelihood(strengths, data)
