"""Fitted strengths against the truth and against choix and evalica, on a seeded simulation.

``python -m surveylib.feedback.choice`` prints the two tables. choix and evalica are optional (extra ``test``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch

from surveylib.feedback.choice import bradley_terry, plackett_luce
from surveylib.feedback.choice.bradley_terry import BradleyTerry
from surveylib.feedback.choice.comparisons import comparisons
from surveylib.feedback.choice.plackett_luce import PlackettLuce
from surveylib.feedback.choice.rankings import rankings
from surveylib.feedback.choice.result import ChoiceFit


@dataclass(frozen=True, eq=False)
class StrengthTable:
    """One simulated data set, fitted by this library and by others. All strengths have mean zero, in nats.

    Attributes:
        title: the model. truth: (n,). fit: ours, with intervals.
        others: name of a function of another library -> its strengths (n,).
        missing: libraries that are not installed and therefore have no column.
    """

    title: str
    truth: np.ndarray
    fit: ChoiceFit
    others: dict[str, np.ndarray]
    missing: tuple[str, ...]

    def largest_difference(self) -> dict[str, float]:
        """Largest absolute difference of a strength from ours, for each other library."""
        return {name: float(np.abs(values - self.fit.strengths).max()) for name, values in self.others.items()}

    def covered(self) -> int:
        """For how many items the interval holds the truth."""
        return int(((self.fit.low <= self.truth) & (self.truth <= self.fit.high)).sum())


def true_strengths(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n,) standard normal, mean zero, from strong to weak."""
    strengths = torch.randn(n, generator=generator, dtype=torch.float64).sort(descending=True).values
    return strengths - strengths.mean()


def bradley_terry_table(seed: int = 0, items: int = 8, count: int = 1500) -> StrengthTable:
    """``count`` random pairs judged by Bradley-Terry, fitted by ours, by choix (two ways) and by evalica."""
    generator = torch.Generator().manual_seed(seed)
    truth = true_strengths(items, generator)
    first = torch.randint(items, (count,), generator=generator)
    second = (first + torch.randint(1, items, (count,), generator=generator)) % items
    won = bradley_terry.sample(truth, first, second, generator)
    pairs = torch.stack([torch.where(won > 0, first, second), torch.where(won > 0, second, first)], 1).tolist()

    def by_evalica() -> np.ndarray:
        import evalica

        winners = [evalica.Winner.X] * len(pairs)
        scores = evalica.bradley_terry([a for a, _ in pairs], [b for _, b in pairs], winners, tolerance=1e-12,
                                       limit=10_000).scores
        return np.log(scores.loc[list(range(items))].to_numpy())

    def by_choix(function: str, **options: float | str) -> np.ndarray:
        import choix

        return getattr(choix, function)(items, pairs, **options)

    return _table("Bradley-Terry", truth, BradleyTerry().fit(comparisons(first, second, won)), {
        "choix.ilsr_pairwise": lambda: by_choix("ilsr_pairwise"),
        "choix.opt_pairwise": lambda: by_choix("opt_pairwise", alpha=0.0, tol=1e-8, method="BFGS"),
        "evalica.bradley_terry": by_evalica})


def plackett_luce_table(seed: int = 0, items: int = 8, count: int = 500, shown: int = 5) -> StrengthTable:
    """``count`` rankings of ``shown`` random items, fitted by ours, choix.ilsr_rankings and choix.mm_rankings."""
    generator = torch.Generator().manual_seed(seed)
    truth = true_strengths(items, generator)
    sets = torch.stack([torch.randperm(items, generator=generator)[:shown] for _ in range(count)])
    orders = plackett_luce.sample(truth, sets, generator)

    def by_choix(function: str) -> np.ndarray:
        import choix

        return getattr(choix, function)(items, orders.tolist(), max_iter=1000)

    fit = PlackettLuce().fit(rankings(orders, items=range(items)))
    return _table("Plackett-Luce", truth, fit, {
        "choix.ilsr_rankings": lambda: by_choix("ilsr_rankings"),
        "choix.mm_rankings": lambda: by_choix("mm_rankings")})


def _table(title: str, truth: torch.Tensor, fit: ChoiceFit, others: dict[str, Callable]) -> StrengthTable:
    """Run the functions of the libraries that are installed and centre what they return."""
    libraries = dict.fromkeys(name.split(".")[0] for name in others)
    missing = tuple(library for library in libraries if find_spec(library) is None)
    columns = {name: run() for name, run in others.items() if name.split(".")[0] not in missing}
    return StrengthTable(title, truth.numpy(), fit, {k: v - v.mean() for k, v in columns.items()}, missing)
