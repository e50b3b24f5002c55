"""The test of a measurement: proxy, gold and held-out rewards, variety, distance to the base model's pictures.

A row reads gold here, once. Equal-cost curves (`equal_cost`) and studies of over-optimisation (`frontier`) read it at
every stop; nothing is chosen by what they find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surveylib.evaluation import metrics
from surveylib.evaluation.intervals import Mean, clustered_mean
from surveylib.evaluation.metrics.faithfulness import by_category
from surveylib.evaluation.metrics.features import FeatureExtractor, MetricError
from surveylib.evaluation.protocol import Prompt
from surveylib.evaluation.win_rate import tie_of, win_rate
from surveylib.rewards.contract import Reward
from surveylib.techniques.paths import score_all
from surveylib.worlds.shapes.quality import quality

SUBSET = 100  # pictures in a subset of KID


@dataclass(frozen=True, eq=False)
class Judges:
    """What pictures are judged by. gold: whether the exact judge can read these prompts. held_out: by name."""

    proxy: Reward
    held_out: Mapping[str, Reward]
    features: FeatureExtractor
    gold: bool


@dataclass(frozen=True, eq=False)
class Looked:
    """Test pictures as they are kept for comparisons: features (N, d), and scores (N,) by name."""

    features: Tensor
    scores: dict[str, np.ndarray]


def look(pictures: Tensor, prompts: Sequence[Prompt], judges: Judges, batch: int = 64) -> Looked:
    """Features and every score of pictures (N, 3, H, W), one prompt each.

    Scores: "proxy", each held-out reward, and in the Shapes world "gold" (the judge's soft score), "pass" (its hard
    judgement), "quality" of the picture and "clip_score".
    """
    texts = [prompt.text for prompt in prompts]
    with torch.no_grad():
        scores = {name: score_all(reward, pictures, texts, batch).cpu().double().numpy()
                  for name, reward in {"proxy": judges.proxy, **judges.held_out}.items()}
    if judges.gold:
        found = metrics.faithfulness(pictures, [prompt.spec for prompt in prompts])
        scores |= {"gold": found.soft, "pass": found.passed.astype(float),
                   "quality": quality(pictures).double().numpy(),
                   "clip_score": metrics.clip_scores(pictures, texts).double().numpy()}
    return Looked(metrics.extract(judges.features, pictures), scores)


def section_of(
    looked: Looked, base: Looked | None, prompts: Sequence[Prompt], path_kl: np.ndarray | None = None,
    kl_prompts: Sequence[str] = (), kid_subset: int = SUBSET,
) -> dict[str, Any]:
    """The "test" part of a row: means with prompt-clustered intervals, categories, win rates, variety, distances.

    Args:
        base: the base model's pictures from the same prompts and noise; None for the base model itself.
        path_kl: (K,) KL of paths of `kl_prompts`, or None where there is none (test-time methods, the base model).

    A metric that needs more pictures than there are is left out and says so under "left_out".
    """
    texts, categories = [p.text for p in prompts], [p.category for p in prompts]
    section: dict[str, Any] = {
        "means": {name: clustered_mean(values, texts).numbers() for name, values in looked.scores.items()},
        "by_category": {name: plain(by_category(looked.scores[name], texts, categories))
                        for name in ("gold", "pass") if name in looked.scores},
        "left_out": {},
    }

    def put(name: str, compute: Callable[[], Any]) -> None:
        try:
            value = compute()
        except MetricError as error:
            section["left_out"][name] = str(error)
            return
        section[name] = value.numbers() if isinstance(value, Mean) else value

    put("diversity", lambda: metrics.pairwise_distance(looked.features, texts))
    put("vendi", lambda: metrics.vendi_by_prompt(looked.features, texts))
    if base is not None:
        section["win_rate"] = {name: win_rate(values, base.scores[name], texts, tie=tie_of(name)).numbers()
                               for name, values in looked.scores.items()}
        put("distance_to_base", lambda: metrics.distance_to_base(looked.features, base.features, texts))
        put("fid_to_base", lambda: round(metrics.fid(looked.features, base.features), 6))
        put("kid_to_base", lambda: kid_numbers(looked.features, base.features, kid_subset))
        put("prdc_to_base", lambda: {k: round(v, 6) for k, v in
                                     metrics.prdc(looked.features, base.features)._asdict().items()})
    if path_kl is not None:
        section["path_kl"] = clustered_mean(path_kl, list(kl_prompts)).numbers()
    _, clusters = np.unique(np.asarray(texts), return_inverse=True)
    section["clusters"] = clusters.tolist()
    section["scores"] = {name: np.round(values, 5).tolist() for name, values in looked.scores.items()}
    return section





def kid_numbers(features: Tensor, base: Tensor, subset: int) -> dict[str, float]:
    """KID's mean and deviation over subsets."""
    found = metrics.kid(features, base, subset_size=subset)
    return {"mean": round(found.mean, 6), "std": round(found.std, 6)}


def plain(value: Any) -> Any:
    """For JSON: means as their numbers, in dicts too."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.numbers() if isinstance(value, Mean) else value
