"""Reduced precision where the hardware has it, and the attention that is fast in it."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether matrix products in bfloat16 have units of their own on this device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(supported())


def autocast_type(wish: str | None, device: torch.device | str) -> torch.dtype | None:
    """The type to autocast to: None for none, "auto" for bfloat16 where it has units, otherwise what is named."""
    if wish == "auto":
        return torch.bfloat16 if has_bfloat16(device) else None
    return None if wish is None else getattr(torch, wish)


def plain_attention(network: nn.Module) -> bool:
    """Attention by plain matrix products in a UNet: the same numbers, and in bfloat16 on a CPU half the time of the
    fused kernel. Other networks, and UNets with processors of their own, stay as they are. Returns whether it was set.
    """
    processors = getattr(network, "attn_processors", {})
    if not processors or any(type(p) not in (AttnProcessor, AttnProcessor2_0) for p in processors.values()):
        return False
    network.set_attn_processor(AttnProcessor())
    return True
