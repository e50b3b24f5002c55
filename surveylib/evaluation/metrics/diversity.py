"""How varied pictures are, on features, and how far they are from the base model's.

    Vendi = exp(- sum_i l_i log l_i),  l the eigenvalues of K / n,  K_ij the cosine of features i and j  (2210.02410)

It is the effective number of different pictures: 1 for n copies, n for n orthogonal features. Alignment usually costs
variety among the pictures of one prompt, which a set over many prompts hides: `vendi_by_prompt` and
`pairwise_distance` look prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.evaluation.intervals import Mean, clustered_mean
from surveylib.evaluation.metrics.features import MetricError, check_features, check_two


def vendi(features: Tensor) -> float:
    """Vendi score of features (n, d), between 1 and min(n, d). Rows are normalised; none may be zero.

    Raises:
        MetricError: no row, or a row of zeros.
    """
    unit = unit_rows(check_features(features, "the pictures", 1, "the Vendi score"))
    n, d = unit.shape
    gram = unit @ unit.T if n <= d else unit.T @ unit  # the same eigenvalues, the smaller matrix
    eigenvalues = torch.linalg.eigvalsh(gram / n).clamp(min=0)
    return float(torch.special.entr(eigenvalues).sum().exp())


def vendi_by_prompt(features: Tensor, prompts: Sequence[str]) -> Mean:
    """Mean over prompts of the Vendi score of each prompt's pictures; features (N, d), prompts (N,).

    Raises:
        MetricError: a prompt with fewer than 2 pictures.
    """
    rows = rows_by_prompt(features, prompts, "the Vendi score by prompt")
    return clustered_mean([vendi(features[index]) for index in rows.values()], list(rows))


def pairwise_distance(features: Tensor, prompts: Sequence[str]) -> Mean:
    """Mean over prompts of 1 - cosine, averaged over the pairs of the prompt's pictures; in [0, 2].

    Raises:
        MetricError: a prompt with fewer than 2 pictures.
    """
    rows = rows_by_prompt(features, prompts, "the distance between the pictures of a prompt")
    unit = unit_rows(check_features(features, "the pictures"))
    means = []
    for index in rows.values():
        n = len(index)
        cosines = unit[index] @ unit[index].T
        means.append(float(1 - (cosines.sum() - cosines.trace()) / (n * (n - 1))))
    return clustered_mean(means, list(rows))


def distance_to_base(features: Tensor, base: Tensor, prompts: Sequence[str]) -> Mean:
    """Mean of 1 - cosine between each picture and the base model's from the same prompt and noise; in [0, 2].

    Args:
        features, base: (N, d), row by row from the same prompt and noise. prompts: (N,), for the interval.
    """
    features, base = check_two(features, base, 1, "the distance to the base model")
    if len(features) != len(base):
        raise MetricError(f"{len(features)} pictures and {len(base)} of the base model: draw both from the same "
                          "prompts and noise")
    return clustered_mean((1 - (unit_rows(features) * unit_rows(base)).sum(1)).numpy(), prompts)


def unit_rows(features: Tensor) -> Tensor:
    """Rows at length 1.

    Raises:
        MetricError: a row of zeros, which has no direction.
    """
    zero = (features.norm(dim=1) == 0).nonzero().flatten().tolist()
    if zero:
        raise MetricError(f"the features of picture {zero[0]} are all zero: no cosine; take another extractor")
    return F.normalize(features, dim=1)


def rows_by_prompt(features: Tensor, prompts: Sequence[str], metric: str) -> dict[str, np.ndarray]:
    """Row numbers of each prompt, at least two each."""
    if len(prompts) != len(features):
        raise MetricError(f"{len(prompts)} prompts for {len(features)} pictures: give the prompt of each")
    names, group = np.unique(np.asarray(prompts, dtype=object).astype(str), return_inverse=True)
    rows = {str(name): np.flatnonzero(group == i) for i, name in enumerate(names)}
    few = [(name, len(index)) for name, index in rows.items() if len(index) < 2]
    if few:
        raise MetricError(f"{metric} needs at least 2 pictures a prompt; {few[0][0]!r} has {few[0][1]}")
    return rows
