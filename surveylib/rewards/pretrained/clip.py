"""What the rewards on CLIP share: embeddings of pictures and prompts (arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from surveylib.rewards.contract import Reward
from surveylib.rewards.pretrained.preprocess import Preprocess
from surveylib.rewards.pretrained.weights import pretrained

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # tokenizer and image processor of PickScore, HPS v2 and MPS


def features(output: Any) -> Tensor:
    """The projected embedding of `get_image_features` or `get_text_features`: transformers 5 returns an output object
    whose `pooler_output` it is, earlier versions the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


class ClipReward(Reward):
    """Base of the rewards on a CLIPModel. The model is put in evaluation mode and frozen; gradients reach the pixels.

    Prompts longer than the text model's positions (77 tokens for the public models) are cut, as in the official codes.

    Args:
        model: a CLIPModel.
        tokenizer: its tokenizer.
        preprocess: for its vision model.
    """

    differentiable = True

    def __init__(self, model: CLIPModel, tokenizer: Any, preprocess: Preprocess):
        self.model, self.tokenizer, self.preprocess = model.eval().requires_grad_(False), tokenizer, preprocess

    def tokens(self, prompts: Sequence[str]) -> Any:
        """Token numbers and attention mask, (B, L), on the model's device."""
        length = self.model.config.text_config.max_position_embeddings
        batch = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, D), float32, of pictures (B, 3, H, W) in [0, 1]."""
        pixels = self.preprocess(images.to(self.model.device)).to(self.model.dtype)
        return F.normalize(features(self.model.get_image_features(pixel_values=pixels)).float(), dim=-1)

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings (B, D), float32, without gradient."""
        with torch.no_grad():
            return F.normalize(features(self.model.get_text_features(**self.tokens(prompts))).float(), dim=-1)

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) cosine of each picture with its prompt."""
        return (self.image_embeddings(images) * self.text_embeddings(prompts)).sum(-1)


def load_clip(
    path: str | Path, processor: str | Path | None = None, local_only: bool = False
) -> tuple[CLIPModel, Any, Preprocess]:
    """Model, tokenizer and preprocessing from a folder or a name on the hub; `processor`: where the last two are.

    Raises:
        FileNotFoundError: not on this machine and not to be downloaded.
    """
    model = pretrained(CLIPModel, path, local_only)
    return model, *load_processor(processor or path, local_only)


def load_processor(source: str | Path, local_only: bool = False) -> tuple[Any, Preprocess]:
    """Tokenizer and preprocessing from a folder or a name on the hub."""
    tokenizer = pretrained(AutoTokenizer, source, local_only)
    return tokenizer, Preprocess.from_processor(pretrained(CLIPImageProcessorPil, source, local_only))
