"""How far samples are from the truth: KL on a grid, sliced Wasserstein, and MMD with a permutation interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surveylib.worlds.gaussian.grid import GridDensity


def kl_on_grid(p: GridDensity, q: GridDensity) -> float:
    """KL(p || q) in nats of two densities on the same grid."""
    if p.grid != q.grid:
        raise ValueError(f"the two densities live on different grids: {p.grid} and {q.grid}")
    mass = p.log_mass.exp()
    terms = torch.where(mass > 0, mass * (p.log_mass - q.log_mass), torch.zeros_like(mass))
    return float(terms.sum())


def kl_of_samples(samples: Tensor, q: GridDensity) -> float:
    """KL in nats of the histogram of samples (n, d) over q's cells against q's cell masses.

    Biased upwards by about (occupied cells - 1) / (2 n): choose cells so that this is small. Samples outside the grid
    count in the edge cells, where q is small.
    """
    cells = q.grid.cell_of(samples)
    counts = torch.bincount(cells, minlength=len(q.log_mass)).double()
    mass = counts / counts.sum()
    occupied = mass > 0
    return float((mass[occupied] * (mass[occupied].log() - q.log_mass[occupied])).sum())


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 128, p: float = 2.0, generator: torch.Generator | None = None
) -> float:
    """Sliced Wasserstein-p distance of two samples (n, d) and (m, d), in the units of x. Exact W_p for d = 1.

    The quantile functions of the samples are steps; they are compared on each piece on which both are constant.

    Mean over random directions of the p-th power of the 1-D distance, then the p-th root (arXiv 1902.00434, eq. 8).
    """
    x, y = x.double().cpu(), y.double().cpu()
    _check_samples(x, y)
    if x.shape[1] == 1:
        directions = torch.ones(1, 1, dtype=torch.float64)
    else:
        directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
        directions = directions / directions.norm(dim=0)
    rows_x, rows_y, widths = _pieces(len(x), len(y))
    quantile_x, quantile_y = ((z @ directions).sort(0).values[rows] for z, rows in ((x, rows_x), (y, rows_y)))
    powers = (quantile_x - quantile_y).abs() ** p  # (pieces, projections)
    return float((widths @ powers).mean() ** (1 / p))


def _pieces(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pieces of (0, 1) on which the quantile functions of n and of m points are constant.

    Returns:
        rows of the n and of the m sorted points (int64), and widths (float64, sum 1), all (pieces,). Ends are counted
        in units of 1 / (n m), so that equal ones are equal.
    """
    ends = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    left = ends[:-1]
    return left // m, left // n, ends.diff().double() / (n * m)


@dataclass(frozen=True)
class MMDTest:
    """Squared MMD of two samples beside its distribution when both are the same.

    Attributes:
        value: unbiased estimate of MMD² (may be slightly negative).
        low, high: central interval of the value under permutation of the pooled samples.
        p_value: share of permutations with a value at least as large, (1 + k) / (1 + permutations).
        bandwidth: of the Gaussian kernel exp(-|x - y|² / (2 h²)).
    """

    value: float
    low: float
    high: float
    p_value: float
    bandwidth: float


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> float:
    """Unbiased squared MMD with a Gaussian kernel (Gretton et al. 2012, eq. 3). Default bandwidth: median distance."""
    kernel, _ = _kernel(x, y, bandwidth)
    labels = torch.cat([torch.ones(len(x)), torch.zeros(len(y))]).double()
    return float(_mmd_of_labels(kernel, labels[None])[0])


def mmd_test(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | None = None,
    permutations: int = 200,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> MMDTest:
    """MMD² with the interval it would fall into if both samples came from the same distribution.

    Args:
        x, y: (n, d) and (m, d); cost grows with (n + m)², use up to a few thousand.
    """
    kernel, bandwidth = _kernel(x, y, bandwidth)
    labels = torch.cat([torch.ones(len(x)), torch.zeros(len(y))]).double()
    order = torch.stack([torch.randperm(len(labels), generator=generator) for _ in range(permutations)])
    value = float(_mmd_of_labels(kernel, labels[None])[0])
    null = _mmd_of_labels(kernel, labels[order])
    tail = (1 - level) / 2
    low, high = torch.quantile(null, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    p_value = (1 + int((null >= value).sum())) / (1 + permutations)
    return MMDTest(value, low, high, p_value, bandwidth)


def _kernel(x: Tensor, y: Tensor, bandwidth: float | None) -> tuple[Tensor, float]:
    x, y = x.double().cpu(), y.double().cpu()
    _check_samples(x, y)
    pooled = torch.cat([x, y])
    squared = torch.cdist(pooled, pooled).square()
    if bandwidth is None:
        bandwidth = float(squared[:: max(1, len(pooled) // 1000)].sqrt().median())
    kernel = torch.exp(-squared / (2 * bandwidth**2))
    kernel.fill_diagonal_(0.0)  # the unbiased estimate leaves out pairs of a point with itself
    return kernel, bandwidth


def _mmd_of_labels(kernel: Tensor, labels: Tensor) -> Tensor:
    """MMD² for rows of labels (P, n + m), 1 for x and 0 for y."""
    other = 1 - labels
    n, m = labels.sum(1), other.sum(1)
    to_x, to_y = labels @ kernel, other @ kernel
    within_x = (to_x * labels).sum(1) / (n * (n - 1))
    within_y = (to_y * other).sum(1) / (m * (m - 1))
    return within_x + within_y - 2 * (to_x * other).sum(1) / (n * m)


def _check_samples(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"give two samples (n, d) and (m, d) of the same d: {tuple(x.shape)}, {tuple(y.shape)}")
