"""One block of cross attention that fuses a picture's tokens into a prompt's: where BLIP and MPS mix the two."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surveylib.rewards.learned.trunk import Features, Widths


class Fusion(nn.Module):
    """Text tokens ask, picture tokens answer; what the end-of-text token got is put beside both embeddings.

    With t_j the prompt's tokens and v_k the picture's, in a width W of the projection:
        f_j = t_j + Attention(norm(t_j), norm(v)),   g_j = f_j + MLP(norm(f_j))
        fused = (g_end, e_img, e_txt, e_img * e_txt),   e of unit length

    Args:
        widths: of the trunk.
        heads: attention heads; must divide the projection's width.
    """

    def __init__(self, widths: Widths, heads: int = 4):
        super().__init__()
        size = widths.projection
        self.width = 4 * size
        self.from_text, self.from_image = nn.Linear(widths.text, size), nn.Linear(widths.vision, size)
        self.norm_text, self.norm_image, self.norm_out = nn.LayerNorm(size), nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def tokens(self, features: Features) -> Tensor:
        """(B, L, W): the prompt's tokens with the picture mixed in."""
        text, image = self.from_text(features.text_tokens), self.norm_image(self.from_image(features.image_tokens))
        mixed = text + self.attention(self.norm_text(text), image, image, need_weights=False)[0]
        return mixed + self.mlp(self.norm_out(mixed))

    def join(self, token: Tensor, features: Features) -> Tensor:
        """(B, 4 W): a fused token (B, W) beside the embeddings and their product."""
        image, text = F.normalize(features.image, dim=-1), F.normalize(features.text, dim=-1)
        scale = image.shape[-1] ** 0.5  # entries of unit-length vectors are small beside a token's
        return torch.cat([token, scale * image, scale * text, scale**2 * image * text], -1)

    def forward(self, features: Features) -> Tensor:
        """(B, 4 W)."""
        tokens = self.tokens(features)
        return self.join(tokens[torch.arange(len(tokens), device=tokens.device), features.end], features)
