"""The judge of the Shapes world: does a picture show its prompt?

A picture is read by `reading.read`; a verdict compares what was read with the prompt's `Spec`. It is hard (`passed`)
and soft (`parts`, one score for each thing the prompt says). The rules follow GenEval (arXiv 2310.11513) where it has
one, with two differences: counts are exact for every category, and things that the prompt does not name fail it.

passed = the picture is readable, every thing of it is named, every group has its count, and there is an assignment of
things to groups in which shapes, colours and sizes agree, the relation holds and the background is the named one.
The assignment is found by trying all of them.

Relation: GenEval's rule. With d the offset of the centres, less 0.1 of the summed box widths along each axis (not below
0), "left of" holds when d_x / |offset| < -0.5, and so on; two relations may hold at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from surveylib.worlds.shapes.prompts import RELATIONS, Group, Spec, parse
from surveylib.worlds.shapes.reading import Difference, Reading, Seen, differences, read
from surveylib.worlds.shapes.scenes import Scene

POSITION_MARGIN = 0.1  # of the summed box widths, GenEval's position threshold
POSITION_COSINE = 0.5
RELATION_SOFTNESS = 0.12  # of the relation's logistic score
CHUNK = 256  # pictures read at once
_DIRECTION = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


@dataclass(frozen=True)
class Verdict:
    """The judgement of one picture against one prompt.

    Attributes:
        passed: the hard judgement.
        parts: soft scores in [0, 1] by name: "shape 1", "count 1", "colour 1", "size 1" for the first group (2 for the
            second), "relation", "background", "nothing else"; only what the prompt says.
        score: mean of the parts.
        readable: whether the picture could be read; an unreadable one never passes.
        reason: "" when passed, else what is wrong.
    """

    passed: bool
    parts: dict[str, float]
    score: float
    readable: bool
    reason: str


@lru_cache(maxsize=16384)
def _parsed(text: str) -> Spec:
    return parse(text)


def specs_of(prompts: Sequence[str | Spec] | str | Spec, count: int) -> list[Spec]:
    """Specs of prompts, one a picture; a single prompt stands for all pictures.

    Raises:
        ValueError: another number of prompts than pictures, or a text the grammar cannot read.
        TypeError: something that is neither a text nor a Spec.
    """
    prompts = [prompts] * count if isinstance(prompts, (str, Spec)) else list(prompts)
    if len(prompts) != count:
        raise ValueError(f"{len(prompts)} prompts for {count} pictures; give one prompt a picture, or a single one")
    for prompt in prompts:
        if not isinstance(prompt, (str, Spec)):
            raise TypeError(f"a prompt is a text or a Spec, not {type(prompt).__name__}")
    return [prompt if isinstance(prompt, Spec) else _parsed(prompt) for prompt in prompts]


def position_cosines(first: Seen, second: Seen) -> dict[str, float]:
    """How far the first thing stands in each of the four directions from the second: GenEval's normalised offset, in
    [-1, 1]; a relation holds when it is over POSITION_COSINE."""
    offset = np.array([first.x - second.x, first.y - second.y])
    length = float(np.hypot(*offset))
    if length < 1e-6:
        return dict.fromkeys(RELATIONS, 0.0)
    shortened = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_MARGIN * 2 * (first.r + second.r), 0) / length
    return {name: float(shortened @ _DIRECTION[name]) for name in RELATIONS}


def agreement(group: Group, thing: Seen) -> tuple[dict[str, float], bool]:
    """Soft scores of what a group says about one thing ("shape", "colour", "size"), and whether all of it holds."""
    scores = {"shape": thing.shape_scores[group.shape]}
    holds = thing.shape == group.shape
    if group.colour:
        scores["colour"] = thing.colour_scores[group.colour]
        holds = holds and thing.is_called(group.colour)
    if group.size:
        scores["size"] = thing.size_scores[group.size]
        holds = holds and thing.size == group.size
    return scores, holds


@cache
def _assignments(things: int, slots: int) -> np.ndarray:
    """(P, slots) all ways to give each slot another thing."""
    return np.array(list(permutations(range(things), slots)), dtype=np.int64).reshape(-1, slots)


def _relations(things: Sequence[Seen], relation: str, size: int) -> np.ndarray:
    """(size, size) how far thing i stands in the relation to thing j, 0 where there is no thing."""
    table = np.zeros((size, size))
    for i, first in enumerate(things):
        for j, second in enumerate(things):
            if i != j:
                table[i, j] = position_cosines(first, second)[relation]
    return table


@dataclass(frozen=True)
class _Match:
    chosen: tuple[int, ...]  # thing of each slot; an index past the things stands for none
    holds: bool  # attributes and relation of every slot
    relation: float  # least cosine over the pairs of the two groups
    scores: tuple[dict[str, float], ...]  # of each slot


def match(spec: Spec, things: Sequence[Seen]) -> _Match:
    """The best assignment of things to the spec's slots: most that holds, then the highest soft scores."""
    slots = [k for k, group in enumerate(spec.groups) for _ in range(group.count)]
    size = max(len(things), len(slots))
    found = [[agreement(group, thing) for thing in things] for group in spec.groups]
    soft, hard = np.zeros((len(slots), size)), np.zeros((len(slots), size), dtype=bool)
    for s, k in enumerate(slots):
        for i, (scores, holds) in enumerate(found[k]):
            # The shape counts twice: it says which thing is meant.
            soft[s, i], hard[s, i] = sum(scores.values()) + scores["shape"], holds
    ways, rows = _assignments(size, len(slots)), np.arange(len(slots))
    value, holds = soft[rows, ways].sum(1), hard[rows, ways].sum(1)
    cosine = np.ones(len(ways))
    if spec.relation and len(spec.groups) == 2:
        table = _relations(things, spec.relation, size)
        pairs = [(a, b) for a in rows for b in rows if slots[a] == 0 and slots[b] == 1]
        cosine = np.min([table[ways[:, a], ways[:, b]] for a, b in pairs], axis=0)
        value = value + 0.5 * cosine
    best = int(np.argmax(2 * holds + (cosine > POSITION_COSINE) + 1e-3 * value))
    chosen = tuple(int(i) for i in ways[best])
    missing = [dict.fromkeys(["shape", *(n for n in ("colour", "size") if getattr(g, n))], 0.0) for g in spec.groups]
    scores = tuple(found[k][i][0] if i < len(things) else missing[k] for k, i in zip(slots, chosen))
    good = bool(holds[best] == len(slots) and cosine[best] > POSITION_COSINE)
    return _Match(chosen, good, float(cosine[best]), scores)


def _counts(spec: Spec, things: Sequence[Seen], chosen: Sequence[int]) -> list[int]:
    """Things of each group's shape: those assigned to it, and spare ones (given to the first group of that shape)."""
    slots = [k for k, group in enumerate(spec.groups) for _ in range(group.count)]
    owner = dict(zip(chosen, slots))
    counts = [0] * len(spec.groups)
    for i, thing in enumerate(things):
        k = owner.get(i)
        if k is None or thing.shape != spec.groups[k].shape:
            k = next((k for k, group in enumerate(spec.groups) if group.shape == thing.shape), None)
        if k is not None:
            counts[k] += 1
    return counts


def _parts(spec: Spec, reading: Reading, found: _Match) -> dict[str, float]:
    parts: dict[str, float] = {}
    slots = [k for k, group in enumerate(spec.groups) for _ in range(group.count)]
    counts = _counts(spec, reading.things, found.chosen)
    for k, group in enumerate(spec.groups):
        scores = [score for slot, score in zip(slots, found.scores) if slot == k]
        parts[f"count {k + 1}"] = max(0.0, 1 - abs(counts[k] - group.count) / group.count)
        for name in scores[0]:
            parts[f"{name} {k + 1}"] = sum(score[name] for score in scores) / len(scores)
    if spec.relation:
        whole = all(i < len(reading.things) for i in found.chosen)
        logit = (found.relation - POSITION_COSINE) / RELATION_SOFTNESS
        parts["relation"] = float(1 / (1 + np.exp(-logit))) if whole else 0.0
    if spec.background:
        parts["background"] = reading.background_scores[spec.background]
    spare = len(reading.things) - sum(i < len(reading.things) for i in found.chosen)
    parts["nothing else"] = 1 / (1 + spare)
    return parts


def _named(thing: Seen) -> str:
    return f"{thing.size} {thing.colour or 'uncoloured'} {thing.shape or 'blob'}"


def _reason(spec: Spec, reading: Reading, found: _Match) -> str:
    """What is wrong with a readable picture, or ""."""
    if len(reading.things) != spec.count:
        return f"{len(reading.things)} things, {spec.count} asked"
    wrong = []
    slots = [group for group in spec.groups for _ in range(group.count)]
    for group, i in zip(slots, found.chosen):
        thing = reading.things[i]
        for name in ("shape", "colour", "size"):
            asked = getattr(group, name)
            if asked and not thing.has(name, asked):
                wrong.append(f"{name} of a {_named(thing)} should be {asked}")
    if spec.relation and found.relation <= POSITION_COSINE:
        wrong.append(f"the first group is not {spec.relation} the second")
    if spec.background and reading.background != spec.background:
        wrong.append(f"background {reading.background}, {spec.background} asked")
    return "; ".join(wrong)


def verdict(reading: Reading, spec: Spec) -> Verdict:
    """Judge one reading against one spec."""
    found = match(spec, reading.things)
    parts = _parts(spec, reading, found)
    reason = f"unreadable: {reading.reason}" if not reading.readable else _reason(spec, reading, found)
    return Verdict(not reason, parts, sum(parts.values()) / len(parts), reading.readable, reason)


def judge(pictures: Tensor, prompts: Sequence[str | Spec] | str | Spec) -> list[Verdict]:
    """Judge pictures against prompts.

    Args:
        pictures: (B, 3, 64, 64) floating in [0, 1].
        prompts: a text or Spec for each picture, or a single one for all.

    Returns:
        One verdict a picture; it does not depend on the other pictures of the batch.

    Raises:
        ValueError, TypeError: pictures or prompts that do not fit (`reading.check`, `specs_of`).
    """
    specs = specs_of(prompts, len(pictures))
    readings = [reading for chunk in pictures.split(CHUNK) for reading in read(chunk)] if len(pictures) else []
    return [verdict(reading, spec) for reading, spec in zip(readings, specs)]


def passes(pictures: Tensor, prompts: Sequence[str | Spec] | str | Spec) -> Tensor:
    """The hard judgement as a (B,) bool tensor; arguments as in `judge`."""
    return torch.tensor([v.passed for v in judge(pictures, prompts)], dtype=torch.bool)


def scores(pictures: Tensor, prompts: Sequence[str | Spec] | str | Spec) -> Tensor:
    """The soft judgement, mean of the parts, as a (B,) float32 tensor in [0, 1]; arguments as in `judge`."""
    return torch.tensor([v.score for v in judge(pictures, prompts)], dtype=torch.float32)


def confusions(pictures: Tensor, scenes: Sequence[Scene]) -> dict[tuple[str, str | None, str | None], int]:
    """How often a reading departs from the scene drawn: (kind, expected, found) -> count, most frequent first.

    The places of "place" are left out; kinds are those of `reading.Difference`.
    """
    table: dict[tuple[str, str | None, str | None], int] = {}
    readings = [reading for chunk in pictures.split(CHUNK) for reading in read(chunk)] if len(pictures) else []
    if len(readings) != len(scenes):
        raise ValueError(f"{len(scenes)} scenes for {len(readings)} pictures; give one scene a picture")
    for reading, scene in zip(readings, scenes):
        for found in differences(reading, scene):
            place = found.kind == "place"
            key = (found.kind, None if place else found.expected, None if place else found.found)
            table[key] = table.get(key, 0) + 1
    return dict(sorted(table.items(), key=lambda item: -item[1]))


__all__ = ["Difference", "Reading", "Seen", "Verdict", "agreement", "confusions", "differences", "judge", "match",
           "passes", "position_cosines", "read", "scores", "specs_of", "verdict"]
