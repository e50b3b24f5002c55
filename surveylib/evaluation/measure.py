"""Techniques side by side: the same budget, the same number of settings, the same prompts and noise, one row each.

    for row in measure(["ddpo", "best_of_n"], seeds=(0, 1)): ...

For each technique:

1. every setting is run with the first seed and validated: mean proxy on validation prompts of the training suite;
2. the setting with the highest proxy is taken (gold plays no part);
3. with each seed, the chosen setting is run and tested on held-out prompts, where gold is read once.

The base model has rows of its own: what everything is compared with, picture by picture from the same noise. A row is
written when it is validated and again when it is tested. Calling `measure` again takes rows that still hold as they
are, and goes on with training runs from their last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surveylib.alignment.settings import Setting, setting
from surveylib.diffusion.zoo import load_model
from surveylib.evaluation.budgeted import Trained, train
from surveylib.evaluation.drawing import draw_plain, draw_steered, expanded, noisy_dynamics, spread, write_sheet
from surveylib.evaluation.intervals import clustered_mean
from surveylib.evaluation.metrics.features import feature_extractor
from surveylib.evaluation.path_kl import path_kl
from surveylib.evaluation.protocol import BUDGETS, MOST_SETTINGS, PROTOCOLS, Budget, Prompt, Protocol, choices
from surveylib.evaluation.protocol import prompts_of as protocol_prompts
from surveylib.evaluation.rows import (
    BASE,
    PICTURES,
    ROWS,
    Plan,
    Row,
    differences,
    hardware,
    model_and_reward,
    read_row,
    versions,
    write_row,
)
from surveylib.evaluation.scoring import SUBSET, Judges, Looked, look, section_of
from surveylib.rewards.registry import check_reward, load_reward
from surveylib.runs.ledger import Ledger
from surveylib.runs.randomness import generators
from surveylib.runs.scale import current_scale
from surveylib.techniques.paths import score_all
from surveylib.techniques.registry import preset, technique_class, technique_names

WORK = Path("out/measure")
Say = Callable[[str], None]


def measure(
    techniques: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    budget: Budget | None = None,
    *,
    scale: str | None = None,
    protocol: Protocol | None = None,
    settings: int = MOST_SETTINGS,
    folder: str | Path = ROWS,
    work: str | Path = WORK,
    say: Say = lambda text: None,
) -> Iterator[Row]:
    """Measures techniques and yields each row once it stands, old ones that still hold included.

    Args:
        techniques: names; None takes all that have a preset at this scale.
        seeds: of training and of the noise of the pictures. Settings are chosen with the first.
        budget, protocol: default: those of the scale. settings: tried for each technique, 1 to 3.
        folder: of the rows and pictures. work: of checkpoints; it can be deleted when the rows are done.
        say: gets lines about what is going on.

    Raises:
        ValueError: no seeds, an unknown scale or proxy, a number of settings out of range.
        TechniqueError: unknown techniques.
    """
    scale = current_scale(scale)
    if not seeds or not 1 <= settings <= MOST_SETTINGS:
        raise ValueError(f"seeds={tuple(seeds)} must hold at least one, settings={settings} lie between 1 and "
                         f"{MOST_SETTINGS}")
    names = list(technique_names() if techniques is None else techniques)
    for name in names:
        technique_class(name)
    protocol = protocol or PROTOCOLS[scale]
    if protocol.proxy is not None:
        check_reward(protocol.proxy)
    bench = Bench(scale, budget or BUDGETS[scale], protocol, Path(folder), Path(work), say)
    for name in names:
        for seed in seeds:
            yield bench.base_row(bench.model_of(name), seed)
        yield from bench.technique_rows(name, seeds, settings)


@dataclass(eq=False)
class Bench:
    """What all rows of one call share: prompts, judges, the base model's pictures."""

    scale: str
    budget: Budget
    protocol: Protocol
    folder: Path
    work: Path
    say: Say
    _base: dict[tuple[str, int], Looked] = field(default_factory=dict)

    @cached_property
    def place(self) -> Setting:
        """Rewards of the scale."""
        return setting(self.scale)

    @cached_property
    def judges(self) -> Judges:
        """Proxy, held-out rewards, features. Where the protocol has another proxy than the scale, the scale's is held
        out."""
        named, held_out = self.protocol.proxy, dict(self.place.held_out)
        if named not in (None, self.place.proxy_name):
            held_out[self.place.proxy_name] = self.place.proxy
        proxy = self.place.proxy if named is None else load_reward(named, self.place.device)
        return Judges(proxy, held_out, feature_extractor(self.protocol.features), self.scale == "toy")

    def prompts(self, part: str) -> list[Prompt]:
        """One entry a picture: each test prompt `pictures` times, each validation prompt once."""
        times = self.protocol.pictures if part == "test" else 1
        return expanded(protocol_prompts(part, self.scale, self.protocol), times)

    def plan(self, technique: str, label: str, seed: int) -> Plan:
        """Of one row."""
        return Plan(technique, label, seed, self.scale, self.budget, self.protocol)

    def model_of(self, technique: str) -> str:
        """The model that a technique runs on at this scale."""
        return model_and_reward(preset(technique, self.scale), self.scale)[0]

    def kept(self, plan: Plan) -> Row | None:
        """The row on disk, where it is what the plan would give."""
        path = self.folder / f"{plan.name}.json"
        if not path.is_file():
            return None
        row = read_row(path)
        changed = differences(row, plan.identity())
        if changed:
            self.say(f"{plan.name}: measured again, {', '.join(changed)} changed")
        return None if changed else row

    # -- the base model ------------------------------------------------------------------------------------------------
    def base_row(self, model: str, seed: int) -> Row:
        """The row of the model as it is."""
        plan = self.plan(BASE, model, seed)
        row = self.kept(plan)
        if row is None:
            self.base(model, seed)
            row = read_row(self.folder / f"{plan.name}.json")
        return row

    def base(self, name: str, seed: int) -> Looked:
        """The base model's test pictures, looked at; drawn once a call. The first time a row is written too."""
        if (name, seed) not in self._base:
            plan = self.plan(BASE, name, seed)
            model = load_model(name, self.place.device)
            row, looked = self.tested(plan.identity(), lambda texts: self.plain(model, texts, seed), None)
            if self.kept(plan) is None:
                write_row(self.folder, row)
            self._base[name, seed] = looked
        return self._base[name, seed]

    def plain(self, model: Any, texts: Sequence[str], seed: int) -> tuple[Tensor, Ledger]:
        """Pictures of a model as it is now."""
        return draw_plain(model, texts, seed=seed, steps=self.protocol.steps, batch=self.protocol.batch)

    # -- a technique ---------------------------------------------------------------------------------------------------
    def technique_rows(self, name: str, seeds: Sequence[int], settings: int) -> Iterator[Row]:
        """Validates the settings, chooses, tests."""
        tried = []
        for label in list(choices(name, self.scale))[:settings]:
            tried.append(self.validated(self.plan(name, label, seeds[0])))
            yield tried[-1]
        best = max(tried, key=lambda row: row["validation"]["proxy"]["value"])["setting"]
        for seed in seeds:
            plan = self.plan(name, best, seed)
            row = self.kept(plan) or plan.identity()  # the first seed chose; the others need no validation
            if "test" not in row:
                row = self.test(plan, row)
            yield row

    def validated(self, plan: Plan) -> Row:
        """The row with its validation, run where it is not there."""
        row = self.kept(plan) or plan.identity()
        if "validation" in row:
            return row
        self.say(f"{plan.name}: validating")
        texts = [prompt.text for prompt in self.prompts("validation")]
        draw, trained = self.drawer(plan)
        pictures, ledger = draw(texts)
        proxy = score_all(self.judges.proxy, pictures, texts, self.protocol.batch).cpu()
        row |= {"validation": {"proxy": clustered_mean(proxy.numpy(), texts).numbers(),
                               "ledger": cost(ledger, len(texts))},
                "hardware": hardware(), "versions": versions()}
        row = training_of(trained) | row
        write_row(self.folder, row)
        return row

    def test(self, plan: Plan, row: Row) -> Row:
        """Adds the test to a row, and the training where it is not there yet."""
        self.say(f"{plan.name}: testing")
        draw, trained = self.drawer(plan)
        row = training_of(trained) | row
        base = self.base(self.model_of(plan.technique), plan.seed)
        kl = None if trained is None else self.kl(trained, plan.seed)
        row, _ = self.tested(row, draw, base, kl)
        write_row(self.folder, row)
        return row

    def drawer(self, plan: Plan) -> tuple[Callable[[Sequence[str]], tuple[Tensor, Ledger]], Trained | None]:
        """A function from texts to pictures and cost; for fine-tuning also the trained model."""
        if plan.kind == "training":
            trained = train(plan.recipe, self.budget.training, self.work / plan.run_folder, self.say)
            return lambda texts: self.plain(trained.model, texts, plan.seed), trained
        model = load_model(self.model_of(plan.technique), self.place.device)
        sampler = technique_class(plan.technique)(plan.preset.config)
        return lambda texts: draw_steered(sampler, model, texts, self.judges.proxy, seed=plan.seed), None

    def kl(self, trained: Trained, seed: int) -> tuple[np.ndarray, list[str]]:
        """KL of the trained model's paths on some test prompts."""
        prompts = protocol_prompts("test", self.scale, self.protocol)
        texts = [prompts[i].text for i in spread(len(prompts), self.protocol.kl_prompts)]
        values = path_kl(trained.model, texts, dynamics=noisy_dynamics(trained.model), steps=self.protocol.kl_steps,
                         generators=generators(range(len(texts)), seed, "kl"), batch=self.protocol.batch)
        return values.numpy(), texts

    def tested(self, row: Row, draw: Callable, base: Looked | None, kl: tuple | None = None) -> tuple[Row, Looked]:
        """Draws the test pictures, looks at them, keeps a sheet of the fixed prompts; the row with its test."""
        prompts = self.prompts("test")
        pictures, ledger = draw([prompt.text for prompt in prompts])
        looked = look(pictures, prompts, self.judges, self.protocol.batch)
        values, texts = kl or (None, ())
        section = section_of(looked, base, prompts, values, texts, min(SUBSET, len(prompts)))
        section["ledger"] = cost(ledger, len(prompts))
        section["sheet"] = self.sheet(row, pictures, prompts, looked)
        return {**row, "test": section, "hardware": hardware(), "versions": versions()}, looked

    def sheet(self, row: Row, pictures: Tensor, prompts: Sequence[Prompt], looked: Looked) -> dict[str, Any]:
        """Writes the pictures of the fixed prompts (the first picture of each)."""
        every = self.protocol.pictures
        rows = [i * every for i in spread(len(prompts) // every, self.protocol.sheet)]
        passed = [bool(looked.scores["pass"][i]) for i in rows] if "pass" in looked.scores else None
        name = f"{PICTURES}/{row['technique']}-seed{row['seed']}-{row['setting']}.png"
        write_sheet(self.folder / name, pictures[rows])
        return {"file": name, "prompts": [prompts[i].text for i in rows], "passed": passed}


def training_of(trained: Trained | None) -> dict[str, Any]:
    """The part of a row that tells how training went; nothing for a sampler."""
    if trained is None:
        return {}
    return {"training_run": {"epochs": trained.epochs, "updates": trained.updates, "history": trained.history,
                             "ledger": cost(trained.ledger)}}


def cost(ledger: Ledger, pictures: int | None = None) -> dict[str, Any]:
    """A ledger for a row: counts, equivalents, rounded seconds; with `pictures` also equivalents a picture."""
    state = ledger.state_dict()
    state["seconds"] = {part: round(value, 2) for part, value in state["seconds"].items()}
    state |= {"wall": round(state["wall"], 2), "equivalents": ledger.equivalents}
    if torch.cuda.is_available():
        state["peak_memory"] = torch.cuda.max_memory_allocated()
    if pictures is not None:
        state["calls_per_picture"] = math.ceil(ledger.equivalents / pictures)
    return state
