"""`surveylib measure` and `surveylib report`, as plain functions for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from surveylib.evaluation.measure import WORK, measure
from surveylib.evaluation.protocol import BUDGETS, MOST_SETTINGS, Budget, Protocol
from surveylib.evaluation.report import COLUMNS, report
from surveylib.evaluation.rows import ROWS, stale_measurements
from surveylib.runs.scale import current_scale


def measure_command(
    techniques: Sequence[str] | None = None,
    seeds: int = 1,
    training_calls: int | None = None,
    calls_per_picture: int | None = None,
    settings: int = MOST_SETTINGS,
    scale: str | None = None,
    out: Path = ROWS,
    work: Path = WORK,
    console: Console | None = None,
) -> None:
    """Measure techniques side by side; a stopped measurement goes on where it was.

    Args:
        techniques: names; none stands for all. seeds: how many, counted from 0.
        training_calls, calls_per_picture: the budget in network-call equivalents; None takes the scale's.
        settings: tried for each technique. out: folder of rows. work: folder of checkpoints.
    """
    scale = current_scale(scale)
    given = {"training": training_calls, "calls_per_picture": calls_per_picture}
    budget = replace(BUDGETS[scale], **{name: value for name, value in given.items() if value is not None})
    _measured(list(techniques) if techniques else None, range(seeds), budget, scale, settings, out, work,
              console or Console())


def stale_command(
    techniques: Sequence[str] = (), settings: int = MOST_SETTINGS, out: Path = ROWS, work: Path = WORK,
    console: Console | None = None,
) -> None:
    """Measure again the techniques that have a row out of date: with all seeds that they have, and the rows' own
    budget, scale and protocol.

    Args:
        techniques: names to look at; none stands for all. settings, out, work: as in `measure_command`.

    Raises:
        FileNotFoundError: no row there.
    """
    console = console or Console()
    found = [plan for plan in stale_measurements(out) if not techniques or plan[0] in techniques]
    if not found:
        console.print("no row is out of date" + (f" of {', '.join(techniques)}" if techniques else ""))
    for technique, scale, budget, seeds, protocol in found:
        _measured([technique], seeds, budget, scale, settings, out, work, console, protocol)


def _measured(techniques: list[str] | None, seeds: Sequence[int], budget: Budget, scale: str, settings: int, out: Path,
              work: Path, console: Console, protocol: Protocol | None = None) -> None:
    rows = measure(techniques, seeds, budget, scale=scale, settings=settings, folder=out, work=work, protocol=protocol,
                   say=lambda line: console.print(line, style="dim", highlight=False))
    for row in rows:
        console.print(f"{row['technique']}-seed{row['seed']}-{row['setting']}: {summary(row)}", highlight=False)


def summary(row: dict) -> str:
    """One line about a row."""
    if "test" not in row:
        return f"proxy {row['validation']['proxy']['value']:.3f} on validation prompts"
    means = row["test"]["means"]
    parts = [f"{name} {means[name]['value']:.3f}" for name in ("proxy", "gold", "pass") if name in means]
    return "tested: " + ", ".join(parts)


IMPORTANT = ("technique", "gold", "gain over base", "proxy", "notes", "pass", "calls a picture", "training calls",
             "seeds")


def fitting(cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Numbers of the columns of a table that fit into `width` characters: the important ones first."""
    order = sorted(range(len(COLUMNS)), key=lambda n: (IMPORTANT + COLUMNS).index(COLUMNS[n]))
    needed = [max(len(COLUMNS[n]), *(len(line[n]) for line in cells)) + 3 for n in range(len(COLUMNS))]
    shown, used = [], 1
    for n in order:
        if not shown or used + needed[n] <= width:
            shown.append(n)
            used += needed[n]
    return sorted(shown)


def report_command(folder: Path = ROWS, as_json: bool = False, console: Console | None = None) -> None:
    """Print what the rows of a folder say together; out-of-date rows are marked."""
    console = console or Console()
    found = report(folder)
    if as_json:
        print(found.as_json())
        return
    cells = found.table()
    shown = fitting(cells, console.width)
    table = Table(title="Techniques side by side: means with 95 % intervals clustered by prompt")
    for n in shown:
        table.add_column(COLUMNS[n], no_wrap=True)
    for line in cells:
        table.add_row(*(line[n] for n in shown))
    console.print(table)
    if len(shown) < len(COLUMNS):
        hidden = [name for n, name in enumerate(COLUMNS) if n not in shown]
        console.print(f"no room for {', '.join(hidden)}: --json prints them", style="dim", highlight=False)
    for place in found.arena:
        console.print(f"{place.rank}. {place.name}: {place.rating:.0f} [{place.low:.0f}, {place.high:.0f}]",
                      highlight=False)
    for name, reasons in found.stale.items():
        console.print(f"out of date: {name} ({', '.join(reasons)})", highlight=False)
