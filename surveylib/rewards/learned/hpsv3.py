"""HPSv3: a mean and a variance for each picture, and the expected Bradley-Terry loss (arXiv 2508.03789).

    r_i ~ N(mu_i, sigma_i^2),   z = r_w - r_l ~ N(mu_w - mu_l, sigma_w^2 + sigma_l^2)
    L = -E_z log sigmoid(z)

Official code: sigma = exp(second output), the expectation by 1000 normal samples a pair, reward mu. `expected_loss`
takes it so ("monte-carlo") or by Gauss-Hermite quadrature ("quadrature": no noise in the gradient; the default here).
Since log sigmoid(z) - log sigmoid(-z) = z, both outcomes of a pair differ by exactly mu_w - mu_l. Ties and vote
shares: the mean over both outcomes (ours). Deviations: CLIP and `fusion.Fusion` in place of Qwen2-VL's special token.
Chapter: "Learning a reward".
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surveylib.rewards.learned.fusion import Fusion
from surveylib.rewards.learned.trunk import Features, Widths

SAMPLES = 1000  # official code
NODES = 64  # Gauss-Hermite nodes: error below 1e-4 for sigma_z up to 6
LOG_SIGMA = (-4.0, 2.0)  # ours: bounds of log sigma, so that exp neither vanishes nor overflows
METHODS = ("quadrature", "monte-carlo")


@lru_cache(maxsize=8)
def hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights, float64, with E f(x) = sum w f(node) for x ~ N(0, 1)."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


def expected_loss(
    mu: Tensor,
    sigma: Tensor,
    method: str = "quadrature",
    generator: torch.Generator | None = None,
    nodes: int = NODES,
    samples: int = SAMPLES,
) -> Tensor:
    """-E log sigmoid(z), z ~ N(mu, sigma^2), elementwise; mu and sigma of one shape, sigma >= 0.

    Raises:
        ValueError: a method that is not in `METHODS`.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if method == "monte-carlo":
        noise = torch.randn(*mu.shape, samples, generator=generator, device=mu.device, dtype=mu.dtype)
        return -F.logsigmoid(mu[..., None] + sigma[..., None] * noise).mean(-1)
    x, w = (v.to(mu) for v in hermite(nodes))
    return -(F.logsigmoid(mu[..., None] + sigma[..., None] * x) * w).sum(-1)


class HPSv3Head(nn.Module):
    """Fusion, an MLP with ReLU, and two outputs: mu and log sigma.

    Args:
        hidden: widths of the MLP (official: 1024 and 16).
        method: how the expectation is taken, one of `METHODS`.
    """

    name = "hpsv3"
    outputs = ("mean", "log std")

    def __init__(self, widths: Widths, hidden: tuple[int, ...] = (1024, 16), method: str = "quadrature"):
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
        self.options, self.method = {"hidden": list(hidden), "method": method}, method
        self.fusion = Fusion(widths)
        sizes = (self.fusion.width, *hidden)
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 2))

    def forward(self, features: Features) -> Tensor:
        """(B, 2): mu and log sigma, the latter within `LOG_SIGMA`."""
        mu, raw = self.layers(self.fusion(features)).float().unbind(-1)
        return torch.stack([mu, raw.clamp(*LOG_SIGMA)], -1)

    def reward(self, outputs: Tensor) -> Tensor:
        """(B,): mu."""
        return outputs[:, 0]

    def range(self) -> tuple[float, float]:
        """No bound."""
        return float("-inf"), float("inf")

    def loss(self, first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
        """(M,) losses of outputs (M, 2) each."""
        mu = first[:, 0] - second[:, 0]
        sigma = (first[:, 1].exp().square() + second[:, 1].exp().square()).sqrt()
        win = expected_loss(mu, sigma, self.method)
        return win + (1 - preference) * mu  # the other outcome costs exactly mu more
