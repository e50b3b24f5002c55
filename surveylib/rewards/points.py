"""Rewards of the Gaussian world behind the contract of all rewards: samples are points (B, d), not pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from surveylib.rewards.contract import Reward, RewardError, rows_where


class PointReward(Reward):
    """r(x) of points x (B, d), from a function such as `surveylib.worlds.gaussian.tilt.LinearReward`.

    Args:
        function: (B, d) -> (B,). name: for messages and rows. differentiable: whether a gradient goes through it.
    """

    needs_prompt = False

    def __init__(self, function: Callable[[Tensor], Tensor], name: str = "reward", differentiable: bool = True):
        self.function, self.name, self.differentiable = function, name, differentiable

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """r of the points."""
        return self.function(images)

    def check_samples(self, images: Tensor) -> None:
        """Refuses what is not a floating, finite (B, d) tensor.

        Raises:
            RewardError: naming the reward and the rows at fault.
        """
        if not isinstance(images, Tensor) or images.ndim != 2 or not images.is_floating_point():
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise RewardError(f"reward {self.name!r} of the Gaussian world takes floating points (B, d), not {found}")
        bad = ~images.detach().isfinite().all(1)
        if bad.any():
            raise RewardError(f"reward {self.name!r}: NaN or infinity in the points of {rows_where(bad)}")
