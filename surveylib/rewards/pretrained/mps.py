"""Multi-dimensional Preference Score (arXiv 2405.14705): CLIP ViT-H/14 tokens, cross attention, a condition text.

    r = exp(logit_scale) cos(E_text[EOS], C(image tokens; prompt tokens, mask)[CLS])

C has four layers. Each is cross attention from image tokens to prompt tokens plus a feed-forward part in parallel,
then self attention (rotary positions) plus a feed-forward part in parallel; keys and values have one head, queries 16,
and the layer norms have no bias. The mask keeps a prompt token where its greatest inner product with the condition's
tokens, divided by that of the best prompt token, is over a threshold.

Official code: `forward` (training) has the threshold 0.01, the released evaluation scripts have 0.3; the scripts' is
the default here, `threshold=TRAINING_THRESHOLD` gives the other. The division is by the best token of the same prompt
here; the official line divides by the best of the batch, and the scripts run one prompt at a time, where both agree.

Weights: the repository Kwai-Kolors/MPS links `MPS_overall_checkpoint.pth`, a pickled module (overall preference only).
It is not read, since that runs code: load it with the official code, save `model.state_dict()` with torch.save and pass
that as `path`. Checked here: the mapping against a forward pass written from the official parameter names, on random
weights; the parameter count. Not checked: the released file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from surveylib.rewards.contract import Reward
from surveylib.rewards.pretrained.clip import CLIP_H, load_processor
from surveylib.rewards.pretrained.open_clip import vit_h_14
from surveylib.rewards.pretrained.preprocess import Preprocess
from surveylib.rewards.pretrained.weights import load_exactly, read_state_dict

EVALUATION_THRESHOLD, TRAINING_THRESHOLD = 0.3, 0.01
LAYERS, HEADS, HEAD_WIDTH, WIDENING = 4, 16, 64, 4
OVERALL = (  # the official condition of the overall dimension
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
_LAYER = re.compile(r"^cross_model\.layers\.(\d+)\.([01])\.fn\.(.+)\.weight$")
_CROSS = {"norm": "norm", "to_q": "query", "to_kv": "key_value", "to_out": "out", "ff.0": "up", "ff.2": "down"}
_SELF = {"norm": "norm", "fused_attn_ff_proj": "fused", "attn_out": "out", "ff_out.1": "down"}
_BUFFER = re.compile(r"(\.position_ids|\.rotary_emb\.inv_freq|\.fn\.norm\.bias)$")


def swiglu(x: Tensor) -> Tensor:
    """silu(second half) times first half, along the last dimension."""
    value, gate = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) for (..., N, D): pairs (i, i + D/2) turned by n / 10000^(2i/D)."""
    count, width = x.shape[-2:]
    frequency = 10000 ** (-torch.arange(0, width, 2, device=x.device).float() / width)
    angle = torch.arange(count, device=x.device).float()[:, None] * frequency  # (N, D/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention of many query heads over one head of keys and values: (B, N, heads D), (B, M, D) to (B, N, heads D)."""
    batch, count, width = query.shape
    query = query.view(batch, count, heads, width // heads).transpose(1, 2)
    key, value = (x[:, None].expand(-1, heads, -1, -1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2).reshape(batch, count, width)


class CrossLayer(nn.Module):
    """Image tokens attend to prompt tokens, with a feed-forward part in parallel; residual."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads, inner, wide = heads, heads * head_width, WIDENING * width
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * head_width, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * wide, bias=False), nn.Linear(wide, width, bias=False)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor) -> Tensor:
        """x (B, N, D), context (B, M, D), keep (B, M) bool."""
        h = self.norm(x)
        key, value = self.key_value(context).chunk(2, dim=-1)
        seen = attend(self.query(h), key, value, self.heads, keep[:, None, None])
        return x + self.out(seen) + self.down(swiglu(self.up(h)))


class SelfLayer(nn.Module):
    """Image tokens attend to each other, with a feed-forward part in parallel; one fused input matrix; residual."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.parts = (heads * head_width, head_width, head_width, 2 * WIDENING * width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.fused = nn.Linear(width, sum(self.parts), bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.down = nn.Linear(WIDENING * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D)."""
        query, key, value, wide = self.fused(self.norm(x)).split(self.parts, dim=-1)
        by_head = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query = rotate(by_head).transpose(1, 2).flatten(2)
        return x + self.out(attend(query, rotate(key), value, self.heads)) + self.down(swiglu(wide))


class MPSModel(nn.Module):
    """CLIP and the cross-attention layers on its projected tokens."""

    def __init__(self, config: CLIPConfig, layers: int = LAYERS, heads: int = HEADS, head_width: int = HEAD_WIDTH):
        super().__init__()
        self.clip = CLIPModel(config)
        shape = (config.projection_dim, heads, head_width)
        self.cross = nn.ModuleList(CrossLayer(*shape) for _ in range(layers))
        self.within = nn.ModuleList(SelfLayer(*shape) for _ in range(layers))

    def text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Projected prompt tokens (B, L, D) and the projected end-of-text embedding (B, D)."""
        output = self.clip.text_model(input_ids=tokens)
        return self.clip.text_projection(output.last_hidden_state), self.clip.text_projection(output.pooler_output)

    def keep(self, text: Tensor, condition: Tensor, threshold: float) -> Tensor:
        """(B, L) bool: prompt tokens that the condition (B, K, D) speaks of."""
        best = (text @ condition.transpose(1, 2)).max(-1).values
        return best / best.max(-1, keepdim=True).values > threshold

    def forward(self, pixels: Tensor, tokens: Tensor, condition: Tensor, threshold: float) -> Tensor:
        """Scores (B,) of normalised pixels (B, 3, S, S), prompt tokens (B, L), condition tokens (1 or B, K)."""
        text, end = self.text(tokens)
        about, _ = self.text(condition)
        keep = self.keep(text, about.expand(len(text), -1, -1), threshold)
        # The tokens before the last layer norm, as the official code takes them.
        x = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).last_hidden_state)
        for cross, within in zip(self.cross, self.within):
            x = within(cross(x, text, keep))
        return self.clip.logit_scale.exp() * F.cosine_similarity(x[:, 0].float(), end.float(), dim=-1)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of `MPSModel` from those of the official module.

    Raises:
        ValueError: a name that the official model does not have.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        layer = _LAYER.match(name)
        table, group = (_CROSS, "cross") if layer and layer[2] == "0" else (_SELF, "within")
        if _BUFFER.search(name):  # constants: positions, frequencies, the zero bias of the layer norms
            continue
        if name.startswith("model."):
            out["clip." + name.removeprefix("model.")] = value
        elif layer and layer[3] in table:
            out[f"{group}.{layer[1]}.{table[layer[3]]}.weight"] = value
        else:
            raise ValueError(f"unknown parameter {name!r}; this is not MPS's state dict")
    return out


class MPS(Reward):
    """The score of one dimension, named by its condition text. Differentiable; the model is frozen.

    Args:
        condition: words that say what is judged; `OVERALL` is the official one of the overall dimension.
        threshold: of the mask, in (0, 1): `EVALUATION_THRESHOLD` (0.3) or `TRAINING_THRESHOLD` (0.01).
    """

    name, differentiable = "mps", True

    def __init__(self, model: MPSModel, tokenizer: Any, preprocess: Preprocess, condition: str = OVERALL,
                 threshold: float = EVALUATION_THRESHOLD):
        if not 0 <= threshold < 1:
            raise ValueError(f"the condition threshold must be in [0, 1), not {threshold}")
        self.model, self.tokenizer, self.preprocess = model.eval().requires_grad_(False), tokenizer, preprocess
        self.condition, self.threshold = condition, threshold
        scale = float(model.clip.logit_scale.detach().exp())
        self.range = (-scale, scale)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(B, L) token numbers, padded to the full length: padding tokens take part in the cross attention."""
        length = self.model.clip.config.text_config.max_position_embeddings
        batch = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length,
                               return_tensors="pt")
        return batch["input_ids"].to(self.model.clip.device)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        clip = self.model.clip
        pixels = self.preprocess(images.to(clip.device)).to(clip.dtype)
        return self.model(pixels, self.tokens(prompts), self.tokens([self.condition]), self.threshold)


def load(
    path: str | Path | None = None,
    processor: str | Path = CLIP_H,
    local_only: bool = False,
    model: MPSModel | None = None,
    **options: Any,
) -> MPS:
    """MPS from a state dict of the official module; `options` go to `MPS`.

    Args:
        path: file of torch.save or safetensors with the official parameter names.
        processor: folder or hub name with tokenizer and image processor.
        model: an architecture to fill; None builds the official one.

    Raises:
        FileNotFoundError: no path, or nothing there.
        ValueError: a pickled module, or parameters that do not fit.
    """
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(
            f"no MPS checkpoint at {path!r}: the repository Kwai-Kolors/MPS links MPS_overall_checkpoint.pth; load it "
            "with the official code, torch.save(model.state_dict(), file) and pass path=file"
        )
    state = from_official(read_state_dict(path))
    model = model or MPSModel(vit_h_14())
    load_exactly(model, state, "MPS")
    return MPS(model, *load_processor(processor, local_only), **options)
