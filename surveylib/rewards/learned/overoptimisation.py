"""Over-optimisation: best-of-N on a proxy, judged by gold, and the law of Gao et al. (arXiv 2210.10760).

Best-of-n takes, of n pictures, the one with the highest proxy. Its divergence from the base model and the fitted laws:

    KL(n) = log n - (n - 1) / n,      d = sqrt(KL)
    best-of-n:  R(d) = d (alpha - beta d)              gold, minus its value at d = 0
    RL:         R(d) = d (alpha - beta log d)

Gold rises while d < alpha / (2 beta) and falls to zero gain at alpha / beta. KL(n) is exact where no two proxies are
equal. With N samples a prompt, the expectation over all C(N, n) subsets is taken exactly, by order statistics: the
sample of ascending proxy rank k is the best of a random subset with probability C(k-1, n-1) / C(N, n).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

RESAMPLES = 1000
LEVEL = 0.95
FORMS = ("best-of-n", "rl")


def kl_of(n: ArrayLike) -> np.ndarray:
    """KL of best-of-n from one draw, in nats: log n - (n - 1)/n."""
    n = np.asarray(n, float)
    return np.log(n) - (n - 1) / n


def subset_weights(total: int, n: int) -> np.ndarray:
    """(total,) probability that the sample of ascending rank 1 .. total is the best of a random subset of size n."""
    if not 1 <= n <= total:
        raise ValueError(f"n={n} must be between 1 and the {total} samples of a prompt")
    rank = np.arange(1, total + 1)

    def log_choose(a, b):
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)

    weights = np.zeros(total)
    weights[n - 1 :] = np.exp(log_choose(rank[n - 1 :] - 1, n - 1) - log_choose(total, n))
    return weights / weights.sum()


def best_of(proxy: ArrayLike, value: ArrayLike, n: int) -> np.ndarray:
    """Expected value of the best of n by proxy, over all subsets: (P,).

    Args:
        proxy, value: (P, N): N samples of each of P prompts. Equal proxies are chosen between at random.
    """
    proxy, value = np.asarray(proxy, float), np.asarray(value, float)
    order = np.argsort(proxy, 1, kind="stable")
    ranked, ordered = np.take_along_axis(value, order, 1), np.take_along_axis(proxy, order, 1)
    for row in range(len(ranked)):  # samples of equal proxy stand for each other: give each their mean
        _, group, count = np.unique(ordered[row], return_inverse=True, return_counts=True)
        if count.max() > 1:
            ranked[row] = (np.bincount(group, ranked[row]) / count)[group]
    return ranked @ subset_weights(proxy.shape[1], n)


@dataclass(frozen=True)
class BestOfN:
    """Curves over n = 1 .. N.

    Attributes:
        n, kl: (K,). proxy, gold: (K,) means over prompts.
        proxy_interval, gold_interval: (2, K) percentile intervals, prompts resampled.
        gold_by_prompt: (P, K), what `fit_gao` resamples.
    """

    n: np.ndarray
    kl: np.ndarray
    proxy: np.ndarray
    gold: np.ndarray
    proxy_interval: np.ndarray
    gold_interval: np.ndarray
    gold_by_prompt: np.ndarray


def _resampled(by_prompt: np.ndarray, seed: int) -> np.ndarray:
    """(RESAMPLES, K) means over resampled prompts."""
    draws = np.random.default_rng(seed).integers(0, len(by_prompt), (RESAMPLES, len(by_prompt)))
    counts = np.stack([np.bincount(d, minlength=len(by_prompt)) for d in draws])
    return counts @ by_prompt / len(by_prompt)


def best_of_n(proxy: ArrayLike, gold: ArrayLike, n: ArrayLike | None = None, seed: int = 0) -> BestOfN:
    """Gold and proxy of best-of-n, unbiased, for every n.

    Args:
        proxy, gold: (P, N) scores of the same N samples of each of P prompts.
        n: which n; default 1 .. N.
        seed: of the bootstrap over prompts.

    Raises:
        ValueError: shapes that differ, scores that are not finite, or an n beyond N.
    """
    proxy, gold = np.asarray(proxy, float), np.asarray(gold, float)
    if proxy.ndim != 2 or proxy.shape != gold.shape or 0 in proxy.shape:
        raise ValueError(f"proxy {proxy.shape} and gold {gold.shape} must both be (prompts, samples)")
    if not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
        raise ValueError("a score is NaN or infinite: leave that prompt out, and say so")
    sizes = np.arange(1, proxy.shape[1] + 1) if n is None else np.asarray(n, int)
    by_prompt = [np.stack([best_of(proxy, value, int(k)) for k in sizes], 1) for value in (proxy, gold)]
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    intervals = [np.percentile(_resampled(rows, seed), tails, axis=0) for rows in by_prompt]
    means = [rows.mean(0) for rows in by_prompt]
    return BestOfN(sizes, kl_of(sizes), *means, *intervals, by_prompt[1])


@dataclass(frozen=True)
class GaoFit:
    """alpha, beta with intervals; `peak` is the d of the highest gold (infinite where beta <= 0).

    `predict(d)` gives the gain in gold over d = 0.
    """

    alpha: float
    beta: float
    alpha_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    r_squared: float
    form: str

    @property
    def peak(self) -> float:
        """d at which gold is highest: alpha / (2 beta), or exp(alpha / beta - 1) for RL."""
        if self.beta <= 0:
            return float("inf")
        return self.alpha / (2 * self.beta) if self.form == "best-of-n" else float(np.exp(self.alpha / self.beta - 1))

    def predict(self, d: ArrayLike) -> np.ndarray:
        """Gain at d >= 0."""
        return _design(np.asarray(d, float), self.form) @ np.array([self.alpha, self.beta])


def _design(d: np.ndarray, form: str) -> np.ndarray:
    """(K, 2): the law is linear in alpha and beta."""
    bend = d**2 if form == "best-of-n" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -bend], -1)


def fit_gao(kl: ArrayLike, gain: ArrayLike, form: str = "best-of-n", seed: int = 0) -> GaoFit:
    """Least squares of the law on gold gains.

    Args:
        kl: (K,) divergences in nats, >= 0, at least two different ones above 0.
        gain: (P, K) gold minus gold of the base model, by prompt; or (K,) means (then the intervals are nan).
        form: "best-of-n" or "rl".
        seed: of the bootstrap over prompts.

    Raises:
        ValueError: shapes that do not fit, too few points, an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    kl, gain = np.asarray(kl, float), np.atleast_2d(np.asarray(gain, float))
    if kl.ndim != 1 or gain.shape[1] != len(kl) or (kl < 0).any():
        raise ValueError(f"kl {kl.shape}, at least 0, and gains {gain.shape} must have the same number of columns")
    if len(np.unique(kl[kl > 0])) < 2:
        raise ValueError("the law has two constants: give at least two different divergences above 0")
    design = _design(np.sqrt(kl), form)
    solve = np.linalg.pinv(design)
    mean = gain.mean(0)
    alpha, beta = solve @ mean
    low = high = np.full(2, np.nan)
    if len(gain) > 1:
        boot = _resampled(gain, seed) @ solve.T
        low, high = np.percentile(boot, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    rest = ((mean - design @ [alpha, beta]) ** 2).sum()
    spread = ((mean - mean.mean()) ** 2).sum()
    return GaoFit(float(alpha), float(beta), (float(low[0]), float(high[0])), (float(low[1]), float(high[1])),
                  float(1 - rest / spread) if spread > 0 else float("nan"), form)


def fit_best_of_n(curves: BestOfN, seed: int = 0) -> GaoFit:
    """The best-of-n law on the gold curves of `best_of_n`; each prompt's own mean (n = 1) is its zero.

    Raises:
        ValueError: the curves do not start at n = 1.
    """
    if curves.n[0] != 1:
        raise ValueError(f"the curves start at n={curves.n[0]}; the law needs n = 1 as its zero")
    return fit_gao(curves.kl, curves.gold_by_prompt - curves.gold_by_prompt[:, :1], "best-of-n", seed)
