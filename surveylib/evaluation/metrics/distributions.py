"""Distances between two sets of pictures, on features: FID, KID, precision, recall, density, coverage.

    FID = |mu_g - mu_r|^2 + Tr(S_g + S_r - 2 (S_g S_r)^{1/2})                                       (arXiv 1706.08500)
    KID = unbiased MMD^2 with k(x, y) = (x'y / d + 1)^3, mean over random subsets                   (arXiv 1801.01401)
    precision = share of generated pictures inside the union of the reference pictures' k-th-neighbour balls, recall
        the same with the sets exchanged                                                            (arXiv 1904.06991)
    density = mean number of such balls a generated picture is in, over k; coverage = share of reference pictures whose
        ball holds a generated one                                                                  (arXiv 2002.09797)

FID falls with the number of pictures: compare only numbers from equally many. Both sets need more pictures than
features for a covariance of full rank, which is asked for here. FID and KID are torchmetrics', with the features given
instead of its Inception network: numbers from other features do not compare with published ones.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surveylib.evaluation.metrics.features import check_two


class AsGiven(nn.Module):
    """torchmetrics' feature network, where the features are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """The features themselves, (B, d)."""
        return features


def fid(generated: Tensor, reference: Tensor) -> float:
    """Fréchet distance of two sets of features (N, d) and (M, d), at least 0.

    Raises:
        MetricError: fewer than d + 1 pictures in a set; other features.
    """
    d = generated.shape[1] if generated.ndim == 2 else 1
    generated, reference = check_two(generated, reference, d + 1, f"FID on {d} features")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(AsGiven(d), normalize=True)
    metric.update(reference, real=True)
    metric.update(generated, real=False)
    return max(float(metric.compute()), 0.0)  # rounding leaves a set a little below 0 from itself


class KID(NamedTuple):
    """Mean and standard deviation over subsets."""

    mean: float
    std: float


def kid(generated: Tensor, reference: Tensor, *, subsets: int = 50, subset_size: int = 100, seed: int = 0) -> KID:
    """Kernel distance of two sets of features (N, d) and (M, d); unbiased, hence below 0 at times.

    Args:
        subsets, subset_size: of the random subsets, drawn without replacement. seed: of the drawing.

    Raises:
        MetricError: fewer pictures than `subset_size` in a set; other features.
    """
    generated, reference = check_two(generated, reference, subset_size, f"KID with subset_size={subset_size}")
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # says that it keeps the features
        metric = KernelInceptionDistance(AsGiven(generated.shape[1]), subsets=subsets, subset_size=subset_size)
        metric.update(reference, real=True)
        metric.update(generated, real=False)
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return KID(float(mean), float(std))


class PRDC(NamedTuple):
    """Each in [0, 1], except density, which may be above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(generated: Tensor, reference: Tensor, k: int = 3) -> PRDC:
    """Precision, recall, density and coverage with k-th nearest neighbours (Kynkäänniemi takes 3, PRDC 5).

    Args:
        generated, reference: features (N, d) and (M, d).

    Raises:
        MetricError: fewer than k + 1 pictures in a set.
    """
    generated, reference = check_two(generated, reference, k + 1, f"precision and recall with k={k}")
    within_reference, within_generated = radius(reference, k), radius(generated, k)
    between = distances(reference, generated)  # (M, N)
    inside = between <= within_reference[:, None]
    return PRDC(
        precision=float(inside.any(0).double().mean()),
        recall=float((between <= within_generated[None]).any(1).double().mean()),
        density=float(inside.double().sum(0).mean() / k),
        coverage=float(inside.any(1).double().mean()),
    )


def radius(features: Tensor, k: int) -> Tensor:
    """(N,) distance of each row to its k-th nearest other row."""
    return distances(features, features).kthvalue(k + 1, dim=1).values  # the nearest is the row itself


def distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) Euclidean distances, each from the difference: exactly 0 between equal rows."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
