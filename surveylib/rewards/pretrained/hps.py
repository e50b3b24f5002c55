"""Human Preference Score v2 and v2.1 (arXiv 2306.09341):  r = cos(E_image, E_text), a tuned open_clip ViT-H-14.

Weights: `hf download xswu/HPSv2 HPS_v2_compressed.pt` (v2) or `HPS_v2.1_compressed.pt` (v2.1), in open_clip's layout,
mapped onto transformers (`open_clip.py`); tokenizer of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`. The official score has
no logit scale; it is often reported times 100 (`scale=100`).

Preprocessing follows the official code, which differs from CLIP's: the longest side becomes 224 and the rest is black
(CLIP: shortest side, then crop), on floats, so nothing is clipped or rounded. For square pictures both agree but for
that. Its torchvision call antialiases from version 0.17 on and not before; here it does.

Checked here: the mapping against a forward pass written from the official parameter names, on random weights; the
parameter count. Not checked: the released files themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from surveylib.rewards.pretrained.clip import CLIP_H, ClipReward
from surveylib.rewards.pretrained.open_clip import from_open_clip, vit_h_14
from surveylib.rewards.pretrained.preprocess import Preprocess
from surveylib.rewards.pretrained.weights import checkpoint_file, load_exactly, pretrained, read_state_dict

REPOSITORY = "xswu/HPSv2"
FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPS(ClipReward):
    """The cosine times `scale`, in [-scale, scale]."""

    def __init__(self, model: Any, tokenizer: Any, preprocess: Any, version: str = "v2.1", scale: float = 1.0):
        if version not in FILES:
            raise ValueError(f"unknown version {version!r} of HPS; known are {', '.join(FILES)}")
        super().__init__(model, tokenizer, preprocess)
        self.name, self.scale, self.range = f"hps_{version}", scale, (-scale, scale)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        return self.scale * self.cosines(images, prompts)


def model_from(path: str | Path, config: CLIPConfig | None = None) -> CLIPModel:
    """A CLIPModel from a checkpoint in open_clip's layout; `config` is ViT-H-14's unless given.

    Raises:
        FileNotFoundError, ValueError: no such file, or parameters that do not fit the architecture.
    """
    state = from_open_clip(read_state_dict(path))
    with torch.device("meta"):
        model = CLIPModel(config or vit_h_14())
    model = model.to_empty(device="cpu")
    for tower in (model.text_model, model.vision_model):  # the position numbers are buffers, not in any checkpoint
        numbers = tower.embeddings.position_ids
        numbers.copy_(torch.arange(numbers.shape[1]).expand_as(numbers))
    load_exactly(model, state, "an open_clip model")
    return model


def load(
    version: str = "v2.1",
    path: str | Path | None = None,
    processor: str | Path = CLIP_H,
    local_only: bool = False,
    config: CLIPConfig | None = None,
    scale: float = 1.0,
) -> HPS:
    """HPS from a checkpoint file (default: the hub's); `processor`: folder or name with the tokenizer."""
    if version not in FILES:
        raise ValueError(f"unknown version {version!r} of HPS; known are {', '.join(FILES)}")
    model = model_from(checkpoint_file(path, REPOSITORY, FILES[version], local_only), config)
    size = model.config.vision_config.image_size
    tokenizer = pretrained(AutoTokenizer, processor, local_only)
    return HPS(model, tokenizer, Preprocess(size, fit="longest", eight_bit=False), version, scale)


def load_v2(**options: Any) -> HPS:
    """HPS v2; options of `load`."""
    return load("v2", **options)


def load_v21(**options: Any) -> HPS:
    """HPS v2.1; options of `load`."""
    return load("v2.1", **options)
