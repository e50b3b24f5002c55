"""The command line: `surveylib list`, `models`, `sample`, `judge`.

Imports of heavy packages happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="The executable survey of diffusion alignment.", no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console()

ModelName = Annotated[str, typer.Argument(help="A shipped model, a full-scale name, or a folder in diffusers' format.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Steps = Annotated[int | None, typer.Option(help="Sampling steps; default: the model's own.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance; default: the model's own.")]
Seed = Annotated[int, typer.Option(help="Seed of the pictures.")]


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)


@app.command("list")
def list_cards(
    as_json: AsJson = False,
    status: Annotated[str | None, typer.Option(help="Only cards of this status: runs or planned.")] = None,
) -> None:
    """The survey's topics and techniques: what runs and what is planned."""
    from surveylib.catalog import as_records, cards

    records = as_records(cards(status=status))
    if as_json:
        typer.echo(json.dumps(records, indent=1))
        return
    columns = ["name", "family", "section", "status"]
    _table("The survey", columns, [[str(record[c]) for c in columns] for record in records])


@app.command()
def models(as_json: AsJson = False) -> None:
    """The models that can be loaded by name."""
    from surveylib.diffusion.zoo import list_models

    rows = list_models()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    columns = ["name", "kind", "ready", "hub_id", "gigabytes"]
    _table("Models", columns, [["" if row[c] is None else str(row[c]) for c in columns] for row in rows])


@app.command()
def sample(
    model: ModelName,
    prompt: Annotated[list[str], typer.Option("--prompt", help="What to draw; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Where the PNG goes, one row a prompt.")] = Path("sample.png"),
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
) -> None:
    """Draw pictures and write them as one PNG."""
    import torch
    from PIL import Image

    from surveylib.diffusion.rollout import sample as draw
    from surveylib.diffusion.zoo import load_model

    loaded = load_model(model)
    generator = torch.Generator().manual_seed(seed)
    condition = loaded.encode([text for text in prompt for _ in range(count)])
    with torch.no_grad():
        steps = loaded.default_steps if steps is None else steps
        latents = draw(loaded, condition, steps=steps, guidance=guidance, generator=generator)
        pictures = loaded.decode(latents, clamp=True).cpu()
    _, channels, height, width = pictures.shape
    grid = pictures.reshape(len(prompt), count, channels, height, width).permute(0, 3, 1, 4, 2)
    array = (grid.reshape(len(prompt) * height, count * width, channels) * 255).round().byte().numpy()
    Image.fromarray(array).save(out)
    console.print(f"{len(pictures)} pictures in {out}")


@app.command()
def judge(
    model: ModelName,
    suite: Annotated[str, typer.Option(help="train, held-out or generalisation.")] = "held-out",
    per_category: Annotated[int, typer.Option(min=1, help="Prompts a category.")] = 110,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    plain: Annotated[bool, typer.Option(help="Draw with diffusers' own pipeline call instead of ours.")] = False,
    rows: Annotated[Path | None, typer.Option(help="Also write one JSON line a picture here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a prompt suite of the Shapes world with a model, judge the pictures, print the table by category."""
    from surveylib.diffusion.zoo import load_model
    from surveylib.worlds.shapes import suites

    loaded = load_model(model)
    prompts = suites.suite(suite, per_category)
    painter = loaded.pipeline if plain else loaded
    scores = suites.score_model(painter, prompts, pictures, seed, steps, guidance, progress=not as_json)
    if rows is not None:
        suites.write_rows(scores.rows, rows)
    if as_json:
        table = {name: {"rate": r.rate, "se": r.standard_error, "n": r.n} for name, r in scores.table.items()}
        typer.echo(json.dumps({"model": model, "suite": suite, "quality": scores.quality, "table": table}, indent=1))
        return
    found = scores.table.items()
    lines = [[name, f"{100 * r.rate:.1f} %", f"{100 * r.standard_error:.1f}", str(r.n)] for name, r in found]
    _table(f"{model} on {suite}: pictures that pass the judge", ["category", "pass", "s.e.", "pictures"], lines)
    console.print(f"picture quality {scores.quality:.3f} (flawless renderings score about 1)")


def _is_users(error: Exception) -> bool:
    """Whether an error is one the user can mend (bad words, a model that is not there) and not a fault of ours."""
    if isinstance(error, (ValueError, TypeError)):
        return True
    from surveylib.diffusion.zoo import ModelUnavailable

    return isinstance(error, ModelUnavailable)


def main() -> None:
    """Entry point: errors a user can mend are printed in one line, without a traceback."""
    try:
        app()
    except Exception as error:
        if not _is_users(error):
            raise
        console.print("error:", str(error), markup=False)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
