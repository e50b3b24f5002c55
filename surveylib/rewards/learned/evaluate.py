"""How good a reward model is: accuracy, calibration, categories, and what can be reached at all.

Protocol. A pair counts where its label is no tie. It is right where the picture that people preferred scores higher;
equal scores count one half. "micro" is the mean over pairs, "macro" the mean over prompts of each prompt's mean.
Intervals resample whole prompts, since the pairs of one prompt share their pictures. Calibration: with p =
sigmoid(beta (s_1 - s_2)) and beta fitted on validation pairs by maximum likelihood, ECE = sum_b n_b / n |mean p -
mean y| (arXiv 1706.04599, eq. 3) over bins of p.

Ceiling. Where the probability p of each choice is known (simulated annotators), no predictor is right more often than
E max(p, 1 - p); one annotator agrees with another with E[p^2 + (1 - p)^2].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from rich.table import Table
from scipy.optimize import minimize_scalar
from torch import Tensor

from surveylib.feedback.pairs import PairData
from surveylib.rewards.contract import Reward

BINS = 10
RESAMPLES = 1000
LEVEL = 0.95
MOST_BETA = 1e4


@dataclass(frozen=True)
class Estimate:
    """A share with its interval at `LEVEL` and the number of pairs behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Calibration:
    """`ece` at the fitted `beta`; `bins`: (mean predicted, mean observed, pairs) of every bin that is not empty."""

    beta: float
    ece: float
    bins: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class RewardReport:
    """Results of `evaluate_reward`; what could not be computed is None.

    Attributes:
        micro, macro: accuracy on pairs without a tie. ties: pairs left out because their label is a tie.
        calibration: None without validation pairs.
        by_category: category -> accuracy (micro).
        ceiling, single_annotator: None where choice probabilities are unknown.
    """

    name: str
    micro: Estimate
    macro: Estimate
    ties: int
    calibration: Calibration | None = None
    by_category: dict[str, Estimate] = field(default_factory=dict)
    ceiling: float | None = None
    single_annotator: float | None = None

    def table(self) -> Table:
        """A rich table; the human row is always there."""
        table = Table(title=f"Reward {self.name}: higher is better, except the calibration error")
        table.add_column("measure")
        table.add_column(f"value [{100 * LEVEL:.0f} % interval]", justify="right")
        table.add_column("pairs", justify="right")
        table.add_row("accuracy (pairs)", str(self.micro), str(self.micro.n))
        table.add_row("accuracy (mean over prompts)", str(self.macro), str(self.macro.n))
        for name, value in (("ceiling E max(p, 1-p)", self.ceiling), ("single annotator", self.single_annotator)):
            table.add_row(name, "unknown" if value is None else f"{100 * value:.1f} %", "")
        if self.calibration:
            error = f"{self.calibration.ece:.3f} (beta {self.calibration.beta:.3g})"
            table.add_row("calibration error", error, str(sum(n for *_, n in self.calibration.bins)))
        for category, estimate in self.by_category.items():
            table.add_row(f"  {category}", str(estimate), str(estimate.n))
        return table

    def numbers(self) -> dict:
        """Plain numbers, for JSON."""

        def plain(e: Estimate) -> dict:
            return {"value": round(e.value, 4), "low": round(e.low, 4), "high": round(e.high, 4), "pairs": e.n}

        out = {"accuracy": plain(self.micro), "accuracy by prompt": plain(self.macro), "ties left out": self.ties}
        out["ceiling"] = None if self.ceiling is None else round(self.ceiling, 4)
        out["single annotator"] = None if self.single_annotator is None else round(self.single_annotator, 4)
        if self.calibration:
            out["calibration"] = {"ece": round(self.calibration.ece, 4), "beta": round(self.calibration.beta, 4)}
        return out | {"by category": {name: plain(e) for name, e in self.by_category.items()}}


def correctness(margin: ArrayLike, preference: ArrayLike) -> np.ndarray:
    """1, 0, or 1/2 for a score tie, of each pair; nan where the label is a tie.

    Args:
        margin: (M,) s_1 - s_2. preference: (M,) probability that the first wins.
    """
    margin, preference = np.asarray(margin, float), np.asarray(preference, float)
    right = 0.5 + 0.5 * np.sign(margin) * np.sign(preference - 0.5)
    return np.where(preference == 0.5, np.nan, right)


def clustered(right: np.ndarray, prompts: ArrayLike, seed: int = 0) -> tuple[Estimate, Estimate]:
    """(micro, macro) accuracy with percentile intervals that resample prompts.

    Raises:
        ValueError: no pair without a tie.
    """
    right = np.asarray(right, float)
    counted = ~np.isnan(right)
    if not counted.any():
        raise ValueError(f"none of the {len(right)} pairs has a preference other than a tie")
    _, group = np.unique(np.asarray(prompts)[counted], return_inverse=True)
    n = np.bincount(group)
    total = np.bincount(group, weights=right[counted])
    draws = np.random.default_rng(seed).integers(0, len(n), (RESAMPLES, len(n)))
    micro, macro = total[draws].sum(1) / n[draws].sum(1), (total / n)[draws].mean(1)
    tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    return tuple(
        Estimate(float(value), *map(float, np.percentile(resampled, tails)), int(n.sum()))
        for value, resampled in ((total.sum() / n.sum(), micro), ((total / n).mean(), macro))
    )


def fit_beta(margin: ArrayLike, preference: ArrayLike) -> float:
    """beta >= 0 of largest likelihood of y ~ sigmoid(beta margin), at most `MOST_BETA` (over the margin's deviation).

    The likelihood is concave in beta. 0 means that the scores say nothing, or the opposite of the truth.
    """
    margin, preference = np.asarray(margin, float), np.asarray(preference, float)
    scale = float(np.std(margin)) or 1.0

    def loss(log_beta: float) -> float:
        z = np.exp(log_beta) * margin / scale
        return float(np.mean(preference * np.logaddexp(0, -z) + (1 - preference) * np.logaddexp(0, z)))

    best = minimize_scalar(loss, bounds=(np.log(1e-6), np.log(MOST_BETA)), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(best.x) / scale) if best.fun < np.log(2) else 0.0


def calibration_error(probability: ArrayLike, outcome: ArrayLike, bins: int = BINS) -> Calibration:
    """Expected calibration error over `bins` equal bins of [0, 1], at beta = 1.

    Args:
        probability: (M,) predicted probability that the first wins. outcome: (M,) observed share in [0, 1].
    """
    p, y = np.asarray(probability, float), np.asarray(outcome, float)
    which = np.minimum((p * bins).astype(int), bins - 1)
    rows = [(float(p[m].mean()), float(y[m].mean()), int(m.sum())) for b in range(bins) if (m := which == b).any()]
    return Calibration(1.0, sum(n * abs(a - b) for a, b, n in rows) / len(p), tuple(rows))


def calibrate(margin: ArrayLike, preference: ArrayLike, beta: float, bins: int = BINS) -> Calibration:
    """`calibration_error` of sigmoid(beta margin), each pair in both orders: which picture came first is chance."""
    z = beta * np.asarray(margin, float)
    y = np.asarray(preference, float)
    both = calibration_error(1 / (1 + np.exp(-np.clip(np.r_[z, -z], -500, 500))), np.r_[y, 1 - y], bins)
    return Calibration(beta, both.ece, both.bins)


def ceiling(probability: ArrayLike) -> float:
    """E max(p, 1 - p): the best accuracy that any predictor can reach on choices drawn with these probabilities."""
    p = np.asarray(probability, float)
    return float(np.maximum(p, 1 - p).mean())


def single_annotator(probability: ArrayLike) -> float:
    """E[p^2 + (1 - p)^2]: how often one annotator's choice is another's, both drawn with the same probabilities."""
    p = np.asarray(probability, float)
    return float((p**2 + (1 - p) ** 2).mean())


@torch.no_grad()
def margins(reward: Reward, pairs: PairData, batch: int = 256) -> Tensor:
    """(M,) s_1 - s_2 of each pair. Every picture is scored once for each prompt it stands under."""
    keys = torch.stack([torch.cat([pairs.first, pairs.second]), pairs.prompt_ids.repeat(2)], 1)
    unique, where = keys.unique(dim=0, return_inverse=True)
    text = dict(zip(pairs.prompt_ids.tolist(), pairs.prompts))
    parts = [reward(pairs.images[part[:, 0]], [text[i] for i in part[:, 1].tolist()]) for part in unique.split(batch)]
    scores = torch.cat(parts).cpu()
    first, second = scores[where].chunk(2)
    return first - second


def evaluate_reward(
    reward: Reward,
    pairs: PairData,
    validation: PairData | None = None,
    category: Callable[[str], str] | None = None,
    probability: ArrayLike | None = None,
    seed: int = 0,
) -> RewardReport:
    """All measures of a reward on test pairs.

    Args:
        reward: any `Reward`.
        pairs: held-out pairs.
        validation: pairs that beta is fitted on; None leaves calibration out.
        category: prompt -> category; None leaves categories out.
        probability: (M,) true probability that the first wins, where it is known.
        seed: of the bootstrap.

    Raises:
        ValueError: no pair without a tie, or another number of probabilities than pairs.
    """
    if probability is not None and len(np.asarray(probability)) != len(pairs):
        raise ValueError(f"{len(np.asarray(probability))} probabilities for {len(pairs)} pairs")
    margin, preference = margins(reward, pairs).numpy(), pairs.preference.numpy()
    right, prompts = correctness(margin, preference), pairs.prompt_ids.numpy()
    micro, macro = clustered(right, prompts, seed)
    calibration = None
    if validation is not None:
        beta = fit_beta(margins(reward, validation).numpy(), validation.preference.numpy())
        calibration = calibrate(margin, preference, beta)
    by_category = {}
    if category is not None:
        names = np.array([category(prompt) for prompt in pairs.prompts])
        for name in sorted(set(names[~np.isnan(right)].tolist())):
            by_category[name] = clustered(right[names == name], prompts[names == name], seed)[0]
    counted = ~np.isnan(right)
    known = None if probability is None else np.asarray(probability, float)[counted]
    return RewardReport(
        reward.name, micro, macro, int((~counted).sum()), calibration, by_category,
        None if known is None else ceiling(known), None if known is None else single_annotator(known),
    )  # fmt: skip
