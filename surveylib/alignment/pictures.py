"""Pictures for the log, drawn where a technique's batches bring none: the same prompts, the same noise each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.rollout import sample
from surveylib.runs.randomness import generators
from surveylib.techniques.paths import decode_all

COUNT = 8  # pictures of a sheet


def sheet_due(epoch: int, every: int) -> bool:
    """Whether a sheet of pictures belongs to this epoch, counted from 1: the first and each `every` after it; 0 for
    none."""
    return every > 0 and (epoch - 1) % every == 0


def shown_prompts(prompts: Sequence[str], count: int = COUNT) -> list[str]:
    """`count` of the prompts, evenly spread over the list; all of them where there are fewer."""
    count = min(count, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


@torch.no_grad()
def draw_pictures(model: DiffusionModel, prompts: Sequence[str], seed: int, batch: int) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] of N prompts on the CPU, with the present weights.

    They are drawn as the model is usually sampled: its own steps and guidance, the deterministic sampler. Picture i
    starts from noise that is a function of (seed, i); no other random state is read or moved. The network is in
    evaluation mode meanwhile.

    Args:
        seed: of the run. batch: pictures drawn at once.
    """
    noise = generators(range(len(prompts)), seed, "sheet")
    with evaluating(model.network):
        condition = model.encode(prompts)
        parts = [sample(model, condition[rows], steps=getattr(model, "default_steps", 20),
                        generator=[noise[i] for i in rows.tolist()])
                 for rows in torch.arange(len(prompts)).split(batch)]
        return decode_all(model, torch.cat(parts), batch).float().cpu()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
