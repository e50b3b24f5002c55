"""Prompt suites of the Shapes world and the protocol that scores a model on them.

The protocol is GenEval's (arXiv 2310.11513): four pictures a prompt, one row a picture with tag, prompt, correct and
reason, and as overall score the mean of the six categories' rates over pictures. "size" is reported beside them and
does not enter. Errors are clustered by prompt, since the pictures of one prompt fail together.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from surveylib.diffusion.rollout import sample
from surveylib.worlds.shapes.judge import Verdict, judge
from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, CATEGORIES, Spec, is_held_out, realise, sample_spec
from surveylib.worlds.shapes.quality import quality
from surveylib.worlds.shapes.scenes import UNSEEN_PAIRS

SUITES = ("train", "held-out", "generalisation")
COLOURED = ("counting", "colours", "colour attribution", "size")  # categories that can name an unseen pair
TRIES = 30  # most draws for each prompt wanted
OVERALL = "overall"


@dataclass(frozen=True)
class SuitePrompt:
    """One prompt of a suite. `repeat` counts earlier prompts of the suite with the same text, so that seeds differ."""

    text: str
    spec: Spec
    category: str
    repeat: int = 0


def _draw(name: str, category: str, rng: np.random.Generator) -> Spec | None:
    """One tuple of a suite, or None when the one drawn does not belong to it."""
    spec = sample_spec(category, rng)
    if name != "generalisation":
        belongs = is_held_out(spec) == (name == "held-out") and not spec.unseen_pair
        return spec if belongs else None
    groups, i = list(spec.groups), int(rng.integers(len(spec.groups)))
    colour, shape = UNSEEN_PAIRS[rng.integers(len(UNSEEN_PAIRS))]
    groups[i] = type(groups[i])(shape, groups[i].count, colour, groups[i].size)
    distinct = len({group.shape for group in groups}) == len(groups)
    return Spec(tuple(groups), spec.relation, spec.background) if distinct else None


def _category_prompts(name: str, category: str, count: int, rng: np.random.Generator) -> list[SuitePrompt]:
    """`count` prompts: tuples in turn, each in a new wording while there are any; then wordings come again."""
    wordings: dict[str, dict[str, Spec]] = {}
    for _ in range(TRIES * count):
        spec = _draw(name, category, rng)
        if spec is not None:
            wordings.setdefault(spec.key, {})[realise(spec, rng)] = spec
        if len(wordings) == count:
            break
    if not wordings:
        return []
    depth = max(len(texts) for texts in wordings.values())
    lists = [list(texts.items()) for texts in wordings.values()]
    turns = [texts[d] for d in range(depth) for texts in lists if d < len(texts)]
    return [SuitePrompt(*turns[i % len(turns)], category, i // len(turns)) for i in range(count)]


@lru_cache(maxsize=32)
def _suite(name: str, per_category: int, seed: int) -> tuple[SuitePrompt, ...]:
    categories = COLOURED if name == "generalisation" else ALL_CATEGORIES
    prompts: list[SuitePrompt] = []
    for category in categories:
        rng = np.random.default_rng([seed, SUITES.index(name), ALL_CATEGORIES.index(category)])
        prompts += _category_prompts(name, category, per_category, rng)
    return tuple(prompts)


def suite(name: str, per_category: int = 110, seed: int = 0) -> list[SuitePrompt]:
    """The prompts of a suite, category by category.

    Args:
        name: "train" (tuples that training may show), "held-out" (tuples kept out of training) or "generalisation"
            (colour-shape pairs that no training picture contains; only the categories that name colours).
        per_category: prompts a category; the default gives 660 in the six categories and 110 of "size". Texts are
            unique where a category has enough tuples and wordings (held-out "single object" has few tuples).
        seed: of the draw.

    Raises:
        ValueError: unknown name, or fewer than one prompt a category.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    if per_category < 1:
        raise ValueError(f"per_category={per_category} must be at least 1")
    return list(_suite(name, per_category, seed))


@dataclass(frozen=True)
class Rate:
    """Share of pictures that pass, their number, and the standard error clustered by prompt."""

    rate: float
    n: int
    standard_error: float


def clustered_rate(passed: Sequence[bool], clusters: Sequence[str]) -> Rate:
    """Rate with the sandwich standard error of a mean whose errors are correlated within clusters:
    sqrt(G/(G-1) sum_g (sum_{i in g} (y_i - mean))^2) / n; nan with a single cluster."""
    y = np.asarray(passed, dtype=float)
    if not len(y):
        raise ValueError("no pictures to tabulate")
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(group, weights=y - y.mean())
    g = len(sums)
    error = float(np.sqrt(g / (g - 1) * (sums**2).sum()) / len(y)) if g > 1 else float("nan")
    return Rate(float(y.mean()), len(y), error)


def tabulate(verdicts: Sequence[Verdict], prompts: Sequence[SuitePrompt]) -> dict[str, Rate]:
    """Rates by category, and "overall": the plain mean of the categories' rates over pictures, "size" left out.

    Args:
        verdicts: one a picture.
        prompts: the prompt of each picture.

    Returns:
        category -> `Rate`, in the order of `ALL_CATEGORIES`, "overall" last; a category without pictures is absent, and
        "overall" is the mean of those of the six that are there (absent when none is).

    Raises:
        ValueError: lengths that differ, or nothing to tabulate.
    """
    if len(verdicts) != len(prompts):
        raise ValueError(f"{len(verdicts)} verdicts for {len(prompts)} prompts; give the prompt of each picture")
    table: dict[str, Rate] = {}
    for category in ALL_CATEGORIES:
        rows = [i for i, prompt in enumerate(prompts) if prompt.category == category]
        if rows:
            table[category] = clustered_rate([verdicts[i].passed for i in rows], [prompts[i].text for i in rows])
    rates = [table[category] for category in CATEGORIES if category in table]
    if not table:
        raise ValueError("no pictures to tabulate")
    if rates:
        error = float(np.sqrt(sum(rate.standard_error**2 for rate in rates)) / len(rates))
        table[OVERALL] = Rate(float(np.mean([rate.rate for rate in rates])), sum(rate.n for rate in rates), error)
    return table


def picture_seed(seed: int, prompt: SuitePrompt, picture: int) -> int:
    """Seed of one picture, a function of (seed, text, repeat, number of the picture) and of nothing else."""
    digest = hashlib.sha256(f"{seed}|{prompt.text}|{prompt.repeat}|{picture}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


Draw = Callable[[list[str], list[torch.Generator]], Tensor]


def _draw_with_contract(model: Any, steps: int | None, guidance: float | None) -> Draw:
    steps = getattr(model, "default_steps", 20) if steps is None else steps

    @torch.no_grad()
    def draw(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        latents = sample(model, model.encode(prompts), steps=steps, guidance=guidance, generator=generators)
        return model.decode(latents)

    return draw


def _draw_with_pipeline(pipeline: Any, steps: int | None, guidance: float | None) -> Draw:
    options = {"num_inference_steps": steps, "guidance_scale": guidance}
    options = {name: value for name, value in options.items() if value is not None}

    def draw(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        bar = dict(getattr(pipeline, "_progress_bar_config", {}))
        pipeline.set_progress_bar_config(**{**bar, "disable": True})
        try:
            return pipeline(prompt=prompts, generator=generators, output_type="pt", **options).images
        finally:
            pipeline.set_progress_bar_config(**bar)

    return draw


def drawer(model: Any, steps: int | None = None, guidance: float | None = None) -> Draw:
    """A function (prompts, generators) -> pictures from a `DiffusionModel`, a diffusers pipeline or a plain function.

    A plain function takes (prompts, generators), one generator a picture, or prompts alone; then its randomness is its
    own. `steps` and `guidance` None take the model's defaults.

    Raises:
        TypeError: none of the three. ValueError: steps or guidance given for a plain function.
    """
    if hasattr(model, "encode") and hasattr(model, "decode"):
        return _draw_with_contract(model, steps, guidance)
    if hasattr(model, "scheduler") and hasattr(model, "set_progress_bar_config"):
        return _draw_with_pipeline(model, steps, guidance)
    if not callable(model):
        raise TypeError(
            f"cannot draw with a {type(model).__name__}: give a DiffusionModel, a diffusers pipeline or a function"
        )
    if steps is not None or guidance is not None:
        raise ValueError("a plain function has its own steps and guidance; leave both None")
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [p for p in inspect.signature(model).parameters.values() if p.kind in kinds and p.default is p.empty]
    return model if len(taken) >= 2 else lambda prompts, generators: model(prompts)


@dataclass(frozen=True)
class Scores:
    """What a model scored: one row a picture (`write_rows`), rates by category and "overall", mean picture quality."""

    rows: list[dict[str, Any]]
    table: dict[str, Rate]
    quality: float


def row_of(prompt: SuitePrompt, verdict: Verdict, **more: Any) -> dict[str, Any]:
    """GenEval's row of one picture (tag, prompt, correct, reason, metadata) with the soft score and what is given."""
    metadata = json.dumps({"tag": prompt.category, "prompt": prompt.text, "repeat": prompt.repeat})
    return {
        "tag": prompt.category, "prompt": prompt.text, "correct": verdict.passed, "reason": verdict.reason,
        "metadata": metadata, "readable": verdict.readable, "score": round(verdict.score, 4), **more,
    }


def score_model(
    model: Any,
    prompts: Sequence[SuitePrompt] | str = "held-out",
    pictures_per_prompt: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 64,
    progress: bool = False,
) -> Scores:
    """Draw a suite with a model and judge the pictures.

    Every picture has a generator of its own, seeded by `picture_seed`: pictures do not depend on the batch size nor on
    which other prompts the suite has, and two models get the same noise.

    Args:
        model: a `DiffusionModel`, a diffusers pipeline, or a function of prompts (see `drawer`).
        prompts: a suite, or its name.
        pictures_per_prompt: GenEval takes 4.
        steps, guidance: None takes the model's defaults.
        batch: pictures drawn at once.
        progress: show a bar.

    Raises:
        ValueError, TypeError: a model or settings that do not fit, or pictures that are not (B, 3, 64, 64).
    """
    if pictures_per_prompt < 1 or batch < 1:
        raise ValueError(f"pictures_per_prompt={pictures_per_prompt} and batch={batch} must be at least 1")
    prompts = suite(prompts) if isinstance(prompts, str) else list(prompts)
    draw = drawer(model, steps, guidance)
    work = [(prompt, k) for prompt in prompts for k in range(pictures_per_prompt)]
    rows, verdicts = [], []
    for start in tqdm(range(0, len(work), batch), disable=not progress, desc="judging"):
        part = work[start : start + batch]
        seeds = [picture_seed(seed, prompt, k) for prompt, k in part]
        pictures = draw([p.text for p, _ in part], [torch.Generator().manual_seed(s) for s in seeds])
        pictures = pictures.detach().float().cpu().clamp(0, 1)
        found = judge(pictures, [prompt.spec for prompt, _ in part])
        verdicts += found
        for (prompt, k), verdict, value in zip(part, found, quality(pictures).tolist()):
            rows.append(row_of(prompt, verdict, picture=k, quality=round(value, 4)))
    table = tabulate(verdicts, [prompt for prompt, _ in work])
    return Scores(rows, table, float(np.mean([row["quality"] for row in rows])))


def write_rows(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write rows as JSON Lines, one picture a line; GenEval's summary_scores.py reads the file.

    Its overall is the mean over all tags of the file: leave the rows of "size" out to compare.
    """
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


__all__ = ["OVERALL", "SUITES", "Rate", "Scores", "SuitePrompt", "clustered_rate", "drawer", "picture_seed", "row_of",
           "score_model", "suite", "tabulate", "write_rows"]
