"""What a run will cost, from its settings alone: pictures, network calls that draw them, trained steps, updates.

A preset says what it costs; this is for presets that were changed, and for rehearsals. Calls of references, of value
functions and of the reward come on top of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from surveylib.techniques.contract import Preset, Technique

KINDS = ("pairs", "rankings", "binary")
DRAWN = {"d3po": 2}  # pictures a sample, where it is not one
NAMES = {"pairs": "pairs", "rankings": "rankings", "binary": "liked or disliked pictures"}


@dataclass(frozen=True)
class Expected:
    """Counts of a whole run.

    Attributes:
        samples: collected, and what they are in words. calls: of the network, to draw them; 0 for recorded data, and
            where the technique's settings name no steps.
        trained: (sample, step) items of all passes. updates: optimiser steps.
    """

    samples: int
    what: str
    calls: int
    trained: int
    updates: int

    def __str__(self) -> str:
        drawn = f" drawn with about {self.calls:,} network calls" if self.calls else ""
        return (f"{self.samples:,} {self.what}{drawn}, up to {self.trained:,} trained steps in {self.updates:,} "
                "updates")


def recorded_kind(technique: type[Technique]) -> str | None:
    """"pairs", "rankings" or "binary" where a technique learns from recorded feedback alone; None where it draws."""
    if "reward" in technique.needs:
        return None
    return next((kind for kind in sorted(KINDS) if kind in technique.needs), None)


def expected(technique: type[Technique], preset: Preset, model: str | None = None) -> Expected:
    """The counts of a run.

    Args:
        technique: its class. preset: with the changed settings. model: another one than the preset's.
    """
    training, config = preset.training, preset.config
    samples = training.epochs * training.samples
    updates = training.epochs * training.passes * training.updates
    kind = recorded_kind(technique)
    if kind is not None:
        return Expected(samples, NAMES[kind], 0, samples * training.passes, updates)
    trained = samples * training.passes * _trained_steps(config)
    if hasattr(config, "keep"):  # of each group, some are trained on
        trained = trained * min(config.keep, training.samples_per_prompt) // training.samples_per_prompt
    pictures = samples * DRAWN.get(technique.name, 1)
    if "gradient" in technique.needs and not hasattr(config, "trained"):  # drawn anew in each pass, in the loss
        pictures *= training.passes
    steps = config.last + 1 if hasattr(config, "first") else getattr(config, "steps", 0)  # a window ends the rollout
    calls = pictures * steps * _branches(model or preset.model, getattr(config, "guidance", None))
    return Expected(pictures, "pictures", calls, trained, updates)


def _trained_steps(config: Any) -> int:
    """Items of a sample, at most."""
    for name in ("trained", "window", "times"):
        if isinstance(found := getattr(config, name, None), int):
            return found
    on_paths = any(hasattr(config, name) for name in ("clip", "trained"))  # ratios or controls of each stored step
    return max(1, getattr(config, "steps", 2) - 1) if on_paths else 1  # the last step has no noise


def _branches(model: str, guidance: float | None) -> int:
    """Network calls a step: two under classifier-free guidance. FLUX takes the scale as an input; turbo models go
    without."""
    if "flux" in model or guidance == 1 or (guidance is None and "turbo" in model):
        return 1
    return 2
