"""How fast the worlds are on this machine: the figures of the page "Run it" and of the model cards.

    python -m surveylib.worlds.speed

Each is the best of a few repetitions, since other programs only ever make it slower. The judge is timed on one thread,
the rest on torch's own number (OMP_NUM_THREADS).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.zoo import load_model, shipped_models
from surveylib.worlds.gaussian.mixture import two_peaks
from surveylib.worlds.gaussian.models import learned_model
from surveylib.worlds.shapes.data import scene_for
from surveylib.worlds.shapes.judge import judge
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.suites import suite


def best_of(work: Callable[[], object], repetitions: int = 2) -> float:
    """Seconds of the fastest of several calls."""
    taken = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """torch computes on so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def judged_in_a_second(per_category: int = 40) -> float:
    """Pictures that the judge reads in a second on one thread: renderings of the held-out suite's prompts."""
    specs = [prompt.spec for prompt in suite("held-out", per_category)]
    rng = np.random.default_rng(0)
    pictures = render([scene_for(spec, rng) for spec in specs])
    with threads(1):
        return len(specs) / best_of(lambda: judge(pictures, specs), 3)


@torch.no_grad()
def seconds_for_64(model: DiffusionModel) -> float:
    """Wall time of 64 pictures at 20 steps with the model's own guidance, text and decoding included."""
    prompts = ["a red circle and a blue star"] * 64
    return best_of(lambda: model.decode(sample(model, prompts, steps=20, generator=torch.Generator().manual_seed(0))))


def main() -> None:
    """Prints the figures as they are measured."""
    print(f"{torch.get_num_threads()} threads of torch, {os.cpu_count()} cores")
    print(f"judge: {judged_in_a_second():.0f} pictures a second on one thread")
    learned = best_of(lambda: learned_model(two_peaks()), 1)
    print(f"Gaussian world: the small network learns two peaks in {learned:.1f} s")
    for name in shipped_models():
        print(f"{name}: 64 pictures of 20 steps in {seconds_for_64(load_model(name)):.1f} s")


if __name__ == "__main__":
    main()
