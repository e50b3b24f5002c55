"""A personal reward: a handful of weights learned from one person's answers.

    r(x, c) = w . f(x, c),   f: principal components of the picture's embedding under a frozen trunk, and the score of a
                                shared reward where one is given
    P(a over b) = sigmoid(r(a) - r(b)),   w = argmax sum log P - lambda / 2 |w|^2

lambda is chosen by the evidence (Laplace's approximation; Bishop, Pattern Recognition and Machine Learning, 4.4 and
5.7), so that ten answers give a cautious reward and three hundred a detailed one, without held-out data. Ours; the
survey's personal reward models fine-tune far larger ones. Chapter: "Learning a reward".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from surveylib.feedback.pairs import PairData, to_pairs
from surveylib.feedback.record import Record
from surveylib.rewards.contract import Reward
from surveylib.rewards.learned.evaluate import correctness
from surveylib.rewards.learned.store import load_learned, write_reward
from surveylib.rewards.learned.trunk import Trunk

COMPONENTS = 16
RIDGES = np.logspace(-2, 3, 21)
COUNTS = (10, 30, 100, 300)
BASE_PENALTY = 0.1  # ours: the shared reward's weight is held back less than the others


@dataclass(frozen=True)
class RidgeFit:
    """`weights` (F,), the chosen `ridge`, the log `evidence` of it, and the answers' mean `log_likelihood`."""

    weights: np.ndarray
    ridge: float
    evidence: float
    log_likelihood: float


def _newton(x: np.ndarray, y: np.ndarray, v: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Maximum of the penalised log likelihood: (weights, log likelihood, negative Hessian)."""
    w = np.zeros(x.shape[1])

    def value(w: np.ndarray) -> float:
        z = x @ w
        return float(-(v * (y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z))).sum() - 0.5 * penalty @ w**2)

    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        gradient = x.T @ (v * (y - p)) - penalty * w
        hessian = (x * (v * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step, size, now = np.linalg.solve(hessian, gradient), 1.0, value(w)
        while value(w + size * step) < now and size > 1e-6:
            size /= 2
        w = w + size * step
        if np.abs(step).max() < 1e-9:
            break
    p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
    hessian = (x * (v * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
    return w, value(w) + 0.5 * float(penalty @ w**2), hessian


def fit_ridge(
    difference: np.ndarray, preference: np.ndarray, weight: np.ndarray | None = None, relative: np.ndarray | None = None
) -> RidgeFit:
    """Logistic regression on feature differences, ridge chosen by evidence.

    Args:
        difference: (M, F) f(a) - f(b). preference: (M,) probability that a wins. weight: (M,), default 1.
        relative: (F,) penalty of each feature relative to the ridge, default 1.

    Raises:
        ValueError: no answers, or values that are not finite.
    """
    x, y = np.asarray(difference, float), np.asarray(preference, float)
    if len(x) == 0 or not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError(f"{len(x)} answers with features that must be finite: there is nothing to fit")
    v = np.ones(len(x)) if weight is None else np.asarray(weight, float)
    relative = np.ones(x.shape[1]) if relative is None else np.asarray(relative, float)
    best: RidgeFit | None = None
    for ridge in RIDGES:
        w, likelihood, hessian = _newton(x, y, v, ridge * relative)
        prior = 0.5 * np.log(ridge * relative).sum() - 0.5 * ridge * float(relative @ w**2)
        evidence = likelihood + prior - 0.5 * np.linalg.slogdet(hessian)[1]
        if best is None or evidence > best.evidence:
            best = RidgeFit(w, float(ridge), float(evidence), likelihood / v.sum())
    return best


@dataclass(frozen=True)
class Basis:
    """Features of pictures: f = (E(x)/|E(x)| - mean) @ directions, then (base score - base_mean) / base_std.

    mean: (D,), directions: (D, C) principal components over the pictures, each scaled to deviation 1.
    """

    mean: Tensor
    directions: Tensor
    base_mean: float = 0.0
    base_std: float = 1.0


def make_basis(embeddings: Tensor, base_scores: Tensor | None, components: int = COMPONENTS) -> Basis:
    """The basis of pictures (N, D) that were shown; answers play no part in it."""
    mean = embeddings.mean(0)
    _, spread, v = torch.linalg.svd((embeddings - mean).double(), full_matrices=False)
    keep = min(components, int((spread > 1e-6 * spread[0]).sum()), len(embeddings) - 1)
    if keep < 1:
        raise ValueError(f"{len(embeddings)} pictures that all look the same to the trunk: nothing to tell apart")
    directions = (v[:keep].T / (spread[:keep] / len(embeddings) ** 0.5)).float()
    if base_scores is None:
        return Basis(mean, directions)
    return Basis(mean, directions, base_scores.mean().item(), max(base_scores.std().item(), 1e-6))


class PersonalReward(Reward):
    """One person's reward, differentiable to the pixels. Make it with `fit_personal`.

    Args:
        trunk: frozen.
        basis: of the features.
        weights: (F,).
        base: the shared reward whose score is the last feature, or None.
        base_source: folder or shipped name of `base`, kept in the saved file.
        name: for result rows.
    """

    def __init__(self, trunk: Trunk, basis: Basis, weights: Tensor, base: Reward | None = None, base_source: str = "",
                 name: str = "personal"):  # fmt: skip
        self.trunk, self.basis, self.weights = trunk.requires_grad_(False).eval(), basis, weights
        self.base, self.base_source, self.name = base, base_source, name
        self.needs_prompt = base is not None and base.needs_prompt
        self.differentiable = base is None or base.differentiable

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) rewards in units of log odds."""
        device = self.trunk.mean.device
        features = project(embed(self.trunk, images.to(device)), self.basis)
        if self.base is not None:
            scores = self.base.score(images, prompts).to(device)
            features = torch.cat([features, ((scores - self.basis.base_mean) / self.basis.base_std)[:, None]], 1)
        return features @ self.weights.to(device)

    def save(self, folder: str | Path) -> None:
        """Write it for `store.load_learned`.

        Raises:
            ValueError: it has a shared reward whose folder is not known.
        """
        if self.base is not None and not self.base_source:
            raise ValueError(f"to save this, say where its shared reward {self.base.name!r} is stored (base_source=)")
        trunk = {"name": self.trunk.name, "fingerprint": self.trunk.fingerprint, "unlock": [0, 0]}
        description = {"kind": "personal", "name": self.name, "trunk": trunk, "base": self.base_source,
                       "base_mean": self.basis.base_mean, "base_std": self.basis.base_std}
        tensors = {"mean": self.basis.mean, "directions": self.basis.directions, "weights": self.weights}
        write_reward(folder, description, tensors)

    @classmethod
    def from_stored(cls, description: dict, tensors: dict[str, Tensor], trunk: Trunk) -> PersonalReward:
        """From what `save` wrote."""
        source = description["base"]
        basis = Basis(tensors["mean"], tensors["directions"], description["base_mean"], description["base_std"])
        base = load_learned(source) if source else None
        return cls(trunk, basis, tensors["weights"], base, source, description["name"])


def embed(trunk: Trunk, images: Tensor) -> Tensor:
    """(B, D) unit embeddings of pictures (B, 3, H, W)."""
    clip = trunk.clip
    hidden = trunk.lower_images(images)
    for layer in clip.vision_model.encoder.layers[len(clip.vision_model.encoder.layers) - trunk.unlock[0] :]:
        hidden = layer(hidden, None)
    return F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(hidden[:, 0])), dim=-1)


def project(embeddings: Tensor, basis: Basis) -> Tensor:
    """(B, C) components."""
    return (embeddings - basis.mean.to(embeddings)) @ basis.directions.to(embeddings)


@torch.no_grad()
def _seen(pairs: PairData, trunk: Trunk, base: Reward | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Embeddings (N, D) of all pictures; base scores (M,) of each pair's first and second picture."""
    embeddings = torch.cat([embed(trunk, part.to(trunk.mean.device)).cpu() for part in pairs.images.split(128)])
    if base is None:
        return embeddings, None, None
    scores = [base(pairs.images[rows], pairs.prompts).cpu() for rows in (pairs.first, pairs.second)]
    return embeddings, *scores


def _features(seen, pairs: PairData, components: int, rows: Tensor) -> tuple[Basis, np.ndarray]:
    """Basis of the pictures of these pairs, and feature differences (M, F) of all pairs."""
    embeddings, first, second = seen
    shown = torch.cat([pairs.first[rows], pairs.second[rows]]).unique()
    basis = make_basis(embeddings[shown], None if first is None else torch.cat([first[rows], second[rows]]), components)
    features = project(embeddings, basis)
    difference = features[pairs.first] - features[pairs.second]
    if first is not None:
        difference = torch.cat([difference, ((first - second) / basis.base_std)[:, None]], 1)
    return basis, difference.double().numpy()


def _fit(difference: np.ndarray, pairs: PairData, rows: np.ndarray, with_base: bool) -> RidgeFit:
    relative = np.ones(difference.shape[1])
    if with_base:
        relative[-1] = BASE_PENALTY
    return fit_ridge(difference[rows], pairs.preference.numpy()[rows], pairs.weight.numpy()[rows], relative)


def fit_personal(
    answers: PairData | Iterable[Record],
    trunk: Trunk,
    base: Reward | None = None,
    components: int = COMPONENTS,
    name: str = "personal",
    base_source: str = "",
) -> PersonalReward:
    """The reward of one person.

    Args:
        answers: their records (pairs, rankings, ratings, likes) or the pairs made of them.
        trunk: a frozen trunk.
        base: a shared reward to start from (its score becomes a feature), or None.
        components: how many directions of the pictures' embeddings may matter.
        name: of the reward. base_source: where `base` is stored, needed to save.

    Raises:
        ValueError: no comparison in the answers.
    """
    pairs = answers if isinstance(answers, PairData) else to_pairs(answers)
    everything = torch.arange(len(pairs))
    basis, difference = _features(_seen(pairs, trunk, base), pairs, components, everything)
    fit = _fit(difference, pairs, everything.numpy(), base is not None)
    return PersonalReward(trunk, basis, torch.from_numpy(fit.weights).float(), base, base_source, name)


@dataclass(frozen=True)
class LearningCurve:
    """Held-out accuracy after a number of answers.

    Attributes:
        counts: numbers of answers. accuracy: (counts, seeds) on held-out pairs without a tie.
        held_out: pairs held out in each seed, ties left out. unreached: counts asked for beyond the answers there were.
    """

    counts: tuple[int, ...]
    accuracy: np.ndarray
    held_out: tuple[int, ...]
    unreached: tuple[int, ...] = field(default=())

    @property
    def mean(self) -> np.ndarray:
        """(counts,) over seeds."""
        return self.accuracy.mean(1)

    @property
    def deviation(self) -> np.ndarray:
        """(counts,) standard deviation over seeds."""
        return self.accuracy.std(1, ddof=1) if self.accuracy.shape[1] > 1 else np.full(len(self.counts), np.nan)

    def table(self) -> Table:
        """A rich table."""
        table = Table(title=f"Accuracy on held-out prompts, {self.accuracy.shape[1]} seeds")
        for column in ("answers", "accuracy", "deviation over seeds"):
            table.add_column(column, justify="right")
        for count, mean, deviation in zip(self.counts, self.mean, self.deviation):
            table.add_row(str(count), f"{100 * mean:.1f} %", f"{100 * deviation:.1f}")
        for count in self.unreached:
            table.add_row(str(count), "not enough answers", "")
        return table


def learning_curve(
    records: PairData | Iterable[Record],
    trunk: Trunk,
    counts: Sequence[int] = COUNTS,
    seeds: int = 5,
    base: Reward | None = None,
    held_out: float = 0.3,
    components: int = COMPONENTS,
) -> LearningCurve:
    """How a personal reward gets better with answers.

    In each seed a share `held_out` of the prompts is set aside, and the first 10, 30, ... of the remaining answers, in
    random order, are learned from.

    Raises:
        ValueError: fewer answers than the smallest count.
    """
    pairs = records if isinstance(records, PairData) else to_pairs(records)
    seen = _seen(pairs, trunk, base)
    splits = [_by_prompt(pairs, held_out, seed) for seed in range(seeds)]
    most = min(len(rest) for rest, _ in splits)
    reached = tuple(count for count in sorted(counts) if count <= most)
    if not reached:
        raise ValueError(f"{most} answers remain after holding out {held_out:.0%} of the prompts; {min(counts)} needed")
    accuracy = np.zeros((len(reached), seeds))
    for seed, (rest, held) in enumerate(splits):
        for place, count in enumerate(reached):
            rows = rest[:count]
            _, difference = _features(seen, pairs, components, torch.from_numpy(rows))
            fit = _fit(difference, pairs, rows, base is not None)
            right = correctness(difference[held] @ fit.weights, pairs.preference.numpy()[held])
            accuracy[place, seed] = np.nanmean(right)
    untied = tuple(int((pairs.preference.numpy()[held] != 0.5).sum()) for _, held in splits)
    return LearningCurve(reached, accuracy, untied, tuple(c for c in sorted(counts) if c > most))


def _by_prompt(pairs: PairData, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs to learn from, shuffled, and held-out ones with at least one that is not a tie; no prompt on both sides."""
    ids = pairs.prompt_ids.numpy()
    known = np.unique(ids)
    if len(known) < 2 or not 0 < share < 1:
        raise ValueError(f"held_out={share} must lie in (0, 1), and there must be two prompts; there are {len(known)}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(known)
    held = np.isin(ids, order[: min(max(1, round(share * len(known))), len(known) - 1)])
    if (pairs.preference.numpy()[held] == 0.5).all():
        raise ValueError("all held-out answers are ties: hold out more prompts")
    return rng.permutation(np.flatnonzero(~held)), np.flatnonzero(held)
