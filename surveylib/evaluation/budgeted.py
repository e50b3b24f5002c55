"""Training under a budget: the engine's epochs until so many network-call equivalents are spent.

A run that was killed goes on from its last checkpoint; one that has spent its budget is only loaded. The run stops
after the epoch in which the budget is reached, so that it may spend up to one epoch more; the row says what it spent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from surveylib.alignment.checkpoints import CheckpointFolder
from surveylib.alignment.engine import Alignment
from surveylib.alignment.logs import significant
from surveylib.alignment.processes import Processes
from surveylib.alignment.run import Recipe, prepare
from surveylib.diffusion.pipelines import PipelineModel
from surveylib.runs.checkpoint import write_atomically
from surveylib.runs.ledger import Ledger
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.registry import technique_class

HISTORY = "history.json"
KEPT = ("reward", "loss", "grad_norm")
NO_END = 10**9


@dataclass(frozen=True, eq=False)
class Trained:
    """A model trained to its budget.

    history: one dict an epoch, "equivalents", "seconds", and what the technique reported of `KEPT`.
    """

    model: PipelineModel
    ledger: Ledger
    epochs: int
    updates: int
    history: list[dict[str, float]]


def train(recipe: Recipe, budget: int, folder: Path, say: Callable[[str], None] = lambda text: None) -> Trained:
    """Trains, or goes on, or loads what has been trained.

    Args:
        recipe: technique, scale, seed and changed settings; the number of epochs is the budget's.
        budget: network-call equivalents. folder: of checkpoints. say: gets a line an epoch.

    Raises:
        TechniqueError: settings that do not fit, or epochs that spend nothing. ValueError: the folder is in use, or
        holds another run.
    """
    ready, processes = prepare(recipe), Processes()
    training = replace(ready.preset.training, epochs=NO_END)
    technique = technique_class(recipe.technique)(ready.preset.config)
    run = Alignment(ready.model, technique, ready.signal, ready.prompts, training, recipe.seed, processes,
                    checkpoint=recipe.checkpoint)
    with CheckpointFolder(folder, run.identity, processes) as checkpoints:
        state = checkpoints.load()
        if state is not None:
            run.load_state_dict(state)
        history = read_history(folder)[: run.epoch]
        while run.ledger.equivalents < budget:
            before = run.ledger.equivalents
            progress = run.advance()
            if progress.ledger.equivalents == before:
                raise TechniqueError(f"an epoch of {recipe.technique} called the network not once: it would never "
                                     f"spend its budget of {budget} calls")
            history.append({"equivalents": progress.ledger.equivalents, "seconds": round(progress.ledger.wall, 2),
                            **{k: significant(progress.metrics[k]) for k in KEPT if k in progress.metrics}})
            if processes.main:
                write_atomically(folder / HISTORY, json.dumps(history))
            checkpoints.save(run.state_dict())
            say(f"{recipe.technique}: epoch {progress.epoch}, {progress.ledger.equivalents} of {budget} calls")
    return Trained(ready.model, run.ledger.copy(), run.epoch, run.updates, history)


def read_history(folder: Path) -> list[dict[str, float]]:
    """The epochs written so far; they may be one ahead of the checkpoint."""
    file = folder / HISTORY
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
