"""One dial, four sizes: `SURVEYLIB_SCALE` or the argument `scale=`, which wins over it."""

from __future__ import annotations

import os

SCALES = {
    "toy": "the shipped models, CPU, minutes",
    "single": "one 24 GB GPU (40 GB for chapter 2 of Fundamentals), SD1.5/SDXL/SD3.5-medium with LoRA",
    "full": "the paper's setting",
    "rehearsal": "the code path of `single` on tiny random-weight pipelines, a few steps",
}


def current_scale(scale: str | None = None) -> str:
    """The scale in force: the argument, else the environment variable SURVEYLIB_SCALE, else "toy".

    Raises:
        ValueError: unknown scale; the message lists the known ones.
    """
    asked = scale or os.environ.get("SURVEYLIB_SCALE") or "toy"
    if asked not in SCALES:
        known = "; ".join(f"{name} ({what})" for name, what in SCALES.items())
        raise ValueError(f"unknown scale {asked!r}; known: {known}")
    return asked
