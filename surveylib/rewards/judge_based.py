"""Rewards of the Shapes world that are exact: the judge (`surveylib.worlds.shapes.judge`) and the picture quality.

They are the gold utility, not a proxy: a technique that optimises them is run with an oracle. None is differentiable.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

from surveylib.rewards.contract import Reward, RewardError
from surveylib.worlds.shapes.judge import passes, scores
from surveylib.worlds.shapes.prompts import parse
from surveylib.worlds.shapes.quality import quality


def _judged(judge: Callable[..., Tensor], images: Tensor, prompts: Sequence[str]) -> Tensor:
    """What the judge says; the message of a prompt that it cannot read has the whole prompt."""
    try:
        return judge(images, list(prompts))
    except ValueError:
        for prompt in dict.fromkeys(prompts):
            try:
                with warnings.catch_warnings():  # said by the judge already
                    warnings.simplefilter("ignore")
                    parse(prompt)
            except ValueError as error:
                raise RewardError(f"the prompt {prompt!r} is none of the Shapes world, which the judge needs: {error}"
                                  ) from error
        raise


class Faithfulness(Reward):
    """Soft judgement in [0, 1]: the mean of the judge's scores for each thing the prompt says. 64 x 64 pictures."""

    name, range = "faithfulness", (0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in [0, 1]; raises ValueError for prompts outside the grammar or pictures of another size."""
        return _judged(scores, images, prompts).to(images.device)


class HardFaithfulness(Reward):
    """1 where the picture shows all that the prompt says and nothing else, 0 where not. 64 x 64 pictures."""

    name, range = "faithfulness_hard", (0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) of 0 and 1; raises ValueError for prompts outside the grammar or pictures of another size."""
        return _judged(passes, images, prompts).float().to(images.device)


class PictureQuality(Reward):
    """Sharpness, contrast, centring and cleanness, their geometric mean in [0, 1]; what is shown does not count."""

    name, range, needs_prompt = "shapes_quality", (0.0, 1.0), False

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in [0, 1]; raises ValueError for pictures of another size than 64 x 64."""
        return quality(images).to(images.device)
