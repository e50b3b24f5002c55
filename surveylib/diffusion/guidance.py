"""Classifier-free guidance (arXiv 2207.12598) in one batched network call.

``output = u + w (c - u)`` with the conditional output c and the unconditional (or negative-prompt) output u.
w = 1 is the conditional model alone, w = 0 the unconditional one.

Trap: in diffusers' pipelines a ``guidance_scale`` of 0 (as SD-Turbo's card says) means "no guidance", that is w = 1
here. And in FLUX.1-dev the scale is an input of a guidance-distilled network, not a combination of two outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surveylib.diffusion.schedules import broadcast

NetworkCall = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]


def combine(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """u + w (c - u); ``scale`` w is a number or one for each sample (B,)."""
    return unconditional + broadcast(scale, conditional) * (conditional - unconditional)


def guided_output(
    call: NetworkCall,
    x: Tensor,
    t: Tensor,
    tensors: dict[str, Tensor],
    negative: dict[str, Tensor] | None,
    scale: float | Tensor,
    *,
    unconditional_gradient: bool = True,
) -> Tensor:
    """The guided network output, from one call on the doubled batch (unconditional half first, as in diffusers).

    Args:
        call: ``call(x, t, tensors) -> output``, ``t`` of shape (B,).
        x, t: noisy samples (B, ...) and their times (B,).
        tensors, negative: conditioning of the two branches, same names and shapes, batch first.
        scale: w, a number or (B,). Exactly 1 takes the conditional branch only, at half the cost.
        unconditional_gradient: False stops the gradient in the unconditional branch (Flow-GRPO's later code does).

    Raises:
        ValueError: guidance is asked for but there are no negative tensors.
    """
    if not isinstance(scale, Tensor) and scale == 1:
        return call(x, t, tensors)
    if negative is None:
        raise ValueError(
            f"guidance {scale} needs the unconditional branch: encode the prompts with negative='' (the default) "
            "or pass guidance=1.0"
        )
    doubled = {name: torch.cat([negative[name], value]) for name, value in tensors.items()}
    unconditional, conditional = call(torch.cat([x, x]), torch.cat([t, t]), doubled).chunk(2)
    if not unconditional_gradient:
        unconditional = unconditional.detach()
    return combine(conditional, unconditional, scale)
