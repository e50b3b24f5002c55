"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Average weights: theta_ema <- d theta_ema + (1 - d) theta, with d = min(decay, (1 + n) / (10 + n)) at update n.

    The warm-up of d lets the average leave the initial weights quickly.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be in [0, 1)")
        self.module, self.decay, self.updates = module, decay, 0
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in self.module.named_parameters():
            self.average[name].lerp_(p, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The module with the averaged weights inside the `with` block, its own afterwards."""
        own = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self._copy(self.average)
        try:
            yield self.module
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        for name, p in self.module.named_parameters():
            p.copy_(weights[name])

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """From a checkpoint."""
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
