"""How a run is shown in a terminal: expected cost, a bar, a table of the last epochs, what it came to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from surveylib.alignment import engine
from surveylib.alignment.logs import NO_TENSORBOARD, writes_events
from surveylib.alignment.processes import Processes
from surveylib.alignment.run import ADAPTER, PIPELINE, Recipe
from surveylib.runs.scale import current_scale
from surveylib.techniques.contract import TechniqueError, Training
from surveylib.techniques.registry import technique_class

ROWS = 8


def parse_settings(technique: str, sets: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """"name=value" texts as (fields of the technique's settings, fields of the training).

    Raises:
        TechniqueError: no "=", or a field that neither has; lists what exists.
    """
    own = {f.name for f in fields(technique_class(technique).Config)}
    training = {f.name for f in fields(Training)}
    config_values, training_values = {}, {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise TechniqueError(f"--set {text!r}: write name=value")
        if name not in own | training:
            raise TechniqueError(f"--set {name}: {technique} has no such setting. Technique: {', '.join(sorted(own))}. "
                                 f"Training: {', '.join(sorted(training))}")
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed = value
        (config_values if name in own else training_values)[name] = parsed
    return config_values, training_values


def show(
    steps: Iterator[engine.Progress], recipe: Recipe, out: Path, console: Console, tensorboard: bool | None = None
) -> None:
    """Consumes a run and shows it live; of several processes the first alone does. tensorboard: as the run was told;
    None says at the end where it is missing."""
    if not Processes().main:
        for _ in steps:
            pass
        return
    chosen = recipe.preset()
    training = chosen.training
    as_is = not recipe.config and not recipe.training and current_scale(recipe.scale) != "rehearsal"
    expected = chosen.cost if as_is else (f"{training.epochs * training.samples:,} samples and "
                                          f"{training.epochs * training.passes * training.updates:,} updates in all")
    console.print(f"{recipe.technique} at {recipe.scale}: {training.epochs} epochs of {training.samples} samples. "
                  f"Expected: {expected}. Constants: {chosen.source}.")
    bar = Progress(TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("epochs", total=chosen.training.epochs)
    kept: list[engine.Progress] = []
    with Live(bar, console=console, refresh_per_second=4) as live:
        for progress in steps:
            kept = [*kept, progress][-ROWS:]
            bar.update(task, completed=progress.epoch)
            live.update(Group(_table(kept), bar))
    if not console.is_terminal:
        console.print()  # where nothing is drawn over, the bar's line is left open
    if not kept:
        console.print("nothing left to do: the run is finished")
    else:
        ledger = kept[-1].ledger
        console.print(f"cost: {ledger.network_calls:,} network calls, {ledger.backward_passes:,} backward passes, "
                      f"{ledger.decodes:,} decodes, {ledger.reward_calls:,} reward calls, {ledger.wall:.0f} s "
                      f"(overhead {ledger.overhead:.3f})")
    result = out / ADAPTER if (out / ADAPTER).is_dir() else out / PIPELINE
    if not writes_events(tensorboard) and tensorboard is None:
        console.print(NO_TENSORBOARD)
    console.print(f"weights: {result}   pictures: {out / 'pictures'}   log: {out / 'metrics.jsonl'}")


def _table(kept: list[engine.Progress]) -> Table:
    names = list(kept[-1].metrics)
    table = Table()
    for name in ("epoch", *names, "seconds"):
        table.add_column(name, justify="right")
    for progress in kept:
        values = [f"{progress.metrics.get(name, float('nan')):.4g}" for name in names]
        table.add_row(str(progress.epoch), *values, f"{progress.ledger.wall:.0f}")
    return table
