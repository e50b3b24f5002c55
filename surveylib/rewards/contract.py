"""The one convention of all rewards: pictures and prompts in, one number a picture out, higher is better.

A reward implements `score`; users call the object itself, which checks what goes in and what comes out. Nothing is
repaired in silence: a picture outside [0, 1], another number of prompts, a NaN in a score raises `RewardError`, which
names the reward and the rows.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import extract_tb

import torch
from torch import Tensor, nn

from surveylib.runs.memory import out_of_memory

RANGE_SLACK = 1e-3  # how far a picture's value may lie outside [0, 1]: rounding, not an unclamped decoder
ROWS_NAMED = 8  # rows that an error lists


LIBRARY = f"{Path(__file__).resolve().parents[1]}{os.sep}"
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class RewardError(ValueError):
    """What was given to a reward, or what it returned, breaks the contract; or a user's reward failed."""


class Reward:
    """Base class.

    Attributes:
        name: as in `load_reward` and in result rows.
        differentiable: whether gradients reach the pixels. Where not, the call runs without gradients.
        needs_prompt: whether the score depends on the prompt. Where not, `prompts` may be None.
        range: (least, greatest) value a score can have; infinite where there is no bound.
        higher_is_better: always True.
        step_aware: whether `score_latents` is there.
        calls: pictures scored so far by this object.
        on_call: None, or a function of (name, pictures), called after each scored batch: the hook of a ledger.
            A combined reward reports itself; its parts report to their own hooks.
    """

    name: str = "reward"
    differentiable: bool = False
    needs_prompt: bool = True
    range: tuple[float, float] = (float("-inf"), float("inf"))
    higher_is_better: bool = True
    step_aware: bool = False
    calls: int = 0
    on_call: Callable[[str, int], None] | None = None

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] and one prompt a picture. Unchecked: call the object."""
        raise NotImplementedError(f"{type(self).__name__} does not implement score(images, prompts)")

    def score_latents(self, x_t: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of noisy latents x_t (B, C, h, w) at model times t (B,); only where `step_aware`."""
        raise NotImplementedError(
            f"the reward {self.name!r} judges pictures only; take one whose step_aware is True, or decode x0 first"
        )

    def check_samples(self, images: Tensor) -> None:
        """Refuses what is not a picture (`check_images`); rewards of other samples override it."""
        check_images(images, self.name)

    def to(self, device: torch.device | str) -> Reward:
        """Moves the reward's modules and tensors to a device; returns self."""
        for name, value in vars(self).items():
            if isinstance(value, (nn.Module, Tensor, Reward)):
                setattr(self, name, value.to(device))
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Checked scores.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: B texts; None only where the reward needs no prompt.

        Returns:
            (B,) float32 on the device of the score, with a gradient where `differentiable` and the pictures have one.

        Raises:
            RewardError: pictures of another shape, dtype or range or with NaN; another number of prompts; scores of
                another shape, not finite, or without the promised gradient; any error in a reward that is not of the
                library, with the place in it. Memory that ran out is told as it is.
        """
        self.check_samples(images)
        prompts = check_prompts(prompts, len(images), self)
        if len(images) == 0:
            return torch.zeros(0, device=images.device)
        wanted = self.differentiable and torch.is_grad_enabled()
        with torch.set_grad_enabled(wanted):
            scores = self._scored(images if wanted else images.detach(), prompts)
        scores = check_scores(scores, len(images), self.name)
        if wanted and images.requires_grad and not scores.requires_grad:
            raise RewardError(f"the reward {self.name!r} says it is differentiable, but its scores carry no gradient")
        self.calls += len(images)
        if self.on_call is not None:
            self.on_call(self.name, len(images))
        return scores

    def _scored(self, images: Tensor, prompts: list[str]) -> Tensor:
        try:
            return self.score(images, prompts)
        except Exception as error:
            if isinstance(error, RewardError) or _of_library(self) or out_of_memory(error):
                raise
            raise RewardError(f"reward {self.name!r} failed: {told(error)}") from error


class FunctionReward(Reward):
    """A reward from a function of (images, prompts) -> (B,) scores."""

    def __init__(
        self,
        function: Callable[[Tensor, Sequence[str]], Tensor],
        name: str,
        differentiable: bool = False,
        needs_prompt: bool = True,
        range: tuple[float, float] = (float("-inf"), float("inf")),
    ):
        self.function, self.name, self.range = function, name, range
        self.differentiable, self.needs_prompt = differentiable, needs_prompt

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the function returns."""
        return self.function(images, prompts)


def _of_library(reward: Reward) -> bool:
    """Whether the code of a reward is ours."""
    code = reward.function if isinstance(reward, FunctionReward) else type(reward)
    return (getattr(code, "__module__", None) or "").startswith("surveylib.")


def told(error: BaseException) -> str:
    """An error with its kind and the last place of the user's own code that it went through: "KeyError('missing') at
    my_rewards.py:7"."""
    said = f"SyntaxError: {error}" if isinstance(error, SyntaxError) else repr(error)  # which names its place
    outside = [f for f in extract_tb(error.__traceback__)
               if not f.filename.startswith((LIBRARY, "<frozen")) and Path(f.filename).is_file()]
    own = [f for f in outside if not f.filename.startswith(INSTALLED)] or outside
    return f"{said} at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else said


def rows_where(bad: Tensor) -> str:
    """"row 3" or "rows 0, 2, 5 ..." of a (B,) bool tensor."""
    rows = bad.nonzero().flatten().tolist()
    listed = ", ".join(map(str, rows[:ROWS_NAMED])) + (f" ... ({len(rows)} in all)" if len(rows) > ROWS_NAMED else "")
    return f"row{'s' if len(rows) > 1 else ''} {listed}"


def check_images(images: Tensor, name: str) -> None:
    """Refuses what is not a floating (B, 3, H, W) tensor in [0, 1].

    Raises:
        RewardError: naming the reward, what was given and the rows at fault.
    """
    if not isinstance(images, Tensor):
        raise RewardError(f"reward {name!r}: pictures must be a tensor (B, 3, H, W), not {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise RewardError(f"reward {name!r}: pictures must be (B, 3, H, W), not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise RewardError(f"reward {name!r}: pictures must be floating in [0, 1], not {images.dtype}; divide by 255")
    flat = images.detach().flatten(1)
    bad = ~flat.isfinite().all(1)
    if bad.any():
        raise RewardError(f"reward {name!r}: NaN or infinity in the pictures of {rows_where(bad)}")
    bad = ((flat < -RANGE_SLACK) | (flat > 1 + RANGE_SLACK)).any(1)
    if bad.any():
        raise RewardError(
            f"reward {name!r}: values outside [0, 1] (from {flat.min():.3g} to {flat.max():.3g}) in the pictures of "
            f"{rows_where(bad)}; map [-1, 1] by (x + 1) / 2 and clamp, or keep the gradient by a straight-through clamp"
        )


def check_prompts(prompts: Sequence[str] | None, count: int, reward: Reward) -> list[str]:
    """One prompt a picture, as a list.

    Raises:
        RewardError: no prompts though the reward needs them, another number, or something that is not a text.
    """
    if prompts is None:
        if reward.needs_prompt:
            raise RewardError(f"reward {reward.name!r} needs prompts: give one text for each of the {count} pictures")
        return [""] * count
    if isinstance(prompts, str):
        raise RewardError(f"reward {reward.name!r}: prompts must be a list of {count} texts, not one text")
    prompts = list(prompts)
    if len(prompts) != count:
        raise RewardError(f"reward {reward.name!r}: {len(prompts)} prompts for {count} pictures; give one a picture")
    wrong = torch.tensor([not isinstance(prompt, str) for prompt in prompts], dtype=torch.bool)
    if wrong.any():
        raise RewardError(f"reward {reward.name!r}: a prompt is a text; something else is in {rows_where(wrong)}")
    return prompts


def check_scores(scores: Tensor, count: int, name: str) -> Tensor:
    """Scores as (B,) float32.

    Raises:
        RewardError: no tensor, another shape, not floating or integer, NaN or infinity.
    """
    if not isinstance(scores, Tensor):
        raise RewardError(f"reward {name!r} returned a {type(scores).__name__}; a tensor ({count},) is expected")
    if scores.shape != (count,):
        raise RewardError(f"reward {name!r} returned the shape {tuple(scores.shape)}; ({count},) is expected")
    if scores.is_complex():
        raise RewardError(f"reward {name!r} returned {scores.dtype}; real numbers are expected")
    scores = scores.float()
    bad = ~scores.detach().isfinite()
    if bad.any():
        raise RewardError(f"reward {name!r} returned NaN or infinity in {rows_where(bad)}")
    return scores
