"""Drawing for measurements: the base model, a trained one and a test-time method from the same prompts and noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from surveylib.diffusion.dynamics import DDIM, Dynamics, FlowSDE
from surveylib.diffusion.model import DiffusionModel
from surveylib.figures.sheet import GAP, sheet
from surveylib.rewards.contract import Reward
from surveylib.runs.ledger import Ledger
from surveylib.runs.scale import current_scale
from surveylib.techniques.contract import Sampler
from surveylib.techniques.paths import decode_all
from surveylib.techniques.test_time.base import base_latents, counted


def draw_plain(
    model: DiffusionModel, texts: Sequence[str], *, seed: int, steps: int | None = None, batch: int = 64
) -> tuple[Tensor, Ledger]:
    """Pictures (N, 3, H, W) of N texts with the deterministic sampler, and what they cost.

    Picture i starts from noise that is a function of (seed, i): any two models get the same, and so do the test-time
    methods for their first particle.
    """
    steps = getattr(model, "default_steps", 20) if steps is None else steps
    with counted(model, None) as ledger:
        latents = base_latents(model, texts, dynamics=DDIM(0.0), steps=steps, batch=batch, seed=seed)
        pictures = decode_all(model, latents, batch)
    return as_stored(pictures), ledger


def draw_steered(
    sampler: Sampler, model: DiffusionModel, texts: Sequence[str], reward: Reward, *, seed: int
) -> tuple[Tensor, Ledger]:
    """Pictures of N texts by a test-time method, and what they cost."""
    found = sampler.sample(model, list(texts), reward, seed=seed)
    return as_stored(found.images), found.ledger


def as_stored(pictures: Tensor) -> Tensor:
    """As a file with 8 bits a colour would give them back, on the CPU: what is judged is what can be stored."""
    return (pictures.detach().float().cpu().clamp(0, 1) * 255).round() / 255


def at_judges_size(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as the judge and the annotators of the Shapes world read them: 64 x 64, in [0, 1], float32,
    on the CPU. Other sizes are averaged.

    In a rehearsal the small networks have random weights, and the judge takes half a second for the thousand regions of
    a picture of noise: there other sizes are averaged to 4 x 4 cells first.
    """
    pictures = pictures.detach().float().cpu().clamp(0, 1)
    if pictures.shape[-2:] == (64, 64):
        return pictures
    if current_scale() == "rehearsal":
        pictures = F.interpolate(pictures, size=(4, 4), mode="area")
    return F.interpolate(pictures, size=(64, 64), mode="area")


def noisy_dynamics(model: DiffusionModel) -> Dynamics:
    """The stochastic sampler that the KL of paths is measured with: DDIM(1) for VP models, FlowSDE(0.7) for flow."""
    return DDIM(1.0) if model.schedule.family == "vp" else FlowSDE(0.7)


def write_sheet(path: Path, pictures: Tensor) -> None:
    """A small PNG of pictures in one row, written in one rename."""
    data = sheet(list(pictures), columns=len(pictures), size=pictures.shape[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + f".{os.getpid()}.tmp")
    beside.write_bytes(data)
    os.replace(beside, path)


def read_sheet(path: Path, count: int) -> list[np.ndarray]:
    """The `count` pictures of a file of `write_sheet`, (H, W, 3) of uint8 each."""
    with Image.open(path) as found:
        side, whole = found.height, np.asarray(found.convert("RGBA").convert("RGB"))
    return [whole[:, n * (side + GAP) : n * (side + GAP) + side] for n in range(count)]


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` numbers below `count`, evenly spread; all of them where there are fewer."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def expanded(items: Sequence[Any], times: int) -> list[Any]:
    """Each item `times` in a row."""
    return [item for item in items for _ in range(times)]
