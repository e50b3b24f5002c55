"""What a chapter needs at each scale: model, prompts, proxy, gold, held-out rewards. Chapters take it from here.

==========  ============  =====================================  ==============================  =====================
scale       model         proxy (optimised)                      gold (what is meant)            held out
==========  ============  =====================================  ==============================  =====================
toy         shapes-sd     shapes-pickscore                       the judge, soft and hard        shapes-imagereward
rehearsal   tiny-sd       PickScore, random weights              none                            HPS v2.1, random
single      sd1.5         PickScore                              none                            HPS v2.1
full        sd1.5         PickScore                              none                            HPS v2.1, ImageReward
==========  ============  =====================================  ==============================  =====================

``family="flow"`` takes the flow-matching model of the scale instead (shapes-sd3, tiny-sd3, sd3.5-medium).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from surveylib.diffusion.pipelines import PipelineModel
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import Reward
from surveylib.rewards.learned.store import shipped_rewards
from surveylib.rewards.registry import load_reward
from surveylib.runs.scale import current_scale
from surveylib.worlds.shapes.suites import SuitePrompt, suite

MODELS = {
    "vp": {"toy": "shapes-sd", "rehearsal": "tiny-sd", "single": "sd1.5", "full": "sd1.5"},
    "flow": {"toy": "shapes-sd3", "rehearsal": "tiny-sd3", "single": "sd3.5-medium", "full": "sd3.5-medium"},
}
PROXIES = {"toy": "shapes-pickscore", "rehearsal": "tiny-pickscore", "single": "pickscore", "full": "pickscore"}
HELD_OUT = {
    "toy": ("shapes-imagereward",), "rehearsal": ("tiny-hps_v2.1",), "single": ("hps_v2.1",),
    "full": ("hps_v2.1", "imagereward"),
}
GOLD = "faithfulness"  # of the Shapes world
# Simple animals and activities, as in DDPO's experiments (arXiv 2305.13301), in our own combination.
ANIMALS = ("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion",
           "frog", "chicken", "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla")
ACTIVITIES = ("washing the dishes", "riding a bike", "playing chess")


def reward_of_role(name: str, scale: str | None = None) -> str:
    """The reward that "proxy", "gold" or "held-out" stands for at a scale; any other name as it is.

    Raises:
        ValueError: "gold" beyond the Shapes world, where only people could say.
    """
    scale = current_scale(scale)
    if name == "gold":
        if scale != "toy":
            raise ValueError(f"there is no gold reward at scale {scale!r}: only people could say. Name a reward, or "
                             "'proxy'")
        return GOLD
    return {"proxy": PROXIES[scale], "held-out": HELD_OUT[scale][0]}.get(name, name)


@dataclass(frozen=True)
class Setting:
    """One scale's choice. Everything is loaded when it is first asked for.

    Attributes:
        scale: "toy", "rehearsal", "single" or "full". family: "vp" or "flow".
        model_name, proxy_name: names for `load_model` and `load_reward`.
    """

    scale: str
    family: str
    model_name: str
    proxy_name: str

    def load(self) -> PipelineModel:
        """The model, fresh: call it again for a second, unaligned copy."""
        return load_model(self.model_name, self.device)

    @property
    def device(self) -> torch.device:
        """The GPU where there is one, except for the small scales."""
        small = self.scale in ("toy", "rehearsal") or not torch.cuda.is_available()
        return torch.device("cpu" if small else "cuda")

    @cached_property
    def model(self) -> PipelineModel:
        """One copy of the model, kept."""
        return self.load()

    @cached_property
    def proxy(self) -> Reward:
        """The reward that is optimised."""
        return load_reward(self.proxy_name, self.device)

    @cached_property
    def gold(self) -> Reward | None:
        """What is meant: the judge's soft score. None where only people could say."""
        return load_reward(GOLD) if self.scale == "toy" else None

    @cached_property
    def held_out(self) -> dict[str, Reward]:
        """Rewards that nothing optimises, by name; a shipped one that is missing is left out."""
        names = HELD_OUT[self.scale]
        if self.scale == "toy":
            names = tuple(name for name in names if name in shipped_rewards())
        return {name: load_reward(name, self.device) for name in names}

    @property
    def train_prompts(self) -> list[str]:
        """Prompts to align on."""
        if self.scale == "toy":
            return [prompt.text for prompt in suite("train", per_category=40)]
        prompts = [f"a {animal} {activity}" for activity in ACTIVITIES for animal in ANIMALS]
        return prompts[:8] if self.scale == "rehearsal" else prompts

    @property
    def test_suite(self) -> list[SuitePrompt] | None:
        """Held-out prompts that the judge can read; None beyond the Shapes world."""
        return suite("held-out", per_category=20) if self.scale == "toy" else None

    @property
    def test_prompts(self) -> list[str]:
        """Prompts to look at, never trained on."""
        if self.scale == "toy":
            return [prompt.text for prompt in self.test_suite]
        unseen = ("hedgehog", "snail", "penguin", "otter")
        prompts = [f"a {animal} {activity}" for activity in ACTIVITIES for animal in unseen]
        return prompts[:4] if self.scale == "rehearsal" else prompts


def setting(scale: str | None = None, family: Literal["vp", "flow"] = "vp") -> Setting:
    """The choice for a scale (default: `surveylib.runs.scale.current_scale`).

    Raises:
        ValueError: an unknown scale or family.
    """
    scale = current_scale(scale)
    if family not in MODELS:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(MODELS)}")
    return Setting(scale, family, MODELS[family][scale], PROXIES[scale])


__all__ = ["Setting", "reward_of_role", "setting"]
