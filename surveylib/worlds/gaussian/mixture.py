"""Gaussian mixtures whose density, score and posterior mean are known at every noise level.

If x0 ~ sum_k w_k N(mu_k, S_k) then x_t = a x0 + s eps ~ sum_k w_k N(a mu_k, a² S_k + s² I). With the component's
posterior probability r_k(x):

* score:           sum_k r_k C_k^-1 (a mu_k - x),             C_k = a² S_k + s² I
* posterior mean:  sum_k r_k [ mu_k + a S_k C_k^-1 (x - a mu_k) ]   (Tweedie's x0, defined at a = 0 and at s = 0 too)

Everything is computed in float64 through the eigenvectors of S_k and returned in the dtype of x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ANY = "any"


class GaussianMixture:
    """A mixture of K Gaussians in d dimensions, with names for its components.

    Args:
        means: (K, d).
        covariances: (K, d, d), or (K,) standard deviations of isotropic components.
        weights: (K,), positive; normalised here. Default: equal.
        names: K names that prompts may ask for; components may share one. Default: their numbers.

    Raises:
        ValueError: shapes that do not fit, weights that are not positive, covariances that are not positive definite.
    """

    def __init__(
        self,
        means: Tensor | Sequence,
        covariances: Tensor | Sequence,
        weights: Tensor | Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim != 2:
            raise ValueError(f"means must have shape (components, dimensions), got {tuple(means.shape)}")
        count, d = means.shape
        covariances = torch.as_tensor(covariances, dtype=torch.float64, device=means.device)
        if covariances.shape == (count,):
            if not (covariances > 0).all():
                raise ValueError(f"standard deviations must be positive, got {covariances.tolist()}")
            covariances = covariances.square()[:, None, None] * torch.eye(d, dtype=torch.float64, device=means.device)
        if covariances.shape != (count, d, d):
            raise ValueError(f"covariances must be ({count}, {d}, {d}) or ({count},), got {tuple(covariances.shape)}")
        weights = torch.ones(count) if weights is None else weights
        weights = torch.as_tensor(weights, dtype=torch.float64, device=means.device)
        if weights.shape != (count,) or not (weights > 0).all():
            raise ValueError(f"weights must be {count} positive numbers, got {weights.tolist()}")
        self.means, self.covariances = means, covariances
        self.log_weights = weights.log() - weights.sum().log()
        self.names = [str(k) for k in range(count)] if names is None else list(names)
        if len(self.names) != count:
            raise ValueError(f"{len(self.names)} names for {count} components")
        self._variances, self._axes = torch.linalg.eigh(covariances)  # (K, d), (K, d, d) columns
        if not (self._variances > 0).all():
            raise ValueError("every covariance must be positive definite")

    def __repr__(self) -> str:
        return f"GaussianMixture(components={len(self.means)}, dim={self.dim}, names={sorted(set(self.names))})"

    @property
    def dim(self) -> int:
        """d."""
        return self.means.shape[1]

    @property
    def weights(self) -> Tensor:
        """(K,), sum 1."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        """(d,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """(d, d)."""
        centred = self.means - self.mean
        within = torch.einsum("k,kij->ij", self.weights, self.covariances)
        return within + torch.einsum("k,ki,kj->ij", self.weights, centred, centred)

    def to(self, device: torch.device | str) -> GaussianMixture:
        """The same mixture on a device."""
        return GaussianMixture(
            self.means.to(device), self.covariances.to(device), self.weights.to(device), list(self.names)
        )

    # -- prompts ------------------------------------------------------------------------------------------------------
    def mask(self, prompt: str) -> Tensor:
        """(K,) booleans: the components that a prompt asks for. A name, or ``"any"`` or ``""`` for all.

        Raises:
            ValueError: an unknown name; the error lists what exists.
        """
        return component_mask(prompt, self.names)

    def restrict(self, prompt: str) -> GaussianMixture:
        """The conditional distribution: the prompt's components with their relative weights."""
        mask = self.mask(prompt).to(self.means.device)
        names = [name for name, keep in zip(self.names, mask.tolist()) if keep]
        return GaussianMixture(self.means[mask], self.covariances[mask], self.weights[mask], names)

    # -- sampling -----------------------------------------------------------------------------------------------------
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, d) exact samples, float32."""
        return self.sample_labelled(n, generator)[0]

    def sample_labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(n, d) exact samples, float32, and the (n,) components that they came from."""
        k = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        k, z = k.to(self.means.device), z.to(self.means.device)
        x = self.means[k] + torch.einsum("nij,nj->ni", self._axes[k], self._variances[k].sqrt() * z)
        return x.float(), k

    # -- exact quantities at noise level (a, s) -----------------------------------------------------------------------
    def log_prob(self, x: Tensor, a: Tensor | float = 1.0, s: Tensor | float = 0.0, log_weights: Tensor | None = None):
        """log p_t(x), (B,). ``x`` (B, d); ``a``, ``s``: numbers or (B,); ``log_weights`` (B, K): one set each."""
        joint, _, _ = self._joint(x, a, s, log_weights)
        return torch.logsumexp(joint, 1).to(x.dtype)

    def responsibilities(self, x, a=1.0, s=0.0, log_weights=None) -> Tensor:
        """(B, K): posterior probability of each component given x_t. Arguments as of `log_prob`."""
        return torch.softmax(self._joint(x, a, s, log_weights)[0], 1).to(x.dtype)

    def score(self, x: Tensor, a: Tensor | float = 1.0, s: Tensor | float = 0.0, log_weights: Tensor | None = None):
        """Gradient of log p_t at x, (B, d). Arguments as of `log_prob`."""
        joint, coordinates, variances = self._joint(x, a, s, log_weights)
        pulls = -torch.einsum("kij,bkj->bki", self._axes, coordinates / variances)
        return torch.einsum("bk,bki->bi", torch.softmax(joint, 1), pulls).to(x.dtype)

    def posterior_mean(self, x: Tensor, a: Tensor | float, s: Tensor | float, log_weights: Tensor | None = None):
        """E[x0 | x_t = x], (B, d). Arguments as of `log_prob`."""
        joint, means, _ = self._posterior(x, a, s, log_weights)
        return torch.einsum("bk,bki->bi", torch.softmax(joint, 1), means).to(x.dtype)

    def posterior_mean_and_noise(
        self, x: Tensor, a: Tensor | float, s: Tensor | float, log_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """E[x0 | x_t = x] and E[eps | x_t = x] = -s score, both (B, d), defined at a = 0 and at s = 0 too."""
        joint, coordinates, variances = self._joint(x, a, s, log_weights)
        a, s = (torch.as_tensor(c, dtype=torch.float64, device=x.device).reshape(-1, 1, 1) for c in (a, s))
        pulls = torch.einsum("kij,bkj->bki", self._axes, coordinates / variances)
        shifts = torch.einsum("kij,bkj->bki", self._axes, a * self._variances * coordinates / variances)
        r = torch.softmax(joint, 1)[:, :, None]
        return (r * (self.means + shifts)).sum(1).to(x.dtype), (r * s * pulls).sum(1).to(x.dtype)

    def posterior_covariance(self, x: Tensor, a: Tensor | float, s: Tensor | float) -> Tensor:
        """Cov[x0 | x_t = x], (B, d, d)."""
        joint, means, variances = self._posterior(x, a, s, None)
        r = torch.softmax(joint, 1)
        within = torch.einsum("bk,kij,bkj,klj->bil", r, self._axes, variances, self._axes)
        centred = means - torch.einsum("bk,bki->bi", r, means)[:, None]
        return (within + torch.einsum("bk,bki,bkj->bij", r, centred, centred)).to(x.dtype)

    def _joint(self, x, a, s, log_weights) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; k), (B, K); x - a mu_k in the axes of k, (B, K, d); the variances there, (B or 1, K, d)."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"points must have shape (batch, {self.dim}), got {tuple(x.shape)}")
        x = x.double()
        a, s = (torch.as_tensor(c, dtype=torch.float64, device=x.device).reshape(-1, 1, 1) for c in (a, s))
        coordinates = torch.einsum("kij,bki->bkj", self._axes, x[:, None] - a * self.means)
        variances = a**2 * self._variances + s**2
        log_density = -0.5 * (coordinates**2 / variances + variances.log() + math.log(2 * math.pi)).sum(2)
        log_weights = self.log_weights if log_weights is None else log_weights.double()
        return log_weights + log_density, coordinates, variances

    def _posterior(self, x, a, s, log_weights) -> tuple[Tensor, Tensor, Tensor]:
        """`_joint`'s first, and mean (B, K, d) and axis variances (B or 1, K, d) of x0 given x_t and the component."""
        joint, coordinates, variances = self._joint(x, a, s, log_weights)
        a, s = (torch.as_tensor(c, dtype=torch.float64, device=x.device).reshape(-1, 1, 1) for c in (a, s))
        shift = torch.einsum("kij,bkj->bki", self._axes, a * self._variances * coordinates / variances)
        return joint, self.means + shift, self._variances * s**2 / variances


def component_mask(prompt: str, names: Sequence[str]) -> Tensor:
    """See `GaussianMixture.mask`."""
    wanted = prompt.strip().lower()
    if wanted in ("", ANY):
        return torch.ones(len(names), dtype=torch.bool)
    mask = torch.tensor([name == wanted for name in names])
    if not mask.any():
        raise ValueError(f"unknown prompt {prompt!r}: this mixture knows {', '.join(dict.fromkeys(names))} and '{ANY}'")
    return mask


def spread() -> GaussianMixture:
    """N(0, 1) in one dimension: every sampler is linear on it, so its variance is known without sampling."""
    return GaussianMixture([[0.0]], [1.0], names=["centre"])


def two_peaks() -> GaussianMixture:
    """Two peaks in one dimension, "left" (0.6) and "right" (0.4)."""
    return GaussianMixture([[-1.0], [1.0]], [0.35, 0.35], [0.6, 0.4], ["left", "right"])


def ring() -> GaussianMixture:
    """Eight equal peaks on a circle of radius 1.5 in two dimensions, named by the compass."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    names = ["east", "north-east", "north", "north-west", "west", "south-west", "south", "south-east"]
    return GaussianMixture(1.5 * torch.stack([angles.cos(), angles.sin()], 1), [0.2] * 8, names=names)


def cross() -> GaussianMixture:
    """Two long, overlapping Gaussians in two dimensions, "rising" and "falling" (full covariances)."""
    covariance = torch.tensor([[0.5, 0.45], [0.45, 0.5]], dtype=torch.float64)
    flipped = covariance * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    return GaussianMixture(
        [[-0.6, 0.0], [0.6, 0.0]], torch.stack([covariance, flipped]), names=["rising", "falling"]
    )


MIXTURES = {"spread": spread, "two-peaks": two_peaks, "ring": ring, "cross": cross}


def make_mixture(name: str) -> GaussianMixture:
    """A ready mixture by name: ``spread``, ``two-peaks`` (1-D), ``ring``, ``cross`` (2-D).

    Raises:
        ValueError: an unknown name; the error lists what exists.
    """
    if name not in MIXTURES:
        raise ValueError(f"unknown mixture {name!r}: choose one of {', '.join(MIXTURES)}")
    return MIXTURES[name]()
