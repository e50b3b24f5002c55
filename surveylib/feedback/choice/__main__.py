"""``python -m surveylib.feedback.choice [--seed N]``: fitted strengths against truth, choix and evalica."""

from __future__ import annotations

import argparse

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from surveylib.feedback.choice.simulation import StrengthTable, bradley_terry_table, plackett_luce_table


def show(result: StrengthTable, seed: int, console: Console) -> None:
    """Print one table and a line of what it says."""
    fit = result.fit
    table = Table(title=f"{result.title}: {fit.n_records} records, seed {seed}, strengths in nats, mean zero",
                  box=SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    headings = ["item", "truth", "ours", f"{fit.level:.0%} interval",
                *(name.replace(".", "\n") for name in result.others)]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for i, item in enumerate(fit.items):
        table.add_row(item, f"{result.truth[i]:+.3f}", f"{fit.strengths[i]:+.3f}",
                      f"{fit.low[i]:+.2f} to {fit.high[i]:+.2f}",
                      *(f"{values[i]:+.3f}" for values in result.others.values()))
    console.print(table)
    console.print(f"Intervals: {fit.interval}. They hold the truth for {result.covered()} of {len(fit.items)} items.")
    for name, difference in result.largest_difference().items():
        console.print(f"Largest difference of {name} from ours: {difference:.1e}")
    for library in result.missing:
        console.print(f"{library} is not installed, so its column is missing: pip install {library}")


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments and print both tables."""
    parser = argparse.ArgumentParser(prog="python -m surveylib.feedback.choice", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation")
    seed = parser.parse_args(arguments).seed
    console = Console(width=max(Console().width, 96))  # narrower would cut the numbers
    for make in (bradley_terry_table, plackett_luce_table):
        show(make(seed), seed, console)


if __name__ == "__main__":
    main()
