"""What the engine adds to the work: wall time of rollouts and of updates over the time of the calls that do the work.

    python -m surveylib.alignment.overhead ddpo draft

The work is what the ledger counts: the bare network, backward passes, the decoder and the reward. All else is the
engine's: prompts and noise, the dynamics, the loss, clipping, the optimiser, the books. Both times are of the same
epochs, so other programs on the machine hardly change the ratio. On a GPU a call returns before it is done: set
CUDA_LAUNCH_BLOCKING=1 there, or the ratio is that of the launches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from surveylib.alignment.engine import Alignment
from surveylib.alignment.processes import Processes
from surveylib.alignment.run import Recipe, prepare
from surveylib.runs.ledger import Ledger
from surveylib.techniques.registry import technique_class


@dataclass
class Share:
    """Seconds of one kind of work. wall: in all; inside: in the calls that the ledger watched."""

    wall: float = 0.0
    inside: float = 0.0

    @property
    def ratio(self) -> float:
        """wall / inside; nan where no watched call was made."""
        return self.wall / self.inside if self.inside else float("nan")

    @contextmanager
    def measured(self, ledger: Ledger) -> Iterator[None]:
        """Adds the block."""
        before, began = sum(ledger.seconds.values()), time.perf_counter()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - began
            self.inside += sum(ledger.seconds.values()) - before

    def around(self, ledger: Ledger, function: Callable) -> Callable:
        """The function, its calls added."""

        def measured(*args: Any, **options: Any) -> Any:
            with self.measured(ledger):
                return function(*args, **options)

        return measured


def measure(recipe: Recipe, epochs: int = 2) -> dict[str, Share]:
    """"rollout" (`Technique.collect`) and "update" (all optimiser steps) of `epochs` epochs, after one to warm up.

    A technique that rolls out with gradient inside its loss, as DRaFT, has its rollouts in "update".

    Raises:
        TechniqueError: a sampler, or settings that do not fit.
    """
    ready = prepare(recipe)
    technique = technique_class(recipe.technique)(ready.preset.config)
    run = Alignment(ready.model, technique, ready.signal, ready.prompts, ready.preset.training, recipe.seed,
                    Processes(), recipe.checkpoint)
    run.advance()
    shares = {"rollout": Share(), "update": Share()}
    technique.collect = shares["rollout"].around(run.ledger, technique.collect)
    run.learn = shares["update"].around(run.ledger, run.learn)
    for _ in range(epochs):
        run.advance()
    return shares


def table(found: dict[str, dict[str, Share]]) -> str:
    """Lines of technique, kind of work, seconds in all, seconds inside, ratio."""
    lines = [f"{'technique':20}{'work':10}{'wall s':>9}{'inside s':>10}{'ratio':>8}"]
    for technique, shares in found.items():
        for work, share in shares.items():
            ratio = f"{share.ratio:.3f}" if share.inside else "-"
            lines.append(f"{technique:20}{work:10}{share.wall:9.2f}{share.inside:10.2f}{ratio:>8}")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("techniques", nargs="+", help="names as in `surveylib techniques`")
    parser.add_argument("--epochs", type=int, default=2, help="measured epochs, after one to warm up")
    parser.add_argument("--scale", help="toy, rehearsal, single or full; default: SURVEYLIB_SCALE, or toy")
    args = parser.parse_args()
    print(table({name: measure(Recipe(name, args.scale), args.epochs) for name in args.techniques}))


if __name__ == "__main__":
    main()
