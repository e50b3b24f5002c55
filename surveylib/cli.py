"""The command line: `surveylib list`, `models`, `techniques`, `align`, `resume`, `sample`, `judge`, `measure` ...

Imports of heavy packages happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

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
Seed = Annotated[int, typer.Option(min=-(2**63), max=2**63 - 1, help="Seed of the pictures.")]


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title)
    for number, column in enumerate(columns):  # a name stays in one piece, to be copied
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@app.command("list")
def list_cards(
    as_json: AsJson = False,
    status: Annotated[str | None, typer.Option(help="Only cards of this status: runs, explained or planned.")] = None,
) -> None:
    """The survey's topics and techniques: what runs, what is explained, what is planned."""
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
    model: Annotated[str | None, typer.Argument(help="A shipped model, a full-scale name, or a folder in diffusers' "
                                                     "format.")] = None,
    named: Annotated[str | None, typer.Option("--model", help="The same, as an option.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be given several times.")] = None,
    out: Annotated[Path, typer.Option(help="Where the PNG goes, one row a prompt.")] = Path("sample.png"),
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    adapter: Annotated[Path | None, typer.Option(help="Run folder, or folder of LoRA weights, to draw with.")] = None,
    strength: Annotated[float, typer.Option(min=0, help="Strength of the adapter: 0 is the base model.")] = 1.0,
    technique: Annotated[str | None, typer.Option(help="Search or steer with this sampler, such as best_of_n.")] = None,
    reward: Annotated[str | None, typer.Option(help="Reward of the sampler; default: its preset's.")] = None,
    scale: Annotated[str | None, typer.Option(help="Preset of the sampler: toy, rehearsal, single or full.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at a time, for little memory; default: all, and "
                                                          "the preset's with --technique.")] = None,
) -> None:
    """Draw pictures and write them as one PNG."""
    from surveylib.diffusion.lora import load_lora, lora_strength
    from surveylib.diffusion.zoo import load_model

    if (model is None) == (named is None):
        raise ValueError("name one model: `surveylib sample shapes-sd ...` or `--model shapes-sd`")
    model = model or named
    if not prompt:
        raise ValueError("nothing to draw: give a --prompt, such as \"a red circle and a blue star\"")
    _check_sample(technique, reward, scale, adapter, strength, out)
    weights = None if adapter is None else _weights_of(adapter)
    loaded = load_model(model)
    loaded.warn_of_words(prompt)
    if weights is not None:
        load_lora(loaded, weights)
    texts = [text for text in prompt for _ in range(count)]
    with lora_strength(loaded, strength) if adapter is not None else nullcontext():
        if technique is not None:  # some follow a gradient
            pictures = _steered(loaded, texts, technique, reward, scale, steps, guidance, batch, seed)
        else:
            pictures = _plain(loaded, texts, steps, guidance, batch or len(texts), seed)
    if not pictures.isfinite().all():
        raise ValueError("the pictures are not finite" + (f": --strength {strength:g} is too large" * (strength > 1)))
    _write_grid(pictures, len(prompt), out)
    console.print(f"{len(pictures)} pictures in {out}")


def _check_sample(technique: str | None, reward: str | None, scale: str | None, adapter: Path | None, strength: float,
                  out: Path) -> None:
    """Refuses, before a model is loaded, options that would do nothing, names that do not exist and a place that cannot
    be written."""
    if technique is None and (given := [f"--{n}" for n, v in (("reward", reward), ("scale", scale)) if v is not None]):
        raise ValueError(f"{' and '.join(given)} belong to a sampler: name one with --technique, such as best_of_n")
    if adapter is None and strength != 1.0:
        raise ValueError(f"--strength {strength:g} is that of an adapter: name one with --adapter")
    if not math.isfinite(strength):
        raise ValueError(f"--strength {strength:g} must be a finite number, such as 1")
    if technique is not None:
        _sampler(technique, reward, scale)
    if out.suffix.lower() != ".png" or out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: give a file ending in .png in a folder that exists")


def _sampler(name: str, reward: str | None, scale: str | None) -> tuple[Any, Any, str]:
    """(class, preset, name of the reward) of a test-time technique."""
    from surveylib.alignment.run import rehearsed
    from surveylib.alignment.settings import reward_of_role
    from surveylib.rewards.registry import check_reward
    from surveylib.runs.scale import current_scale
    from surveylib.techniques.contract import Sampler, TechniqueError
    from surveylib.techniques.registry import preset, technique_class

    found = technique_class(name)
    if not issubclass(found, Sampler):
        raise TechniqueError(f"{name} trains a model: `surveylib align {name}`, then `sample --adapter`")
    chosen = preset(name, scale)
    own = rehearsed(chosen).reward if current_scale(scale) == "rehearsal" else chosen.reward
    taken = own if reward is None else reward_of_role(reward, scale)
    check_reward(taken)
    return found, chosen, taken


def _weights_of(adapter: Path) -> Path:
    """The folder of LoRA weights that a run folder, or the folder itself, holds."""
    if not adapter.exists():
        raise FileNotFoundError(f"--adapter {adapter}: there is no such folder or file")
    if (adapter / "adapter").is_dir():
        return adapter / "adapter"
    if (adapter / "pipeline").is_dir():
        raise ValueError(f"{adapter} trained all weights and has no adapter; they are a model of their own: surveylib "
                         f"sample {adapter / 'pipeline'}")
    if (adapter / "recipe.json").is_file():
        raise ValueError(f"{adapter} is not finished, so it has no adapter yet: surveylib resume {adapter}")
    return adapter


@contextmanager
def _told_of_memory(batch: int) -> Iterator[None]:
    """Memory that runs out while pictures are drawn is told with what saves it."""
    from surveylib.alignment.engine import AlignmentError
    from surveylib.runs.memory import out_of_memory

    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        way = "take a smaller model" if batch == 1 else "give a smaller --batch"
        raise AlignmentError(f"out of memory with {batch} picture{'s' * (batch > 1)} at a time: {way}") from error


def _plain(model: Any, texts: list[str], steps: int | None, guidance: float | None, batch: int, seed: int) -> Any:
    """Pictures by the model's deterministic sampler, `batch` at a time; the noise does not depend on that."""
    import torch

    from surveylib.diffusion.rollout import sample as draw

    steps = model.default_steps if steps is None else steps
    noise = model.initial_noise(len(texts), torch.Generator().manual_seed(seed))
    with torch.no_grad(), _told_of_memory(min(batch, len(texts))):
        return torch.cat([
            model.decode(draw(model, texts[i : i + batch], steps=steps, guidance=guidance, x=noise[i : i + batch]),
                         clamp=True).cpu() for i in range(0, len(texts), batch)])


def _steered(model: Any, texts: list[str], name: str, reward: str | None, scale: str | None, steps: int | None,
             guidance: float | None, batch: int | None, seed: int) -> Any:
    """Pictures of a test-time technique with its preset; says what they cost."""
    from dataclasses import replace

    from surveylib.rewards.registry import load_reward

    found, chosen, taken = _sampler(name, reward, scale)
    asked = {"steps": steps, "guidance": guidance, "batch": batch}
    changed = {key: value for key, value in asked.items() if value is not None}
    with_reward = load_reward(taken, model.device)
    config = replace(chosen.config, **changed)
    with _told_of_memory(config.batch):
        drawn = found(config).sample(model, texts, with_reward, seed=seed)
    ledger = drawn.ledger
    console.print(f"{name}: {ledger.network_calls / len(texts):.0f} network calls and "
                  f"{ledger.reward_calls / len(texts):.0f} reward calls a picture; "
                  f"mean reward {drawn.rewards.mean():.3g}")
    return drawn.images.detach().clamp(0, 1).cpu()


def _write_grid(pictures: Any, rows: int, out: Path) -> None:
    """Pictures (rows x columns, 3, H, W) in [0, 1] as one PNG."""
    from PIL import Image

    _, channels, height, width = pictures.shape
    grid = pictures.reshape(rows, -1, channels, height, width).permute(0, 3, 1, 4, 2)
    array = (grid.reshape(rows * height, -1, channels) * 255).round().byte().numpy()
    Image.fromarray(array).save(out)


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
    from surveylib.worlds.shapes.scenes import CANVAS

    prompts = suites.suite(suite, per_category)
    if rows is not None and (rows.is_dir() or not rows.absolute().parent.is_dir()):
        raise ValueError(f"--rows {rows}: give a file in a folder that exists")
    loaded = load_model(model)
    if tuple(loaded.resolution) != (CANVAS, CANVAS):
        raise ValueError(f"{model} draws pictures of {' x '.join(map(str, loaded.resolution))} pixels and the judge "
                         f"reads {CANVAS} x {CANVAS}: take a model of the Shapes world, such as shapes-sd")
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


Sets = Annotated[list[str] | None, typer.Option("--set", help="A changed setting, name=value; may be repeated. "
                                                "Settings of the technique or of the training.")]
Events = Annotated[bool | None, typer.Option("--tensorboard/--no-tensorboard",
                                             help="TensorBoard's files; default: where it is installed.")]
Every = Annotated[int, typer.Option(min=0, help="Epochs between sheets of pictures; 0 for none.")]
Apart = Annotated[float | None, typer.Option(min=0, help="Seconds between checkpoints at least, 0 for one after every "
                                                         "epoch; default: 0, for large weights 300.")]


@app.command()
def align(
    technique: Annotated[str, typer.Argument(help="Name of a technique; `surveylib techniques` lists them.")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Run folder.")],
    model: Annotated[str | None, typer.Option(help="Default: the preset's.")] = None,
    reward: Annotated[str | None, typer.Option(help="Reward, or proxy, gold, held-out for the scale's, or preference "
                                                    "data; default: the preset's.")] = None,
    scale: Annotated[str | None, typer.Option(help="toy, rehearsal, single or full.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line.")] = None,
    seed: Seed = 0,
    sets: Sets = None,
    pictures_every: Every = 5,
    tensorboard: Events = None,
    checkpoint_seconds: Apart = None,
) -> None:
    """Align a model: `surveylib align ddpo --out runs/x`. The same call, or `resume`, goes on with a stopped run."""
    from surveylib.alignment.run import Recipe, run
    from surveylib.alignment.show import parse_settings, show
    from surveylib.runs.scale import current_scale

    config, training = parse_settings(technique, sets or [])
    recipe = Recipe(technique, current_scale(scale), model, reward, None if prompts is None else str(prompts), seed,
                    config, training)
    epochs = run(recipe, out, pictures_every=pictures_every, tensorboard=tensorboard,
                 checkpoint_seconds=checkpoint_seconds)
    show(epochs, recipe, Path(out), console, tensorboard)


@app.command()
def resume(
    out: Annotated[Path, typer.Argument(help="Run folder.")], pictures_every: Every = 5, tensorboard: Events = None,
    checkpoint_seconds: Apart = None,
) -> None:
    """Go on with a stopped run from its last checkpoint."""
    from surveylib.alignment.run import read_recipe
    from surveylib.alignment.run import resume as go_on
    from surveylib.alignment.show import show

    steps = go_on(out, pictures_every=pictures_every, tensorboard=tensorboard, checkpoint_seconds=checkpoint_seconds)
    show(steps, read_recipe(out), out, console, tensorboard)


@app.command()
def techniques(as_json: AsJson = False) -> None:
    """The techniques that run, with what they need and the presets they have."""
    from surveylib.techniques.registry import technique_class, technique_names

    rows = []
    for name in technique_names():
        found = technique_class(name)
        rows.append({"name": name, "family": found.__module__.split(".")[2], "needs": list(found.needs),
                     "schedules": list(found.families), "presets": list(found.PRESETS)})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    columns = ["name", "family", "needs", "schedules", "presets"]
    _table("Techniques", columns, [[v if isinstance(v := row[c], str) else ", ".join(v) for c in columns]
                                   for row in rows])


@app.command()
def measure(
    techniques: Annotated[list[str] | None, typer.Option("--technique", "--techniques", help="Default: all; may be "
                                                         "repeated, or several with commas.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many, counted from 0; default: 1, and with --stale as "
                                                          "many as the rows have.")] = None,
    budget: Annotated[int | None, typer.Option(help="Training, in network-call equivalents.")] = None,
    calls: Annotated[int | None, typer.Option(help="Calls a picture of the test-time methods.")] = None,
    settings: Annotated[int, typer.Option(min=1, max=3, help="Settings tried for each technique.")] = 3,
    scale: Annotated[str | None, typer.Option(help="toy, rehearsal, single or full.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of rows; default: the book's.")] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only rows that are out of date, each with its own seed, "
                                                        "budget, scale and protocol.")] = False,
) -> None:
    """Measure techniques side by side under one budget; goes on where it was stopped."""
    from surveylib.evaluation.commands import measure_command, stale_command
    from surveylib.techniques.registry import technique_class

    folder = _measured(out)
    techniques = [name for given in techniques or () for name in given.split(",") if name]
    for name in techniques:
        technique_class(name)
    if stale:
        if given := [f"--{name}" for name, value in (("seeds", seeds), ("budget", budget), ("calls", calls),
                                                     ("scale", scale)) if value is not None]:
            raise ValueError(f"--stale repeats rows with what they were measured with: leave {', '.join(given)} out")
        stale_command(techniques, settings, folder, console=console)
        return
    measure_command(techniques, seeds or 1, budget, calls, settings, scale, folder, console=console)


@app.command("equal-cost")
def equal_cost(
    methods: Annotated[list[str] | None, typer.Option("--method", help="Default: all; may be repeated.")] = None,
    per_category: Annotated[int, typer.Option(min=1, help="Test prompts of each category.")] = 8,
    scale: Annotated[str | None, typer.Option(help="toy, rehearsal, single or full.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of curves; default: the book's.")] = None,
) -> None:
    """What test-time methods make of more and more network calls a picture; goes on where it was stopped."""
    from surveylib.evaluation import equal_cost as curves

    folder = _measured(out, curves.FOLDER.name)
    for curve in curves.equal_cost(methods, scale=scale, per_category=per_category, folder=folder,
                                   say=lambda line: console.print(line, style="dim", highlight=False)):
        last = curve["stops"][-1]
        console.print(f"{curve['method']}: proxy {last['means']['proxy']['value']:.3f} at {last['calls']:g} calls",
                      highlight=False)


@app.command()
def curve(
    technique: Annotated[str, typer.Argument(help="A fine-tuning technique.")] = "ddpo",
    budgets: Annotated[str, typer.Option(help="Looks at the run, in network-call equivalents, with commas.")]
    = "10000,20000,40000,70000,100000",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of curves; default: the book's.")] = None,
) -> None:
    """Proxy, gold and KL while a technique trains in the Shapes world; goes on where it was stopped."""
    from surveylib.evaluation import frontier
    from surveylib.evaluation.protocol import BUDGETS, PROTOCOLS
    from surveylib.evaluation.rows import Plan

    try:
        stops = [int(part) for part in budgets.split(",")]
    except ValueError:
        raise ValueError(f"--budgets {budgets!r} must be whole numbers with commas, as in 10000,20000") from None
    plan = Plan(technique, "preset", seed, "toy", BUDGETS["toy"], PROTOCOLS["toy"])
    frontier.stored_curve(plan, stops, _measured(out, frontier.CURVES.name),
                          say=lambda line: console.print(line, style="dim", highlight=False))


@app.command()
def report(
    folder: Annotated[Path | None, typer.Option(help="Folder of rows; default: the book's.")] = None,
    as_json: AsJson = False,
) -> None:
    """What the measured rows say together; rows out of date are marked."""
    from surveylib.evaluation.commands import report_command

    report_command(_measured(folder), as_json, console)


def _measured(given: Path | None, *below: str) -> Path:
    """A folder of rows: the given one, or the book's, wherever the command was started."""
    from surveylib.evaluation.rows import in_repository

    return in_repository("book/measurements").joinpath(*below) if given is None else given


@app.command()
def gaussian(
    family: Annotated[list[str] | None, typer.Option(help="Default: all; may be repeated.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="File for the rows and what they depend on.")] = None,
) -> None:
    """Techniques in the Gaussian world: how much of the way to the known optimum each goes, and at what cost."""
    from surveylib.evaluation.gaussian import table

    rows = table(family, seed)
    if out is not None:
        from surveylib.evaluation.gaussian.stored import stamped
        from surveylib.runs.checkpoint import write_atomically

        write_atomically(out, json.dumps(stamped(rows, seed), indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    lines = [[row["technique"], row["world"], f"{row['distance']:.4f}", f"{row['exact_error']:.4f}",
              f"{100 * row['closed']:.1f} %", f"{row['calls']:,}", row["note"]] for row in rows]
    _table("KL(p* || q), nats", ["technique", "world", "distance", "exact sample", "closed", "calls", "note"], lines)


def _is_users(error: Exception) -> bool:
    """Whether an error is one the user can mend (bad words, a model that is not there) and not a fault of ours."""
    if isinstance(error, (ValueError, OSError, ImportError)):
        return True
    from surveylib.alignment.engine import AlignmentError
    from surveylib.diffusion.zoo import ModelUnavailable

    return isinstance(error, (ModelUnavailable, AlignmentError))


def main() -> None:
    """Entry point: errors a user can mend are printed in one line, without a traceback. Modules in the present folder
    can be named, as with `python -m`."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        app()
    except Exception as error:
        if not _is_users(error):
            raise
        sys.last_value = error  # as after a traceback, for what runs at the end and must know of it (`leave_group`)
        Console(stderr=True).print("error:", str(error), markup=False, soft_wrap=True)  # a path stays in one piece
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
