"""How a run is shown in a terminal: expected cost, a bar, a table of the last epochs, what it came to."""

from __future__ import annotations

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
from surveylib.alignment.memory import CHECKPOINT
from surveylib.alignment.processes import Processes
from surveylib.alignment.run import ADAPTER, PIPELINE, Recipe, check_training
from surveylib.rewards.registry import literal
from surveylib.techniques.checks import check_settings
from surveylib.techniques.contract import TechniqueError, Training
from surveylib.techniques.registry import technique_class

ROWS = 8
FORMATS = {"epoch": "d", "seconds": ".0f"}


def parse_settings(technique: str, sets: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """"name=value" texts as (fields of the technique's settings, fields of the training).

    Raises:
        TechniqueError: no "=", a field that neither has, or a value that it does not take; says what exists.
    """
    found = technique_class(technique)
    own = {f.name for f in fields(found.Config)}
    training = {f.name for f in fields(Training)} | {CHECKPOINT}
    config_values, training_values = {}, {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise TechniqueError(f"--set {text!r}: write name=value")
        if name not in own | training:
            raise TechniqueError(f"--set {name}: {technique} has no such setting. Technique: {', '.join(sorted(own))}. "
                                 f"Training: {', '.join(sorted(training))}")
        (config_values if name in own else training_values)[name] = literal(value)
    check_settings(found.Config, config_values, "--set")
    check_training(training_values, "--set")
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
    console.print(f"{recipe.technique} at {recipe.scale}: {training.epochs} epochs of {training.samples} samples. "
                  f"Expected: {chosen.cost}. Constants: {chosen.source}.")
    bar = Progress(TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("epochs", total=training.epochs)
    rows: list[dict[str, Any]] = []
    ledger, stored = None, 0
    try:
        with Live(bar, console=console, refresh_per_second=4) as live:
            for progress in steps:
                ledger, stored = progress.ledger, max(stored, progress.stored)
                rows = [*rows, {"epoch": progress.epoch, **progress.metrics, "seconds": ledger.wall}][-ROWS:]
                bar.update(task, completed=progress.epoch)
                live.update(Group(_table(rows), bar))
    finally:
        if not console.is_terminal:
            console.print()  # where nothing is drawn over, the bar's line is left open
    if ledger is None:
        console.print("nothing left to do: the run is finished")
    else:
        console.print(f"cost: {ledger.network_calls:,} network calls, {ledger.backward_passes:,} backward passes, "
                      f"{ledger.decodes:,} decodes, {ledger.reward_calls:,} reward calls, {ledger.wall:.0f} s "
                      f"(overhead {ledger.overhead:.3f}); an epoch's batch took {stored / 2**20:.1f} MiB")
    result = out / ADAPTER if (out / ADAPTER).is_dir() else out / PIPELINE
    if not writes_events(tensorboard) and tensorboard is None:
        console.print(NO_TENSORBOARD)
    console.print(f"weights: {result}   pictures: {out / 'pictures'}   log: {out / 'metrics.jsonl'}")


def _table(rows: list[dict[str, Any]]) -> Table:
    """One line an epoch, with the columns of the last."""
    table = Table()
    for name in rows[-1]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(format(row.get(name, float("nan")), FORMATS.get(name, ".4g")) for name in rows[-1]))
    return table
