"""Tiny models and rewards for the tests of the test-time methods."""

from functools import lru_cache

import torch

from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.points import PointReward
from surveylib.worlds.gaussian.mixture import two_peaks
from surveylib.worlds.gaussian.models import ExactModel

PROMPTS = ["a red circle", "a blue square"]
PIPELINES = ("tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux")


@lru_cache
def pipeline(name: str):
    return load_model(name)


def brightness() -> FunctionReward:
    return FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "brightness", True, False)


def constant(differentiable: bool = True) -> FunctionReward:
    return FunctionReward(lambda pictures, prompts: 0 * pictures.flatten(1).sum(1) + 0.5, "constant", differentiable,
                          False)


def blind() -> FunctionReward:
    """Brightness without a gradient."""
    return FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "blind", False, False)


def points(model=None):
    """The exact model of two peaks and a reward that pulls to the right."""
    return (model or ExactModel(two_peaks())), PointReward(lambda x: x[:, 0], "right")


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to the order of sums: how many samples share a batch changes the last digits, and guidance of 7.5 over
    random weights makes more of them."""
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3)
