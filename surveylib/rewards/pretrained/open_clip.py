"""Weights in the layout of open_clip as a transformers CLIPModel.

The parameter names are those of open_clip's CLIP with a vision transformer (also OpenAI's own). Attention keeps query,
key and value in one `in_proj`; the projections `visual.proj` and `text_projection` are (width, embedding) matrices that
are multiplied from the right, hence transposed here. A test compares with a forward pass written from these names.
"""

from __future__ import annotations

import re

from torch import Tensor
from transformers import CLIPConfig

_BLOCK = re.compile(r"^(visual\.)?transformer\.resblocks\.(\d+)\.(.+)$")
_IN_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
             "attn.out_proj": "self_attn.out_proj"}
_SINGLE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_IGNORED = {"attn_mask"}  # a buffer of old checkpoints, no weight


def vit_h_14() -> CLIPConfig:
    """ViT-H-14 of open_clip: vision 1280 wide, 32 layers; text 1024 wide, 24 layers; embedding 1024; exact GELU."""
    text = {"vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 1024,
            "bos_token_id": 49406, "eos_token_id": 49407}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "projection_dim": 1024}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024)


def _in_block(prefix: str, rest: str, value: Tensor) -> dict[str, Tensor]:
    """One parameter of one transformer block."""
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.rsplit("_", 1)[1]
        return {f"{prefix}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", value.chunk(3))}
    module, kind = rest.rsplit(".", 1)
    if module not in _IN_BLOCK:
        raise ValueError(f"unknown parameter {rest!r} in an open_clip block; known are {', '.join(_IN_BLOCK)}, attn")
    return {f"{prefix}.{_IN_BLOCK[module]}.{kind}": value}


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of a CLIPModel from those of open_clip; a leading "module." (distributed training) is taken off.

    Raises:
        ValueError: a name that open_clip's CLIP does not have.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if block := _BLOCK.match(name):
            tower = "vision_model" if block[1] else "text_model"
            out |= _in_block(f"{tower}.encoder.layers.{block[2]}", block[3], value)
        elif name in _SINGLE:
            out[_SINGLE[name]] = value
        elif name in _TRANSPOSED:
            out[_TRANSPOSED[name]] = value.T.contiguous()
        elif name not in _IGNORED:
            raise ValueError(f"unknown parameter {name!r}; this is not a CLIP vision transformer of open_clip")
    return out
