"""Simulated annotators of the Shapes world: their utilities are known, so what a reward model learns can be checked.

Utility of annotator a for a picture x beside its prompt c, after n answers:

    u_a(c, x; n) = w_f F(c, x) + w_q Q(x) + sum_j tau_j(n) T_j(x)
    tau(n) = (1 - m) tau + m tau',   m = 1 - 2^(-n / half_life)

F: faithfulness by the judge (half soft, half hard). Q: picture quality. T: what tastes are about (`looks.TASTES`).
tau' is what the taste drifts to; without drift tau(n) = tau.

Choice, with temperature T, tie threshold eta >= 0 and position bias b (the last two in units of the logit). Picture j
= 0 .. k - 1, shown from left to right, appears to the annotator as

    g_j = u_j / T + b (1/2 - j / (k - 1)) + Gumbel noise.

Pictures are sorted by g; a new rank starts where g falls more than eta below the best of the current rank.
For eta = 0 this is the Plackett-Luce model; for two pictures it is the Rao-Kupper model (J. Am. Stat. Assoc. 62, 1967)
with theta = exp(eta), and for both the Bradley-Terry model:

    P(first) = sigma(d - eta),  P(second) = sigma(-d - eta),  P(tie) = the rest,   d = (u_1 - u_2) / T + b.

T = 0 is allowed: the greater utility always wins, and equal ones are answered as at any temperature.
With probability `lazy` an answer ignores the pictures, see `LAZY_ANSWERS`.

Every answer is a function of (seed, name of the annotator, number of answers given before): `random_for`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from surveylib.feedback.choice.ties import rao_kupper
from surveylib.worlds.shapes.looks import TASTES, Looks, look
from surveylib.worlds.shapes.prompts import Spec

Prompts = Sequence[str | Spec] | str | Spec

FAITHFULNESS, QUALITY = 0.6, 0.4  # the population's mean weights; utility without taste is in [0, 1]
WARM, COOL = ("red", "orange", "yellow", "pink"), ("green", "cyan", "blue", "purple")
# Mean tastes of the groups. They come in opposite pairs, so the tastes of the whole population cancel.
GROUPS: dict[str, dict[str, float]] = {
    "warm": {**dict.fromkeys(WARM, 0.12), **dict.fromkeys(COOL, -0.12)},
    "cool": {**dict.fromkeys(WARM, -0.12), **dict.fromkeys(COOL, 0.12)},
    "bold": {"size": 0.10, "richness": 0.08},
    "minimal": {"size": -0.10, "richness": -0.08},
}
LAZY_ANSWERS = {
    "random": "each picture (order, step of the scale, like or dislike) with the same chance, never a tie",
    "left": "the first picture, the order as shown, the middle of the scale, like",
}
DIMENSIONS = ("overall", "faithfulness", "quality", "aesthetics", "detail")
SPREAD = 0.2  # standard deviation of the logarithm of an individual's weights about its group's


def _at_least_zero(who: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{who}: {name}={value} must be a finite number, 0 or more")


def _share(who: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{who}: {name}={value} is a probability; give a number in [0, 1]")


def _known_tastes(who: str, taste: Mapping[str, float]) -> None:
    strange = [name for name in taste if name not in TASTES]
    if strange:
        raise ValueError(f"{who}: unknown taste {strange[0]!r}; known: {', '.join(TASTES)}")
    if not all(math.isfinite(value) for value in taste.values()):
        raise ValueError(f"{who}: tastes must be finite numbers; got {dict(taste)}")


@dataclass(frozen=True)
class Annotator:
    """One annotator; symbols as in the module's docstring.

    Attributes:
        name, group: whose answers these are.
        faithfulness, quality: the weights w_f and w_q, >= 0.
        taste, drift_to: weights tau and tau' by the names of `looks.TASTES`; what is not named is 0. drift_to None
            means no drift.
        half_life: number of answers after which half of the way from taste to drift_to is gone.
        temperature: T >= 0, in units of utility. ties: eta >= 0. position_bias: b, positive for the left.
        lazy: probability that an answer ignores the pictures; lazy_answer: a name of `LAZY_ANSWERS`.
        leniency: added to ratings, as a share of the scale, and to the utility before a like.
        overlooks: probability that a wrong thing, a flaw or a word is not marked in rich feedback.
        counts: False for somebody who does not notice wrong numbers of things (`looks.without_counting`).

    Raises:
        ValueError: a value outside its range; the message names the annotator, the value and what is allowed.
    """

    name: str
    group: str = ""
    faithfulness: float = FAITHFULNESS
    quality: float = QUALITY
    taste: Mapping[str, float] = field(default_factory=dict)
    drift_to: Mapping[str, float] | None = None
    half_life: float = math.inf
    temperature: float = 0.17
    ties: float = 0.0
    position_bias: float = 0.0
    lazy: float = 0.0
    lazy_answer: str = "random"
    leniency: float = 0.0
    overlooks: float = 0.0
    counts: bool = True

    def __post_init__(self):
        who = f"annotator {self.name!r}"
        _at_least_zero(who, faithfulness=self.faithfulness, quality=self.quality, temperature=self.temperature,
                       ties=self.ties)
        _share(who, lazy=self.lazy, overlooks=self.overlooks)
        for taste in (self.taste, self.drift_to or {}):
            _known_tastes(who, taste)
        if not self.half_life > 0:
            raise ValueError(f"{who}: half_life={self.half_life} must be a positive number of answers, inf for none")
        if not (math.isfinite(self.position_bias) and math.isfinite(self.leniency)):
            raise ValueError(f"{who}: position_bias={self.position_bias} and leniency={self.leniency} must be finite")
        if self.lazy_answer not in LAZY_ANSWERS:
            raise ValueError(f"{who}: unknown lazy_answer {self.lazy_answer!r}; known: {', '.join(LAZY_ANSWERS)}")

    def taste_after(self, answered: int = 0) -> Tensor:
        """tau(n): (11,) weights of `looks.TASTES` after n answers."""
        if answered < 0:
            raise ValueError(f"answered={answered} must be 0 or more")
        now = torch.tensor([float(self.taste.get(name, 0.0)) for name in TASTES])
        if self.drift_to is None:
            return now
        gone = 1 - 2 ** (-answered / self.half_life)
        return (1 - gone) * now + gone * torch.tensor([float(self.drift_to.get(name, 0.0)) for name in TASTES])

    def utility(self, seen: Looks, answered: int = 0) -> Tensor:
        """u_a: (B,) float32, exact. `seen` is what `looks.look` returns; `answered` the answers given before."""
        faithful = seen.faithfulness if self.counts else seen.countless
        weighed = self.faithfulness * faithful + self.quality * seen.quality.overall
        return weighed + seen.taste @ self.taste_after(answered)

    def dimensions(self, seen: Looks, answered: int = 0) -> dict[str, Tensor]:
        """What is judged when a dimension (`DIMENSIONS`) is asked for: (B,) each, 0 to 1 for the worst to the best.

        overall: the utility over w_f + w_q, which taste may push outside [0, 1]; faithfulness: F; quality: Q;
        aesthetics: half Q, half sigma(10 x taste part of the utility); detail: sharpness.
        """
        taste = torch.sigmoid(10 * (seen.taste @ self.taste_after(answered)))
        whole = max(self.faithfulness + self.quality, 1e-6)
        return {
            "overall": self.utility(seen, answered) / whole,
            "faithfulness": seen.faithfulness if self.counts else seen.countless,
            "quality": seen.quality.overall,
            "aesthetics": (seen.quality.overall + taste) / 2,
            "detail": seen.quality.sharpness,
        }

    def chooses_by(self, seen: Looks, dimension: str, answered: int = 0) -> Tensor:
        """(B,) utilities for a question about one dimension, in units of the temperature: its value times w_f + w_q.

        Raises:
            ValueError: unknown dimension.
        """
        if dimension not in DIMENSIONS:
            raise ValueError(f"unknown dimension {dimension!r}; known: {', '.join(DIMENSIONS)}")
        return self.dimensions(seen, answered)[dimension] * max(self.faithfulness + self.quality, 1e-6)

    def _scaled(self, difference: np.ndarray) -> np.ndarray:
        """difference / T; for T = 0 its sign times infinity, 0 where it is 0."""
        if self.temperature > 0:
            return difference / self.temperature
        return np.where(difference == 0, 0.0, np.copysign(np.inf, difference))

    def pair_probabilities(self, first: Tensor | float, second: Tensor | float) -> Tensor:
        """Stated probabilities of the answers "first", "tie", "second": (N, 3) float64, laziness included.

        Args:
            first, second: (N,) utilities of the picture shown on the left and on the right.
        """
        u = torch.as_tensor(first, dtype=torch.float64) - torch.as_tensor(second, dtype=torch.float64)
        d = torch.from_numpy(np.atleast_1d(self._scaled(u.numpy()))) + self.position_bias
        careful = rao_kupper(d, self.ties).exp()
        careless = {"random": (0.5, 0.0, 0.5), "left": (1.0, 0.0, 0.0)}[self.lazy_answer]
        return (1 - self.lazy) * careful + self.lazy * torch.tensor(careless, dtype=torch.float64)

    def rank(self, utilities: Sequence[float] | Tensor, rng: np.random.Generator) -> tuple[int, ...]:
        """Ranks of k pictures in the order shown: 1 is best, equal numbers are ties.

        Raises:
            ValueError: fewer than two pictures, or utilities that are not finite.
        """
        u = np.asarray(utilities, dtype=np.float64)
        if u.ndim != 1 or len(u) < 2 or not np.isfinite(u).all():
            raise ValueError(f"a ranking needs the finite utilities of two pictures or more; got {u.tolist()}")
        careless, noise = rng.random() < self.lazy, rng.gumbel(size=len(u))
        if careless:
            noise = noise if self.lazy_answer == "random" else -np.arange(len(u), dtype=np.float64)
            return _ranks(np.zeros_like(u), noise, 0.0)
        noise = noise + self.position_bias * (0.5 - np.arange(len(u)) / (len(u) - 1))
        if self.temperature == 0:
            return _ranks(u, noise, self.ties)
        return _ranks(np.zeros_like(u), u / self.temperature + noise, self.ties)

    def compare(self, first: float, second: float, rng: np.random.Generator) -> float:
        """Answer to a pair: 1 for the first picture, 0 for the second, 0.5 for a tie; drawn as in
        `pair_probabilities`."""
        ranks = self.rank((float(first), float(second)), rng)
        return 0.5 + 0.5 * float(np.sign(ranks[1] - ranks[0]))

    def rate(self, value: float, low: float, high: float, rng: np.random.Generator, step: float = 1.0) -> float:
        """A rating on the scale low, low + step, ..., high.

        Args:
            value: 0 to 1 for the worst to the best (`dimensions`); what lies outside is cut off after the noise.

        The rating is the step nearest to low + (high - low)(value + leniency + T L / (w_f + w_q)), with L logistic
        noise: the noise of a pair's comparison, since a difference of two Gumbels is logistic.
        """
        if not (high > low and step > 0):
            raise ValueError(f"a scale from {low} to {high} by {step} is empty")
        careless, noise, draw = rng.random() < self.lazy, rng.logistic(), rng.random()
        last = math.floor((high - low) / step + 1e-9)
        if careless:
            place = math.floor(draw * (last + 1)) if self.lazy_answer == "random" else last // 2
            return low + step * place
        share = value + self.leniency + self.temperature * noise / max(self.faithfulness + self.quality, 1e-6)
        place = math.floor((high - low) * min(max(share, 0.0), 1.0) / step + 0.5)
        return low + step * min(place, last)

    def likes(self, utility: float, rng: np.random.Generator, least: float = 0.75) -> bool:
        """Like or dislike: P(like) = sigma((utility + leniency - least) / T), mixed with laziness."""
        careless, draw = rng.random() < self.lazy, rng.random()
        if careless:
            return bool(draw < 0.5) if self.lazy_answer == "random" else True
        d = float(self._scaled(np.asarray(utility + self.leniency - least)))
        return bool(draw < (1 / (1 + math.exp(-min(max(d, -700.0), 700.0)))))


def _ranks(u: np.ndarray, g: np.ndarray, eta: float) -> tuple[int, ...]:
    """Ranks by u, and among equal u by g with ties of g within eta of the best of the rank."""
    order = np.lexsort((-g, -u))
    ranks, best = np.zeros(len(u), dtype=int), order[0]
    for place, i in enumerate(order):
        new = place == 0 or u[i] < u[best] or g[best] - g[i] > eta
        best = i if new else best
        ranks[i] = place + 1 if new else ranks[best]
    return tuple(int(rank) for rank in ranks)


def random_for(seed: int, annotator: str, answered: int, what: str = "") -> np.random.Generator:
    """The randomness of one answer: a function of (seed, annotator, number of answers before) and of `what` alone."""
    digest = hashlib.sha256(f"{seed}|{annotator}|{answered}|{what}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _individual(name: str, group: str, rng: np.random.Generator) -> Annotator:
    """One person of a group: weights log-normal about the group's with the same mean, habits as commented."""
    scale = np.exp(SPREAD * rng.standard_normal(3) - SPREAD**2 / 2)  # means are 1
    taste = {what: float(weight * scale[2]) for what, weight in GROUPS[group].items()}
    careless = rng.random() < 0.15
    return Annotator(
        name, group, float(FAITHFULNESS * scale[0]), float(QUALITY * scale[1]), taste,
        temperature=float(rng.uniform(0.12, 0.22)),
        ties=float(rng.uniform(0.2, 0.7)),
        position_bias=float(rng.normal(0.1, 0.1)),
        lazy=0.3 if careless else 0.02,
        lazy_answer="left" if rng.random() < 0.3 else "random",
        leniency=float(rng.normal(0.0, 0.05)),
        overlooks=0.1,
    )


AI = Annotator(
    "ai", "ai", taste={"saturation": 0.20, "size": 0.15}, temperature=0.06, ties=0.1, position_bias=0.8, leniency=0.05,
    overlooks=0.05, counts=False,
)
"""The AI annotator. Its systematic bias: it likes saturated and large things, whatever was asked; it does not notice
wrong numbers of things; it leans to the left (odds e^0.8 = 2.2 between equal pictures) and is lenient. It is more
consistent than people: about a third of their temperature, never lazy, no drift."""


@dataclass(frozen=True)
class Pool:
    """Annotators with different names.

    Raises:
        ValueError: no annotator, or two of one name.
    """

    annotators: tuple[Annotator, ...]

    def __post_init__(self):
        names = [annotator.name for annotator in self.annotators]
        if not names:
            raise ValueError("a pool needs at least one annotator")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two annotators are called {twice[0]!r}; names say whose answer it is")

    def __len__(self) -> int:
        return len(self.annotators)

    def __getitem__(self, which: int | str) -> Annotator:
        """By place or by name.

        Raises:
            KeyError: unknown name; the message lists those that exist.
        """
        if isinstance(which, int):
            return self.annotators[which]
        by_name = {annotator.name: annotator for annotator in self.annotators}
        if which not in by_name:
            raise KeyError(f"no annotator {which!r}; there are: {', '.join(by_name)}")
        return by_name[which]

    def utility(self, images: Tensor | Looks, prompts: Prompts | None = None, answered: int = 0) -> Tensor:
        """Exact utilities (annotators, B); pictures and prompts, or what `looks.look` made of them."""
        seen = _seen(images, prompts)
        return torch.stack([annotator.utility(seen, answered) for annotator in self.annotators])


def make_pool(n: int = 12, seed: int = 0, groups: Sequence[str] = tuple(GROUPS)) -> Pool:
    """`n` people, the groups in turn; a function of the arguments alone.

    The first m of a pool of n are the pool of m.

    Raises:
        ValueError: n < 1, or an unknown group.
    """
    if n < 1:
        raise ValueError(f"n={n} annotators; at least 1 is needed")
    for group in groups:
        _known_group(group)
    if not groups:
        raise ValueError(f"no group given; known: {', '.join(GROUPS)}")
    names = [(f"{groups[i % len(groups)]}-{i // len(groups)}", groups[i % len(groups)]) for i in range(n)]
    return Pool(tuple(_individual(name, group, random_for(seed, name, 0, "habits")) for name, group in names))


def drifting(annotator: Annotator, towards: str, half_life: float = 50.0) -> Annotator:
    """The same annotator, its taste moving to a group's: half of the way is gone after `half_life` answers."""
    _known_group(towards)
    return replace(annotator, drift_to=GROUPS[towards], half_life=half_life)


def _known_group(group: str) -> None:
    if group not in GROUPS:
        raise ValueError(f"unknown group {group!r}; known: {', '.join(GROUPS)}")


def _seen(images: Tensor | Looks, prompts: Prompts | None) -> Looks:
    if isinstance(images, Looks):
        return images
    if prompts is None:
        raise ValueError("prompts are missing: a utility is that of a picture beside its prompt")
    return look(images, prompts)


def group_utility(group: str, images: Tensor | Looks, prompts: Prompts | None = None) -> Tensor:
    """Mean utility (B,) of the people of a group: w_f F + w_q Q + the group's taste.

    Raises:
        ValueError: unknown group, or pictures and prompts that do not fit.
    """
    _known_group(group)
    return Annotator(group, group, taste=GROUPS[group]).utility(_seen(images, prompts))


def gold_utility(
    images: Tensor | Looks, prompts: Prompts | None = None, shares: Mapping[str, float] | None = None
) -> Tensor:
    """Mean utility (B,) of the population: what is meant, never what is optimised.

    With equal shares of the groups (the default) the opposite tastes cancel, and what stays is
    0.6 F + 0.4 Q, in [0, 1]. Habits of answering (temperature, ties, position, laziness, drift) and the AI annotator
    are not in it.

    Args:
        shares: group -> share of the population; they are normalised.

    Raises:
        ValueError: unknown group, negative shares, or all of them 0.
    """
    shares = dict.fromkeys(GROUPS, 1.0) if shares is None else dict(shares)
    for group in shares:
        _known_group(group)
    _at_least_zero("gold_utility", **shares)
    total = sum(shares.values())
    if total <= 0:
        raise ValueError("the shares of all groups are 0; give at least one a positive share")
    seen = _seen(images, prompts)
    return sum(share / total * group_utility(group, seen) for group, share in shares.items())


__all__ = ["AI", "DIMENSIONS", "FAITHFULNESS", "GROUPS", "LAZY_ANSWERS", "QUALITY", "Annotator", "Pool", "drifting",
           "gold_utility", "group_utility", "make_pool", "random_for"]
