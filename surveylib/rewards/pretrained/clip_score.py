"""CLIPScore (arXiv 2104.08718):  r = w max(cos(E_image, E_text), 0),  w = 2.5.

Weights: `hf download openai/clip-vit-base-patch32` (the paper's ViT-B/32) or any other CLIPModel folder, the library's
own shapes-clip among them. The paper sets "A photo depicts" before each caption; pass it as `prefix`, the default is
none. Below cos = 0 there is no gradient; `plain=True` gives the cosine itself.

Not checked here: scores of the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from surveylib.rewards.pretrained.clip import ClipReward, load_clip

WEIGHT = 2.5


class ClipScore(ClipReward):
    """CLIPScore in [0, w], or with `plain` the cosine in [-1, 1]."""

    name = "clip_score"

    def __init__(self, model: Any, tokenizer: Any, preprocess: Any, weight: float = WEIGHT, plain: bool = False,
                 prefix: str = ""):
        super().__init__(model, tokenizer, preprocess)
        if not weight > 0:
            raise ValueError(f"the weight of CLIPScore must be positive (the paper's is {WEIGHT}), not {weight}")
        self.weight, self.plain, self.prefix = weight, plain, prefix
        self.range = (-1.0, 1.0) if plain else (0.0, weight)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        prefix = self.prefix + " " if self.prefix and not self.prefix.endswith(" ") else self.prefix
        cosines = self.cosines(images, [prefix + prompt for prompt in prompts])
        return cosines if self.plain else self.weight * cosines.clamp(min=0)


def load(path: str | Path = "openai/clip-vit-base-patch32", local_only: bool = False, **options: Any) -> ClipScore:
    """CLIPScore on the CLIP model of a folder or hub name; `options` go to `ClipScore`."""
    return ClipScore(*load_clip(path, local_only=local_only), **options)
