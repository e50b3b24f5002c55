"""Runs with a folder: a recipe that says everything, logs, checkpoints, and in the end an adapter that diffusers loads.

    for progress in run(Recipe("ddpo", signal="shapes-pickscore"), "runs/x"): ...
    for progress in resume("runs/x"): ...

======================  ==================================================================
file                    what it holds
======================  ==================================================================
``recipe.json``         technique, scale, model, signal, prompts, changed settings, seed
``prompts.txt``         a copy of the prompts file, where one was given; a resumed run reads this copy
``identity.json``       what a resumed run must share; written by the engine
``checkpoint/``         an epoch's end: weights, optimiser, averages, trackers, ledger
``reference-1/``        the weights before training, where all are trained
``metrics.jsonl``       one line an epoch; ``tensorboard/`` the same, where that package is installed
``pictures/``           sheets of an epoch's first pictures; where a technique brings none, of some training
                        prompts from fixed noise, after the epoch
``adapter/``            the LoRA weights at the end, in diffusers' format
``pipeline/``           instead of an adapter, where all weights were trained
``adapter_ema/`` ...    the running average of these weights, where the training keeps one (``ema``)
``done.json``           written last: expected and actual cost
======================  ==================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from surveylib.alignment.checkpoints import IDENTITY_FILE, OWN_NAMES, check_free
from surveylib.alignment.engine import Progress, align
from surveylib.alignment.expected import expected, recorded_kind
from surveylib.alignment.logs import METRICS_FILE, PICTURES, Log, read_rows, writes_events
from surveylib.alignment.memory import CHECKPOINT, FREE
from surveylib.alignment.preferences import OWN, check_preferences, load_preferences
from surveylib.alignment.processes import Processes
from surveylib.alignment.settings import reward_of_role, setting
from surveylib.alignment.sharding import gathered_network
from surveylib.diffusion.lora import lora_layers, save_lora
from surveylib.diffusion.pipelines import PipelineModel
from surveylib.diffusion.weights import is_sharded
from surveylib.diffusion.zoo import check_model, load_model
from surveylib.rewards.registry import check_reward, load_reward
from surveylib.runs.checkpoint import write_atomically
from surveylib.runs.scale import current_scale
from surveylib.techniques.checks import check_settings
from surveylib.techniques.contract import Preset, Sampler, Signal, TechniqueError, Training
from surveylib.techniques.registry import preset, technique_class

RECIPE_FILE, DONE_FILE, ADAPTER, PIPELINE, EMA = "recipe.json", "done.json", "adapter", "pipeline", "ema"
PROMPTS_FILE = "prompts.txt"
USED = re.compile(rf"{OWN_NAMES.pattern}|({ADAPTER}|{PIPELINE})(_{EMA})?|{PICTURES}|tensorboard|"
                  rf"{re.escape(METRICS_FILE)}|{re.escape(DONE_FILE)}|{re.escape(PROMPTS_FILE)}")  # names in its folder
SEEDS = range(-(2**63), 2**63)  # that a generator takes
FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """Everything that a run is made of; goes to JSON and back.

    Attributes:
        technique: name in the registry. scale: of its preset. seed: of the run.
        model, signal: names; None takes the preset's. The signal is a reward, "proxy", "gold" or "held-out" for the
            scale's, or preference data.
        prompts: path of a text file with one prompt a line; None takes the scale's training prompts.
        config, training: changed fields of the technique's and of the engine's settings. "checkpoint" in the latter:
            whether the network's blocks are recomputed in the backward pass, which saves memory and changes no result.
    """

    technique: str
    scale: str = "toy"
    model: str | None = None
    signal: str | None = None
    prompts: str | None = None
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def preset(self) -> Preset:
        """The preset with the changes. Its cost is what the preset says where nothing was changed, else computed.

        Raises:
            TechniqueError: a sampler, which has nothing to train, a field that does not exist, or a value that it does
            not take; a seed of more than 64 bits.
        """
        if self.seed not in SEEDS:
            raise TechniqueError(f"seed {self.seed} is too large: it lies between {SEEDS.start} and {SEEDS.stop - 1}")
        found = technique_class(self.technique)
        if issubclass(found, Sampler):
            raise TechniqueError(f"{self.technique} changes how a model is sampled and trains nothing: "
                                 f"use `surveylib sample --technique {self.technique}`")
        base = preset(self.technique, self.scale)
        for name, given, target in (("config", self.config, base.config), ("training", self.training, base.training)):
            known = {f.name for f in fields(target)} | ({CHECKPOINT} if name == "training" else set())
            for key in given:
                if key not in known:
                    raise TechniqueError(f"{self.technique} has no {name} field {key!r}; there are "
                                         f"{', '.join(sorted(known))}")
        training = check_training(self.training, f"{self.technique}: training")
        check_settings(type(base.config), self.config, f"{self.technique}: config")
        changed = base.override(_tuples(self.config), **_tuples(training))
        as_is = changed == base and self.model is None and self.signal is None
        if as_is and current_scale(self.scale) != "rehearsal" and not base.cost.startswith("not measured"):
            return changed
        return replace(changed, cost=str(expected(found, changed, self.model)))

    @property
    def checkpoint(self) -> bool:
        """Whether the network's blocks are recomputed in the backward pass."""
        return self.training.get(CHECKPOINT, False)


def check_training(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Changed fields of `Training`, checked: `values` without "checkpoint", which is the engine's.

    Raises:
        TechniqueError: a value of another type, or outside its range; `what` names it in the message.
    """
    if not isinstance(value := values.get(CHECKPOINT, False), bool):
        raise TechniqueError(f"{what} {CHECKPOINT} = {value!r}; allowed: True or False")
    own = {key: value for key, value in values.items() if key != CHECKPOINT}
    check_settings(Training, own, what)
    return own


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A recipe with everything loaded."""

    recipe: Recipe
    preset: Preset
    model: PipelineModel
    signal: Signal
    prompts: list[str]


def prepare(recipe: Recipe, processes: Processes | None = None) -> Prepared:
    """Loads prompts, model and signal of a recipe; what can be told without a model is checked before one is loaded.

    Raises:
        ValueError: a prompts file that cannot be used, an unknown name, settings that do not fit.
        FileNotFoundError: data or weights that are not there; says what to download.
    """
    chosen = recipe.preset()
    tiny = rehearsed(chosen) if current_scale(recipe.scale) == "rehearsal" else chosen
    kind = recorded_kind(technique_class(recipe.technique))
    name = reward_of_role(recipe.signal, recipe.scale) if recipe.signal else tiny.reward
    if kind is None:
        check_reward(name)
    else:
        check_preferences(name)
    if kind is not None and recipe.prompts is not None and not (recipe.signal or chosen.reward).startswith(OWN):
        raise TechniqueError(f"{recipe.technique} learns from the recorded data {name!r} and draws nothing for prompts "
                             f"of yours: leave --prompts out, or have pictures of them answered, --reward {OWN}REWARD")
    place = setting(recipe.scale)
    prompts = place.train_prompts if recipe.prompts is None else read_prompts(recipe.prompts)
    device = processes.device if processes is not None and processes.count > 1 else None
    drawn = recipe.model or tiny.model
    check_model(drawn, device)
    reward = load_reward(name) if kind is None else None  # before the model: its weights may be missing
    model = load_model(drawn, device)
    if recipe.prompts is not None:
        model.warn_of_words(prompts)
    signal = load_preferences(name, kind, model, prompts=prompts) if reward is None else reward.to(model.device)
    return Prepared(recipe, chosen, model, signal, prompts)


def rehearsed(chosen: Preset) -> Preset:
    """The tiny model of the same class as a full-scale one, and a tiny reward."""
    tiny = {"sd1.5": "tiny-sd", "sdxl": "tiny-sdxl", "sd-turbo": "tiny-sd-turbo", "sdxl-turbo": "tiny-sdxl-turbo",
            "sd3.5-medium": "tiny-sd3", "flux.1-dev": "tiny-flux", "flux.1-schnell": "tiny-flux-schnell"}
    known = chosen.reward if chosen.reward.startswith("tiny-") else f"tiny-{chosen.reward}"
    return Preset(chosen.config, chosen.training, tiny.get(chosen.model, chosen.model), known, chosen.source,
                  chosen.cost)


def run(
    recipe: Recipe, out: str | Path, *, pictures_every: int = 5, tensorboard: bool | None = None,
    checkpoint_seconds: float | None = None,
) -> Iterator[Progress]:
    """Starts a run in `out`, or goes on with the same recipe there: checks and loads, then yields once an epoch.

    "micro_batch", "sample_batch" and "checkpoint" may differ from the run's that is gone on with: the update is the
    same, up to the rounding of sums in another order. After the first epoch the recipe there names the new values.

    Args:
        recipe, out: what to run, and its folder. pictures_every: epochs between sheets of pictures, 0 for none.
        tensorboard: also write TensorBoard's event files; None: where the package is installed.
        checkpoint_seconds: between two checkpoints at least, 0 for one after every epoch; None: by the size of what is
            trained, see `align`.

    Raises:
        AlignmentError: event files are asked for and TensorBoard is not installed; DeepSpeed, or FSDP
        in a way that is not supported.
        ValueError: `out` holds a run of another recipe, or is in use, or holds files of no run under names that a run
        uses. TechniqueError: settings that do not fit.
    """
    writes_events(tensorboard)
    if not str(out):
        raise ValueError("a run needs a folder: --out is empty")
    out, processes = Path(out), Processes()
    check_folder(out, recipe.prompts is not None)
    kept, begun = out / PROMPTS_FILE, (out / RECIPE_FILE).exists()
    if begun:
        _check_same(read_recipe(out), _as_read(recipe), out)
    ready = prepare(replace(recipe, prompts=str(kept)) if begun and kept.exists() else recipe, processes)
    technique_class(recipe.technique)(ready.preset.config).check(ready.model, ready.signal, ready.preset.training)
    steps = _execute(ready, out, processes, pictures_every, tensorboard, checkpoint_seconds)
    if not processes.main:
        return steps
    if not begun:
        return _claimed(steps, ready, recipe, out)
    return steps if read_recipe(out) == _as_read(recipe) else _rewritten(steps, recipe, out)


def _rewritten(steps: Iterator[Progress], recipe: Recipe, out: Path) -> Iterator[Progress]:
    """The steps of a run gone on with under changed settings; after the first, its recipe has them."""
    try:
        for number, progress in enumerate(steps):
            if number == 0:
                write_atomically(out / RECIPE_FILE, _text(recipe))
            yield progress
    finally:
        steps.close()


def _claimed(steps: Iterator[Progress], ready: Prepared, recipe: Recipe, out: Path) -> Iterator[Progress]:
    """The steps of a new run, its folder taken before the first; given up again where the engine refuses it."""
    written = _claim(ready, recipe, out)
    try:
        yield from steps
    except BaseException:
        if not (out / IDENTITY_FILE).exists():  # refused after all: the folder is free for another try
            for file in written:
                file.unlink(missing_ok=True)
        raise


def check_folder(out: Path, prompts: bool = False) -> None:
    """Refuses, before anything is loaded, a place that cannot hold a run, files of something else where a run would
    begin, or a log that cannot be gone on with. prompts: the run brings prompts, which are compared with those there.

    Raises:
        ValueError: names the file.
    """
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"a run needs a folder, and {place} is a file: choose another place than {out}")
    if not os.access(place, os.W_OK):
        raise ValueError(f"nothing can be written to {place}: choose another place than {out}")
    if out.is_dir() and not any((out / name).exists() for name in (RECIPE_FILE, IDENTITY_FILE)):
        check_free(out, (path for path in out.iterdir() if USED.fullmatch(path.name)
                         and not (prompts and path.name == PROMPTS_FILE)))
    for number, row in enumerate(read_rows(out), 1):
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise ValueError(f"{out / METRICS_FILE} is damaged: line {number} names no epoch. Delete this line, or the "
                             "folder to start anew")


def _claim(ready: Prepared, recipe: Recipe, out: Path) -> list[Path]:
    """Writes what makes the folder this run's, and says which files that were."""
    file, kept, written = out / RECIPE_FILE, out / PROMPTS_FILE, []
    if recipe.prompts is not None:
        if not kept.exists():
            write_atomically(kept, "\n".join(ready.prompts) + "\n")
            written.append(kept)
        elif read_prompts(kept) != ready.prompts:
            raise ValueError(f"{kept} holds other prompts than {recipe.prompts}: choose another folder for the run")
    write_atomically(file, _text(recipe))
    return [*written, file]


def _text(recipe: Recipe) -> str:
    return json.dumps({"format": FORMAT, **asdict(recipe)}, indent=1) + "\n"


def _as_read(recipe: Recipe) -> Recipe:
    """The recipe after its way through JSON, where tuples are lists."""
    values = json.loads(_text(recipe))
    del values["format"]
    return Recipe(**values)


def _check_same(found: Recipe, asked: Recipe, out: Path) -> None:
    """Refuses to go on with another recipe in a run's folder, and names what differs; settings in `FREE` may."""
    def compared(recipe: Recipe, name: str) -> Any:
        value = getattr(recipe, name)
        return {k: v for k, v in value.items() if k not in FREE} if name in ("config", "training") else value

    if different := [f.name for f in fields(Recipe) if compared(found, f.name) != compared(asked, f.name)]:
        said = ", ".join(f"{n} is {compared(found, n)!r} there and {compared(asked, n)!r} here" for n in different)
        raise ValueError(f"{out} holds a run of another recipe: {said}. Choose another folder, or delete this one")


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a text file in UTF-8, one a line; empty lines are passed over.

    Raises:
        ValueError: no such file, a folder, another encoding, no prompt in it; names the file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts file {path}: {error}. It is a text file in UTF-8 with one prompt a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"prompts file {path} holds no prompt: write one a line")
    return prompts


def resume(
    out: str | Path, *, pictures_every: int = 5, tensorboard: bool | None = None,
    checkpoint_seconds: float | None = None,
) -> Iterator[Progress]:
    """Goes on with the run in `out` from its last checkpoint; a finished run yields nothing. Options: see `run`.

    Raises:
        FileNotFoundError: no run there. ValueError: a damaged recipe, or one of another version.
    """
    recipe = read_recipe(out)
    return run(recipe, out, pictures_every=pictures_every, tensorboard=tensorboard,
               checkpoint_seconds=checkpoint_seconds)


def read_recipe(out: str | Path) -> Recipe:
    """The recipe of a run folder.

    Raises:
        FileNotFoundError: there is none. ValueError: damaged, or of another version of the library.
    """
    file = Path(out) / RECIPE_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no run in {out}: {RECIPE_FILE} is missing. `surveylib align` starts one")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version = values.pop("format")
        if version != FORMAT:
            raise ValueError(f"it has format {version}, this version of surveylib reads {FORMAT}")
        found = Recipe(**values)
        check_settings(Recipe, values, "recipe:")
        return found
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error


def _execute(
    ready: Prepared, out: Path, processes: Processes, every: int, tensorboard: bool | None, seconds: float | None
) -> Iterator[Progress]:
    chosen, log = ready.preset, None
    technique = technique_class(ready.recipe.technique)(chosen.config)

    def write(progress: Progress) -> None:
        nonlocal log
        log = log or Log(out, progress.epoch - 1, every, tensorboard)
        log.write(progress)

    yield from align(ready.model, technique, ready.signal, ready.prompts, chosen.training, seed=ready.recipe.seed,
                     out=out, processes=processes, each=write if processes.main else None, pictures_every=every,
                     checkpoint_seconds=seconds, checkpoint=ready.recipe.checkpoint)
    if log is not None:
        log.close()
    finish(ready, out, processes.main)
    processes.wait()


def finish(ready: Prepared, out: Path, write: bool = True) -> None:
    """Writes the adapter (or the pipeline), its running average where the training keeps one, and, last, `done.json`
    with expected and actual cost. All processes call, since weights may be cut over them; one is to `write`."""
    name = ADAPTER if lora_layers(ready.model.network) else PIPELINE
    save(ready.model, out / name, write)
    if EMA in ready.model.snapshots:
        with ready.model.weights(EMA):
            save(ready.model, out / f"{name}_{EMA}", write)
    if write and (rows := read_rows(out)):
        row = rows[-1]
        done = {"expected": ready.preset.cost, "actual": row,
                "equivalents": row["network_calls"] + 2 * row["backward_passes"]}
        write_atomically(out / DONE_FILE, json.dumps(done, indent=1) + "\n")


def save(model: PipelineModel, folder: Path, write: bool = True) -> None:
    """The adapter, or, where all weights were trained, the pipeline; by all processes, of which one is to `write`."""
    if lora_layers(model.network):
        save_lora(model, folder, write)
        return
    sharded = any(is_sharded(p) for p in model.network.parameters())
    network = gathered_network(model.network, write) if sharded else model.network
    if write:
        setattr(model.pipeline, model.part, network)
        model.pipeline.save_pretrained(folder, safe_serialization=True)
        setattr(model.pipeline, model.part, model.network)
