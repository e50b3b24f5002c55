"""From rewards to advantages: group normalisation and per-prompt trackers, the one place of both.

Trap: dividing by a group's own standard deviation blows up groups whose rewards hardly differ; a group of equal rewards
must give zero, not noise. Statistics are in float64, in which the mean of equal float32 numbers is that number: in
float32 the rounding of the mean alone, divided by a tiny std, makes advantages of 0.03.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor, groups: Tensor, *, scale: Literal["group", "global", "none"] = "global", eps: float = 1e-4
) -> Tensor:
    """(r - mean of its group) / (std + eps), (N,).

    Args:
        rewards: (N,) of the whole epoch, all processes. groups: (N,) group numbers.
        scale: standard deviation of the group (DanceGRPO), of all rewards (Flow-GRPO's code) or no division (Dr. GRPO).

    Raises:
        ValueError: a group of one, whose advantage would always be zero; an unknown scale.
    """
    if scale not in ("group", "global", "none"):
        raise ValueError(f"unknown scale {scale!r}: choose 'group', 'global' or 'none'")
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    if (counts < 2).any():
        raise ValueError(f"{int((counts < 2).sum())} of {len(counts)} groups have one sample: its advantage is always "
                         "zero. Set samples_per_prompt to at least 2")
    dtype, rewards = rewards.dtype, rewards.double()
    counts = counts.to(rewards)
    sums = torch.zeros_like(counts).index_add_(0, index, rewards)
    centred = rewards - (sums / counts)[index]
    if scale == "none":
        return centred.to(dtype)
    if scale == "global":
        return (centred / (rewards.std(correction=0) + eps)).to(dtype)
    squares = torch.zeros_like(counts).index_add_(0, index, centred**2)
    return (centred / ((squares / counts).sqrt()[index] + eps)).to(dtype)


class PromptTracker:
    """Running mean and standard deviation of the rewards of each prompt (DDPO's official `stat_tracking`).

    Args:
        size: rewards kept a prompt. least: below this many, the statistics of the present batch stand in.
    """

    def __init__(self, size: int = 16, least: int = 16) -> None:
        self.size, self.least = size, least
        self.seen: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Tensor, eps: float = 1e-6) -> Tensor:
        """Takes the rewards (N,) of one epoch (all processes) in, and returns (r - mean) / (std + eps)."""
        for prompt, reward in zip(prompts, rewards.tolist()):
            self.seen.setdefault(prompt, deque(maxlen=self.size)).append(reward)
        dtype, rewards = rewards.dtype, rewards.double()
        mean, std = rewards.mean(), rewards.std(correction=0)
        means, stds = mean.repeat(len(rewards)), std.repeat(len(rewards))
        for i, prompt in enumerate(prompts):
            kept = self.seen[prompt]
            if len(kept) >= self.least:
                values = torch.tensor(list(kept), dtype=rewards.dtype)
                means[i], stds[i] = values.mean(), values.std(correction=0)
        return ((rewards - means) / (stds + eps)).to(dtype)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"seen": {prompt: list(values) for prompt, values in self.seen.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.seen = {prompt: deque(values, maxlen=self.size) for prompt, values in state["seen"].items()}
