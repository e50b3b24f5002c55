"""Pictures cut to [0, 1] without losing the gradient where they are saturated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(pictures: Tensor) -> Tensor:
        return pictures.clamp(0, 1)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def jvp(context: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()


def straight_through_clamp(pictures: Tensor) -> Tensor:
    """Clamped to [0, 1] forward, the identity backward: a plain clamp has no gradient where a picture is saturated."""
    return _StraightThrough.apply(pictures)
