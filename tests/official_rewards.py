"""Forward passes written from the parameter names and meaning of the official checkpoints, on plain tensors."""

import torch
from torch.nn import functional as F


def normed(state, name, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def attention(query, key, value, heads, bias=None):
    """Softmax attention by hand, (B, N, D) each."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores if bias is None else scores + bias
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def open_clip_block(state, name, x, heads, bias=None):
    h = normed(state, f"{name}.ln_1", x)
    mixed = F.linear(h, state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"])
    x = x + linear(state, f"{name}.attn.out_proj", attention(*mixed.chunk(3, -1), heads, bias))
    h = normed(state, f"{name}.ln_2", x)
    return x + linear(state, f"{name}.mlp.c_proj", F.gelu(linear(state, f"{name}.mlp.c_fc", h)))


def open_clip_image(state, pixels, heads, layers):
    kernel = state["visual.conv1.weight"]
    patches = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(pixels), 1, -1), patches], 1)
    x = normed(state, "visual.ln_pre", x + state["visual.positional_embedding"])
    for i in range(layers):
        x = open_clip_block(state, f"visual.transformer.resblocks.{i}", x, heads)
    return normed(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


def open_clip_text(state, tokens, heads, layers, end):
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][: tokens.shape[1]]
    causal = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
    for i in range(layers):
        x = open_clip_block(state, f"transformer.resblocks.{i}", x, heads, causal)
    x = normed(state, "ln_final", x)
    place = (tokens == end).int().argmax(1)
    return x[torch.arange(len(x)), place] @ state["text_projection"]


def blip_reward(state, pixels, tokens, mask, vision_heads, text_heads, layers):
    """ImageReward before standardising."""
    v, t = "blip.visual_encoder", "blip.text_encoder"
    x = F.conv2d(pixels, state[f"{v}.patch_embed.proj.weight"], state[f"{v}.patch_embed.proj.bias"],
                 stride=state[f"{v}.patch_embed.proj.weight"].shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{v}.cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{v}.pos_embed"]
    for i in range(layers):
        name = f"{v}.blocks.{i}"
        mixed = linear(state, f"{name}.attn.qkv", normed(state, f"{name}.norm1", x, 1e-6))
        x = x + linear(state, f"{name}.attn.proj", attention(*mixed.chunk(3, -1), vision_heads))
        h = F.gelu(linear(state, f"{name}.mlp.fc1", normed(state, f"{name}.norm2", x, 1e-6)))
        x = x + linear(state, f"{name}.mlp.fc2", h)
    x = normed(state, f"{v}.norm", x, 1e-6)
    h = state[f"{t}.embeddings.word_embeddings.weight"][tokens]
    h = h + state[f"{t}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    h = normed(state, f"{t}.embeddings.LayerNorm", h, 1e-12)
    hidden = torch.where(mask[:, None, None] > 0, 0.0, float("-inf"))
    for i in range(layers):
        name = f"{t}.encoder.layer.{i}"
        for kind, source, bias in (("attention", None, hidden), ("crossattention", x, None)):
            seen = h if source is None else source
            parts = [linear(state, f"{name}.{kind}.self.query", h)]
            parts += [linear(state, f"{name}.{kind}.self.{p}", seen) for p in ("key", "value")]
            out = linear(state, f"{name}.{kind}.output.dense", attention(*parts, text_heads, bias))
            h = normed(state, f"{name}.{kind}.output.LayerNorm", out + h, 1e-12)
        wide = F.gelu(linear(state, f"{name}.intermediate.dense", h))
        h = normed(state, f"{name}.output.LayerNorm", linear(state, f"{name}.output.dense", wide) + h, 1e-12)
    x = h[:, 0]
    for i in (0, 2, 4, 6, 7):
        x = linear(state, f"mlp.layers.{i}", x)
    return x[:, 0]


def mps_cross(state, image, text, keep, heads, width, layers):
    """MPS's cross-attention stack on image tokens (B, N, D) and prompt tokens (B, L, D)."""

    def swish(x):
        value, gate = x.chunk(2, -1)
        return value * gate * gate.sigmoid()

    def turned(x):  # complex rotation of the pairs (i, i + D/2)
        half = width // 2
        angle = torch.outer(torch.arange(x.shape[-2]), 10000.0 ** (-torch.arange(half) * 2 / width))
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag], -1)

    for i in range(layers):
        a, b = (f"cross_model.layers.{i}.{k}.fn" for k in (0, 1))
        h = F.layer_norm(image, image.shape[-1:], state[f"{a}.norm.weight"])
        q = linear(state, f"{a}.to_q", h)
        k, v = (x.repeat(1, 1, heads) for x in linear(state, f"{a}.to_kv", text).chunk(2, -1))
        bias = torch.where(keep, 0.0, float("-inf"))[:, None, None]
        seen = linear(state, f"{a}.to_out", attention(q, k, v, heads, bias))
        image = image + seen + linear(state, f"{a}.ff.2", swish(linear(state, f"{a}.ff.0", h)))
        h = F.layer_norm(image, image.shape[-1:], state[f"{b}.norm.weight"])
        inner = heads * width
        q, k, v, wide = linear(state, f"{b}.fused_attn_ff_proj", h).split(
            [inner, width, width, 8 * image.shape[-1]], -1)
        q = turned(q.unflatten(-1, (heads, width)).transpose(1, 2)).transpose(1, 2).flatten(2)
        k, v = turned(k).repeat(1, 1, heads), v.repeat(1, 1, heads)
        image = image + linear(state, f"{b}.attn_out", attention(q, k, v, heads)) + linear(
            state, f"{b}.ff_out.1", swish(wide))
    return image
