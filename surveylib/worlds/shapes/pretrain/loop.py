"""The training loop all pre-training scripts share: seeded, resumable, a generator of steps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from surveylib.runs.checkpoint import load_checkpoint, save_checkpoint
from surveylib.runs.ema import EMA


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast.

    steps: optimiser steps in all. batch: examples a step. lr: peak learning rate, reached after `warmup` steps, then a
    half cosine down to zero. decay: weight decay. ema: decay of the weight average, 0 for none. clip: gradient norm.
    seed: of weights, data order and noise. every: steps between checkpoints.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 200
    decay: float = 0.01
    ema: float = 0.0
    clip: float = 1.0
    seed: int = 0
    every: int = 250


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a half cosine to zero at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def train(
    module: nn.Module,
    loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
    config: LoopConfig,
    folder: str | Path,
) -> Iterator[dict[str, float]]:
    """Train `module` and yield {"step", "loss", "seconds", ...} after each step.

    Args:
        module: what is trained; its weights are changed in place.
        loss: (step, generator) -> (scalar loss, metrics). Data and noise must depend on these two alone, so that a
            resumed run repeats an uninterrupted one.
        config: the schedule.
        folder: run folder; holds `checkpoint/` and `metrics.jsonl`. A checkpoint found there is resumed, a different
            configuration in it is refused.
    """
    folder = Path(folder)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.decay, fused=True)
    ema = EMA(module, config.ema) if config.ema else None
    start, seconds = 0, 0.0
    found = load_checkpoint(folder / "checkpoint")
    if found is not None:
        if found["config"] != asdict(config):
            raise ValueError(f"{folder} holds a run of another configuration, {found['config']}; choose another folder")
        module.load_state_dict(found["module"])
        optimiser.load_state_dict(found["optimiser"])
        if ema:
            ema.load_state_dict(found["ema"])
        start, seconds = found["step"], found["seconds"]
    device = parameters[0].device
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(start, config.steps):
        began = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        generator = torch.Generator(device=device).manual_seed(config.seed * 1_000_003 + step)
        value, metrics = loss(step, generator)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.clip)
        optimiser.step()
        if ema:
            ema.update()
        seconds += time.perf_counter() - began
        last = step + 1 == config.steps
        row = {"step": step + 1, "loss": value.item(), "norm": norm.item(), "seconds": round(seconds, 2), **metrics}
        if (step + 1) % config.every == 0 or last:
            state = {"config": asdict(config), "module": module.state_dict(), "optimiser": optimiser.state_dict()}
            state |= {"ema": ema.state_dict() if ema else None, "step": step + 1, "seconds": seconds}
            save_checkpoint(folder / "checkpoint", state)
        if (step + 1) % 50 == 0 or last:
            with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        yield row
    if ema:
        module.load_state_dict(module.state_dict() | ema.average)
