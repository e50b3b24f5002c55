"""What an annotator of the Shapes world can see in a picture: every number that a simulated utility is made of.

`look` reads a batch once; annotators weigh the columns of the result, so a hundred annotators cost one reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from surveylib.worlds.shapes.judge import CHUNK, POSITION_COSINE, Verdict, agreement, match, specs_of, verdict
from surveylib.worlds.shapes.prompts import Spec, realise
from surveylib.worlds.shapes.quality import NAMES, Quality, quality_parts
from surveylib.worlds.shapes.reading import Reading, Seen, check, read
from surveylib.worlds.shapes.scenes import COLOURS, MAX_THINGS, SIZES

HARD_SHARE = 0.5  # of faithfulness: the hard judgement; the rest is the soft one
FULLEST = 1.25  # strength over the palette's that counts as fully saturated
TASTES = (*COLOURS, "size", "richness", "saturation")


@dataclass(frozen=True)
class Looks:
    """B pictures beside their prompts, as seen.

    Attributes:
        pictures: (B, 3, 64, 64) float32 in [0, 1].
        prompts, specs, readings, verdicts: one a picture.
        faithfulness: (B,) in [0, 1]: half the judge's soft score, half its hard judgement (`HARD_SHARE`).
        countless: (B,) in [0, 1]: the same for somebody who does not count, see `without_counting`.
        quality: the parts of picture quality and their geometric mean, (B,) in [0, 1] each.
        taste: (B, 11), columns `TASTES`. A colour's column is the share of the things' area in that colour, [0, 1].
            "size", "richness" and "saturation" lie in [-1, 1]: -1 for the smallest things, a single thing, no chroma;
            +1 for the largest, four things of four colours, a chroma of `FULLEST` times the palette's.
    """

    pictures: Tensor
    prompts: tuple[str, ...]
    specs: tuple[Spec, ...]
    readings: tuple[Reading, ...]
    verdicts: tuple[Verdict, ...]
    faithfulness: Tensor
    countless: Tensor
    quality: Quality
    taste: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def pick(self, rows: Sequence[int]) -> Looks:
        """The looks of some pictures, in the given order.

        Raises:
            IndexError: a row that is not there.
        """
        rows = [int(row) for row in rows]
        wrong = [row for row in rows if not 0 <= row < len(self)]
        if wrong:
            raise IndexError(f"no picture {wrong[0]}: there are {len(self)}, counted from 0")
        values = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "quality":
                values[field.name] = Quality(*(getattr(value, name)[rows] for name in NAMES))
            else:
                values[field.name] = value[rows] if isinstance(value, Tensor) else tuple(value[row] for row in rows)
        return Looks(**values)


def without_counting(reading: Reading, spec: Spec) -> float:
    """Faithfulness for somebody who does not count: the parts "count" and "nothing else" are left out, and so are
    things asked for but missing, as long as one thing of each group is there. In [0, 1]."""
    found, things = match(spec, reading.things), reading.things
    slots = [k for k, group in enumerate(spec.groups) for _ in range(group.count)]
    scores: list[float] = []
    holds = reading.readable
    for k, group in enumerate(spec.groups):
        there = [agreement(group, things[i]) for i, slot in zip(found.chosen, slots) if slot == k and i < len(things)]
        names = ["shape", *(name for name in ("colour", "size") if getattr(group, name))]
        scores += [sum(s[name] for s, _ in there) / len(there) if there else 0.0 for name in names]
        holds = holds and bool(there) and all(right for _, right in there)
    parts = verdict(reading, spec).parts
    if spec.relation:
        whole = all(i < len(things) for i in found.chosen)
        scores.append(parts["relation"])
        holds = holds and whole and found.relation > POSITION_COSINE
    if spec.background:
        scores.append(parts["background"])
        holds = holds and reading.background == spec.background
    return (1 - HARD_SHARE) * sum(scores) / len(scores) + HARD_SHARE * holds


def taste_row(things: Sequence[Seen]) -> list[float]:
    """The columns `TASTES` of one picture; without things 0 for all colours, for size and richness, -1 for chroma."""
    if not things:
        return [0.0] * len(COLOURS) + [0.0, 0.0, -1.0]
    area = [thing.r**2 for thing in things]
    shares = [sum(a for a, t in zip(area, things) if t.colour == colour) / sum(area) for colour in COLOURS]
    low, high = SIZES["small"][0], SIZES["large"][1]
    size = sum(min(max((thing.r - low) / (high - low), 0.0), 1.0) for thing in things) / len(things)
    colours = len({thing.colour for thing in things})
    richness = (min(len(things), MAX_THINGS) + min(colours, MAX_THINGS) - 2) / (2 * (MAX_THINGS - 1))
    saturation = sum(min(thing.strength / FULLEST, 1.0) for thing in things) / len(things)
    return [*shares, 2 * size - 1, 2 * richness - 1, 2 * saturation - 1]


def look(images: Tensor, prompts: Sequence[str | Spec] | str | Spec) -> Looks:
    """Read pictures beside their prompts.

    Args:
        images: (B, 3, 64, 64) floating in [0, 1].
        prompts: a text or Spec for each picture, or a single one for all.

    Raises:
        ValueError, TypeError: pictures or prompts that do not fit (`reading.check`, `judge.specs_of`).
    """
    pictures = check(images)
    prompts = [prompts] * len(pictures) if isinstance(prompts, (str, Spec)) else list(prompts)
    specs = specs_of(prompts, len(pictures))
    readings = [reading for chunk in pictures.split(CHUNK) for reading in read(chunk)] if len(pictures) else []
    verdicts = [verdict(reading, spec) for reading, spec in zip(readings, specs)]
    faithfulness = torch.tensor([(1 - HARD_SHARE) * v.score + HARD_SHARE * v.passed for v in verdicts])
    countless = torch.tensor([without_counting(reading, spec) for reading, spec in zip(readings, specs)])
    taste = torch.tensor([taste_row(reading.things) for reading in readings]).reshape(-1, len(TASTES))
    texts = tuple(prompt if isinstance(prompt, str) else realise(prompt) for prompt in prompts)
    return Looks(pictures, texts, tuple(specs), tuple(readings), tuple(verdicts), faithfulness.float(),
                 countless.float(), quality_parts(pictures), taste.float())


__all__ = ["FULLEST", "HARD_SHARE", "TASTES", "Looks", "look", "taste_row", "without_counting"]
