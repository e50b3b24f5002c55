"""Does a picture show its prompt? By the exact judge of the Shapes world, and by CLIPScore.

The judge gives a hard judgement (everything right) and a soft one (share of what the prompt says that is right); both
come by category, with intervals clustered by prompt. "overall" is GenEval's: the mean of the six categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from surveylib.evaluation.intervals import Mean, clustered_mean
from surveylib.evaluation.metrics.features import MetricError
from surveylib.rewards.learned.trunk import SHAPES_CLIP, shapes_clip_folder
from surveylib.rewards.pretrained.clip_score import ClipScore, load
from surveylib.worlds.shapes.judge import judge
from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, CATEGORIES
from surveylib.worlds.shapes.suites import SuitePrompt


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """What the judge says of N pictures.

    Attributes:
        passed: (N,) bool. soft: (N,) in [0, 1].
        pass_rate, soft_score: over all pictures.
        passes, scores: category -> mean, "overall" last.
    """

    passed: np.ndarray
    soft: np.ndarray
    pass_rate: Mean
    soft_score: Mean
    passes: dict[str, Mean]
    scores: dict[str, Mean]


def faithfulness(images: Tensor, prompts: Sequence[SuitePrompt]) -> Faithfulness:
    """The judge's verdicts on pictures (N, 3, 64, 64) in [0, 1], one prompt a picture.

    Raises:
        MetricError: no pictures, or another number of prompts. ValueError: pictures of another size.
    """
    if not len(images) or len(images) != len(prompts):
        raise MetricError(f"{len(images)} pictures and {len(prompts)} prompts: faithfulness needs at least 1 picture "
                          "and the prompt of each")
    verdicts = judge(images, [prompt.spec for prompt in prompts])
    passed = np.array([v.passed for v in verdicts])
    soft = np.array([v.score for v in verdicts])
    texts, categories = [p.text for p in prompts], [p.category for p in prompts]
    return Faithfulness(passed, soft, clustered_mean(passed, texts), clustered_mean(soft, texts),
                        by_category(passed, texts, categories), by_category(soft, texts, categories))


def by_category(values: np.ndarray, prompts: Sequence[str], categories: Sequence[str]) -> dict[str, Mean]:
    """Means by category in the suites' order, then "overall": the plain mean of those of the six that are there."""
    values, names = np.asarray(values, dtype=float), np.asarray(categories)
    table = {}
    for name in [c for c in ALL_CATEGORIES if c in set(categories)]:
        rows = np.flatnonzero(names == name)
        table[name] = clustered_mean(values[rows], [prompts[i] for i in rows])
    parts = [table[name] for name in CATEGORIES if name in table]
    if parts:
        value = float(np.mean([p.value for p in parts]))
        error = float(np.sqrt(sum(p.standard_error**2 for p in parts)) / len(parts))
        half = 1.959963984540054 * error
        table["overall"] = Mean(value, error, value - half, value + half, sum(p.n for p in parts),
                                sum(p.prompts for p in parts))
    return table


@cache
def _scorer(name: str) -> ClipScore:
    return load(shapes_clip_folder() if name == SHAPES_CLIP else name)


@torch.no_grad()
def clip_scores(images: Tensor, prompts: Sequence[str], name: str = SHAPES_CLIP, batch: int = 256) -> Tensor:
    """CLIPScore (N,) in [0, 2.5] of pictures and their prompts (arXiv 2104.08718).

    Args:
        name: "shapes-clip", or a folder or hub name of a CLIPModel.

    Raises:
        RewardError: pictures and prompts that do not fit. FileNotFoundError: the model is not here.
    """
    score = _scorer(name)
    cuts = [slice(i, i + batch) for i in range(0, len(images), batch)]
    return torch.cat([score(images[cut], list(prompts[cut])).cpu() for cut in cuts] or [torch.zeros(0)])
