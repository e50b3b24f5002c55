"""Stable targets: what lies behind a noisy latent, averaged over pictures of the same caption (arXiv 2302.00670).

The best prediction at noise level t is E[x_0 | x_t, c]; noise regression learns it from single draws of x_0. Where the
noise is strong a draw says little: the hues of a shape differ by a norm of 1 to 6, a draw from its caption's mean by
more than 20. With references z_1 .. z_K of the caption, the own picture among them, the stable target is

    sum_j w_j z_j,    w_j proportional to exp(-||x_t - a_t z_j||^2 / (2 s_t^2)),    x_t = a_t x_0 + s_t eps,

the same expectation over the K, with up to K times less variance where the weights are even. Where there is little
noise the own picture has all the weight, and it is plain regression.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SameCaption:
    """Finds pictures whose captions say the same.

    Args:
        said: (N, k) integers, what each caption says; equal rows say the same (`attributes.attribute_targets`).
    """

    def __init__(self, said: Tensor) -> None:
        self.group = torch.unique(said, dim=0, return_inverse=True)[1]
        self.order = self.group.argsort()
        self.count = torch.bincount(self.group)
        self.start = self.count.cumsum(0) - self.count

    def draw(self, rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """(B, k) rows that say what `rows` (B,) say: each its own, then k - 1 of its group, with replacement."""
        group = self.group[rows]
        place = torch.rand(len(rows), k - 1, generator=generator) * self.count[group][:, None]
        found = self.order[self.start[group][:, None] + place.long()]
        return torch.cat([rows[:, None], found], 1)

    def latents(self, every: Tensor, rows: Tensor, k: int, step: int) -> Tensor:
        """(B, k, ...) float32 latents of the rows that `draw` finds at a step, out of `every` (N, ...)."""
        return every[self.draw(rows, k, torch.Generator().manual_seed(step))].float()


def stable_target(noisy: Tensor, references: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """(B, ...) expected x_0 over references (B, K, ...), given noisy = signal x_0 + noise eps; signal, noise (B,)."""
    away = noisy[:, None] - signal.reshape(-1, *[1] * (references.ndim - 1)) * references
    distance = away.flatten(2).square().sum(-1)
    weights = (-distance / (2 * noise[:, None].square())).softmax(1)
    return torch.einsum("bk,bk...->b...", weights, references)
