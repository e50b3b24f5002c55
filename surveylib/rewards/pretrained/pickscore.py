"""PickScore (arXiv 2305.01569):  r = exp(logit_scale) cos(E_image, E_text), a CLIP ViT-H/14 tuned on Pick-a-Pic.

Weights: `hf download yuvalkirstain/PickScore_v1`; tokenizer and image processor are those of
`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`. Papers divide the score by 26 or 100; nothing is divided here (combine with
`WeightedSum` for that).

Not checked here: scores of the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from surveylib.rewards.pretrained.clip import CLIP_H, ClipReward, load_clip


class PickScore(ClipReward):
    """Scaled cosine in [-exp(logit_scale), exp(logit_scale)]."""

    name = "pickscore"

    def __init__(self, model: Any, tokenizer: Any, preprocess: Any):
        super().__init__(model, tokenizer, preprocess)
        scale = float(self.model.logit_scale.detach().exp())
        self.range = (-scale, scale)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        cosines = self.cosines(images, prompts)
        return self.model.logit_scale.float().exp() * cosines


def load(
    path: str | Path = "yuvalkirstain/PickScore_v1", processor: str | Path = CLIP_H, local_only: bool = False
) -> PickScore:
    """PickScore from a folder or hub name; `processor`: folder or name with tokenizer and image processor."""
    return PickScore(*load_clip(path, processor, local_only))
