"""The training loop all pre-training scripts share: seeded, resumable, a generator of steps."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surveylib.runs.checkpoint import load_checkpoint, save_checkpoint
from surveylib.runs.ema import EMA

SURROUNDINGS = ("out", "device", "bfloat16", "compile")  # where a run writes and computes, and how fast


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


def deciding(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a script that decide data and loss, as JSON values: all but `SURROUNDINGS`, paths as given."""
    return {name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items() if name not in SURROUNDINGS}


def check_same(found: dict[str, Any], config: LoopConfig, options: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with a checkpoint of another configuration. Options that an older checkpoint lacks pass.

    Raises:
        ValueError: names what differs, with both values.
    """
    now = options | asdict(config)
    names = [name for name in now if name in found or name in asdict(config)]
    names += [name for name in found if name not in now]
    differ = [f"{name} is {found.get(name)!r} there and {now.get(name)!r} here"
              for name in names if found.get(name) != now.get(name)]
    if differ:
        raise ValueError(f"{folder} holds a run of another configuration: {'; '.join(differ)}. Choose another folder, "
                         "or give the same options to go on with that run")


def train(
    module: nn.Module,
    loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
    config: LoopConfig,
    folder: str | Path,
    options: dict[str, Any] | None = None,
) -> Iterator[dict[str, float]]:
    """Train `module` in place and yield {"step", "loss", "seconds", ...} after each step.

    Args:
        loss: (step, generator) -> (scalar loss, metrics). Data and noise must depend on these two alone, so that a
            resumed run repeats an uninterrupted one.
        config: the schedule.
        folder: run folder; holds `checkpoint/` and `metrics.jsonl`. A checkpoint found there is resumed.
        options: JSON values of whatever else decides data and loss (`deciding`); kept in the checkpoint.

    Raises:
        ValueError: the checkpoint found is of another configuration or of other options.
    """
    folder, options = Path(folder), options or {}
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.decay, fused=True)
    ema = EMA(module, config.ema) if config.ema else None
    start, seconds = 0, 0.0
    found = load_checkpoint(folder / "checkpoint")
    if found is not None:
        check_same(found["config"], config, options, folder)
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
            state = {"config": options | asdict(config), "step": step + 1, "seconds": seconds}
            average = ema.state_dict() if ema else None
            state |= {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "ema": average}
            save_checkpoint(folder / "checkpoint", state)
        if (step + 1) % 50 == 0 or last:
            with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        yield row
    if ema:
        module.load_state_dict(module.state_dict() | ema.average)
