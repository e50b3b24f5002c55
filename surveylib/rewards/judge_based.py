"""Rewards of the Shapes world that are exact: the judge (`surveylib.worlds.shapes.judge`) and the picture quality.

They are the gold utility, not a proxy: a technique that optimises them is run with an oracle. None is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from surveylib.rewards.contract import Reward
from surveylib.worlds.shapes.judge import passes, scores
from surveylib.worlds.shapes.quality import quality


class Faithfulness(Reward):
    """Soft judgement in [0, 1]: the mean of the judge's scores for each thing the prompt says. 64 x 64 pictures."""

    name, range = "faithfulness", (0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in [0, 1]; raises ValueError for prompts outside the grammar or pictures of another size."""
        return scores(images, list(prompts)).to(images.device)


class HardFaithfulness(Reward):
    """1 where the picture shows all that the prompt says and nothing else, 0 where not. 64 x 64 pictures."""

    name, range = "faithfulness_hard", (0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) of 0 and 1; raises ValueError for prompts outside the grammar or pictures of another size."""
        return passes(images, list(prompts)).float().to(images.device)


class PictureQuality(Reward):
    """Sharpness, contrast, centring and cleanness, their geometric mean in [0, 1]; what is shown does not count."""

    name, range, needs_prompt = "shapes_quality", (0.0, 1.0), False

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in [0, 1]; raises ValueError for pictures of another size than 64 x 64."""
        return quality(images).to(images.device)
