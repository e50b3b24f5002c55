"""ImageReward (arXiv 2304.05977) on transformers' BLIP modules.

    r = (head(BERT(prompt; cross attention to ViT(picture))[CLS]) - 0.16717) / 1.03334

BLIP-large: ViT-L/16 at 224 pixels and a BERT of 12 layers with cross attention; the head is `heads.LinearHead`. Prompts
are padded and cut to 35 tokens. All numbers are those of the official code (THUDM/ImageReward).

Weights: `hf download THUDM/ImageReward ImageReward.pt` and the tokenizer `google-bert/bert-base-uncased`. The
official file is a state dict; `from_official` renames it. BLIP's contrastive projections in it are not used.

Traps: the vision layer norms have eps 1e-6 (transformers' default is 1e-5); the official crop rounds half pixels as
torchvision does. The official differentiable entry `score_gard` is this computation.
Checked here: the mapping against a forward pass written from the official parameter names, on random weights; the
parameter count. Not checked: the released file itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from surveylib.rewards.contract import Reward
from surveylib.rewards.pretrained.heads import LinearHead
from surveylib.rewards.pretrained.preprocess import Preprocess
from surveylib.rewards.pretrained.weights import checkpoint_file, load_exactly, pretrained, read_state_dict

REPOSITORY, FILE, TOKENIZER = "THUDM/ImageReward", "ImageReward.pt", "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35
_BLOCK = re.compile(r"^blip\.visual_encoder\.blocks\.(\d+)\.(.+)\.(weight|bias)$")
_IN_BLOCK = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv",
             "attn.proj": "self_attn.projection", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_SINGLE = {
    "blip.visual_encoder.cls_token": "vision.embeddings.class_embedding",
    "blip.visual_encoder.pos_embed": "vision.embeddings.position_embedding",
    "blip.visual_encoder.patch_embed.proj.weight": "vision.embeddings.patch_embedding.weight",
    "blip.visual_encoder.patch_embed.proj.bias": "vision.embeddings.patch_embedding.bias",
    "blip.visual_encoder.norm.weight": "vision.post_layernorm.weight",
    "blip.visual_encoder.norm.bias": "vision.post_layernorm.bias",
}
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def large() -> tuple[BlipVisionConfig, BlipTextConfig]:
    """The configurations of the released model."""
    vision = BlipVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=224, patch_size=16, hidden_act="gelu", layer_norm_eps=1e-6)
    text = BlipTextConfig(vocab_size=30524, hidden_size=768, encoder_hidden_size=1024, intermediate_size=3072,
                          num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=512,
                          hidden_act="gelu", layer_norm_eps=1e-12, is_decoder=True, pad_token_id=0, bos_token_id=30522,
                          eos_token_id=102, sep_token_id=102)
    return vision, text


class ImageRewardModel(nn.Module):
    """Vision encoder, text encoder with cross attention, head."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig):
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)  # is_decoder in the config: it has cross attention
        self.head = LinearHead(text.hidden_size)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Rewards (B,) of normalised pixels (B, 3, S, S) and tokens (B, L)."""
        patches = self.vision(pixel_values=pixels).last_hidden_state  # (B, N, D)
        text = self.text(input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=patches)
        return (self.head(text.last_hidden_state[:, 0].float()) - MEAN) / STD


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of `ImageRewardModel` from those of ImageReward.pt.

    Raises:
        ValueError: a name that the official model does not have.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        block = _BLOCK.match(name)
        if block and block[2] in _IN_BLOCK:
            out[f"vision.encoder.layers.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"] = value
        elif name in _SINGLE:
            out[_SINGLE[name]] = value
        elif name.startswith(_UNUSED):
            continue
        elif name.startswith("blip.text_encoder."):  # both are BERT: the same names
            out["text." + name.removeprefix("blip.text_encoder.")] = value
        elif name.startswith("mlp.layers."):
            out["head." + name.removeprefix("mlp.")] = value
        else:
            raise ValueError(f"unknown parameter {name!r}; this is not ImageReward's state dict")
    return out


class ImageReward(Reward):
    """Standardised by the constants of the release. Differentiable; the model is frozen.

    Args:
        model: see `ImageRewardModel`.
        tokenizer: BERT's.
    """

    name, differentiable = "imagereward", True

    def __init__(self, model: ImageRewardModel, tokenizer: Any):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.preprocess = Preprocess(model.vision.config.image_size, halves="even")

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        weight = self.model.vision.embeddings.patch_embedding.weight
        batch = self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=TOKENS,
                               return_tensors="pt").to(weight.device)
        pixels = self.preprocess(images.to(weight.device)).to(weight.dtype)
        return self.model(pixels, batch["input_ids"], batch["attention_mask"])


def load(
    path: str | Path | None = None,
    tokenizer: str | Path = TOKENIZER,
    local_only: bool = False,
    configs: tuple[BlipVisionConfig, BlipTextConfig] | None = None,
) -> ImageReward:
    """ImageReward from the official file (default: the hub's); `configs` is BLIP-large's unless given.

    Raises:
        FileNotFoundError: the file or the tokenizer is missing.
        ValueError: the file does not fit.
    """
    state = from_official(read_state_dict(checkpoint_file(path, REPOSITORY, FILE, local_only)))
    with torch.random.fork_rng(devices=[]):
        model = ImageRewardModel(*(configs or large()))
    load_exactly(model, state, "ImageReward")
    return ImageReward(model, pretrained(AutoTokenizer, tokenizer, local_only))
