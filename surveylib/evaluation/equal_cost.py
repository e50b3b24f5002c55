"""Equal-cost curves: what each test-time method makes of 20, 40, 80 ... network calls a picture.

One knob of each method buys more calls (candidates, particles, repeats, optimiser steps); everything else stays as its
preset has it. All methods draw one picture for each test prompt, first noise included the same. A stop of a curve costs
what the ledger counted, in network-call equivalents a picture (a backward pass counts two).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from surveylib.diffusion.zoo import load_model
from surveylib.evaluation.drawing import draw_plain, draw_steered, spread
from surveylib.evaluation.intervals import clustered_mean
from surveylib.evaluation.measure import Bench, Say
from surveylib.evaluation.protocol import BUDGETS, PROTOCOLS, Protocol
from surveylib.evaluation.rows import (
    BASE,
    FORMAT,
    ROWS,
    SAMPLER,
    artefact_hash,
    hardware,
    model_and_reward,
    read_row,
    rule_hash,
    versions,
)
from surveylib.evaluation.scoring import look
from surveylib.runs.checkpoint import write_atomically
from surveylib.runs.scale import current_scale
from surveylib.techniques.registry import preset, technique_class

FOLDER, CURVE = ROWS / "equal_cost", "equal-cost curve"
MORE_STEPS = "more steps"  # the base model, with calls spent on finer sampling
KNOBS: dict[str, tuple[str, tuple[int, ...]]] = {
    MORE_STEPS: ("steps", (10, 20, 40, 80)),
    "best_of_n": ("n", (1, 2, 4, 8, 16, 32)),
    "fk_steering": ("particles", (2, 4, 8, 16)),
    "tfg": ("recurrences", (1, 2, 4)),
    "dno": ("iterations", (1, 3, 6, 11)),
    "ipgo": ("epochs", (2, 6, 12, 24)),
}
Curve = dict[str, Any]


def equal_cost(
    methods: Sequence[str] | None = None,
    *,
    scale: str | None = None,
    protocol: Protocol | None = None,
    per_category: int = 8,
    seed: int = 0,
    folder: str | Path = FOLDER,
    ladders: Mapping[str, tuple[str, tuple[int, ...]]] = KNOBS,
    say: Say = lambda text: None,
) -> Iterator[Curve]:
    """Measures curves and yields each once it stands; stops that hold already are not drawn again.

    Args:
        methods: of `ladders`; None takes all. per_category: test prompts of each category, spread over the suite.
        ladders: method -> (field of its settings, its values).
        protocol: default: the scale's. seed: of the noise. folder: one JSON file a method. say: gets a line a stop.

    Raises:
        ValueError: a method without a ladder.
    """
    scale = current_scale(scale)
    names = list(ladders if methods is None else methods)
    unknown = [name for name in names if name not in ladders]
    if unknown:
        raise ValueError(f"no ladder of costs for {', '.join(unknown)}; there are: {', '.join(ladders)}")
    protocol = protocol or PROTOCOLS[scale]
    bench = Bench(scale, BUDGETS[scale], protocol, Path(folder), Path(folder), say)
    prompts = bench.prompts("test")[:: protocol.pictures]
    categories = len({prompt.category for prompt in prompts})
    prompts = [prompts[i] for i in spread(len(prompts), per_category * categories)]
    for name in names:
        yield curve(bench, name, *ladders[name], prompts, seed)


def curve(bench: Bench, name: str, knob: str, values: Sequence[int], prompts: Sequence[Any], seed: int) -> Curve:
    """One method's curve, written after each stop."""
    path = bench.folder / f"{name.replace(' ', '_')}.json"
    head = identity(bench, name, knob, prompts, seed)
    found = read_row(path, CURVE) if path.is_file() else {}
    if any(found.get(key) != value for key, value in head.items()):
        found = {**head, "stops": []}
    for value in values:
        if value in [stop["value"] for stop in found["stops"]]:
            continue
        found["stops"] = sorted([*found["stops"], stop_of(bench, name, knob, value, prompts, seed)],
                                key=lambda stop: stop["value"])
        found |= {"hardware": hardware(), "versions": versions()}
        write_atomically(path, json.dumps(found, indent=1) + "\n")
        bench.say(f"{name}: {knob} {value}, {found['stops'][-1]['calls']} calls a picture")
    return found


def identity(bench: Bench, name: str, knob: str, prompts: Sequence[Any], seed: int) -> Curve:
    """What a curve depends on."""
    plain = name == MORE_STEPS
    base = preset("best_of_n" if plain else name, bench.scale)
    model, reward = model_and_reward(base, bench.scale)
    reward = bench.protocol.proxy or reward
    hashes = hashes_of(BASE if plain else name, model, reward)
    return json.loads(json.dumps({
        "format": FORMAT, "method": BASE if plain else name, "knob": knob, "scale": bench.scale, "seed": seed,
        "config": {} if plain else {k: v for k, v in asdict(base.config).items() if k != knob}, "model": model,
        "reward": reward, "hashes": hashes, "prompts": [prompt.text for prompt in prompts]}))


def hashes_of(method: str, model: str, reward: str) -> dict[str, str | None]:
    """Hashes of what a curve of a method (`BASE`: the model with more steps) depends on."""
    return {"rule": None if method == BASE else rule_hash(technique_class(method).__module__),
            "model": artefact_hash(model), "reward": artefact_hash(reward), "sampler": rule_hash(*SAMPLER)}


def stop_of(bench: Bench, name: str, knob: str, value: int, prompts: Sequence[Any], seed: int) -> dict[str, Any]:
    """Draws and looks at one stop: means with prompt-clustered intervals, and what it cost a picture."""
    texts = [prompt.text for prompt in prompts]
    if name == MORE_STEPS:
        model = load_model(bench.model_of("best_of_n"), bench.place.device)
        pictures, ledger = draw_plain(model, texts, seed=seed, steps=value, batch=bench.protocol.batch)
    else:
        chosen = preset(name, bench.scale).override({knob: value})
        model = load_model(bench.model_of(name), bench.place.device)
        sampler = technique_class(name)(chosen.config)
        pictures, ledger = draw_steered(sampler, model, texts, bench.judges.proxy, seed=seed)
    looked = look(pictures, prompts, bench.judges, bench.protocol.batch)
    return {"value": value, "calls": round(ledger.equivalents / len(texts), 2), "seconds": round(ledger.wall, 1),
            "means": {key: clustered_mean(scores, texts).numbers() for key, scores in looked.scores.items()}}


def read_curves(folder: str | Path = FOLDER) -> dict[str, Curve]:
    """All curves of a folder by name of their file, without ending.

    Raises:
        ValueError: a damaged file, or one of another format; names it.
    """
    return {path.stem: read_row(path, CURVE) for path in sorted(Path(folder).glob("*.json"))}


def changes(curve: Curve) -> list[str]:
    """What a stored curve depends on that is no longer so: "rule", "model", "reward", "sampler"."""
    now = hashes_of(curve["method"], curve["model"], curve["reward"])
    return [part for part, value in now.items() if curve["hashes"].get(part) != value]


def against(curve: Curve, line: Curve, score: str = "gold") -> list[dict[str, float]]:
    """A curve against the line to beat: at each stop's calls, its mean less the line's, on a log scale of calls.

    Stops outside the line's range of calls are left out. Each dict: calls, difference.
    """
    calls = np.log([stop["calls"] for stop in line["stops"]])
    values = [stop["means"][score]["value"] for stop in line["stops"]]
    found = []
    for stop in curve["stops"]:
        at = np.log(stop["calls"])
        if calls[0] <= at <= calls[-1]:
            found.append({"calls": stop["calls"],
                          "difference": float(stop["means"][score]["value"] - np.interp(at, calls, values))})
    return found
