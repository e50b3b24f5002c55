"""Rich feedback of the Shapes world: where a picture is wrong or flawed, and which words it does not show.

The kinds of marks are those of RichHF-18K (arXiv 2312.10240): a heatmap of artifacts, a heatmap of misalignment and a
flag for each word of the prompt. They follow from the judge's assignment of things to the prompt's groups and from the
measurements of picture quality; nothing is drawn at random here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.worlds.shapes.fitting import best_shapes, legible
from surveylib.worlds.shapes.judge import POSITION_COSINE, match
from surveylib.worlds.shapes.looks import Looks
from surveylib.worlds.shapes.prompts import COUNTS, Spec
from surveylib.worlds.shapes.quality import CHROMA, EDGE, TEXTURE, edge_widths
from surveylib.worlds.shapes.reading import (
    Planes,
    Reading,
    Seen,
    find_things,
    planes,
    strengths,
)
from surveylib.worlds.shapes.scenes import BACKGROUNDS, CANVAS, COLOURS, SHAPES, SIZES

BEYOND = 6.0  # pixels about a thing's box in which its blur is not taken for dirt
LEAST = 0.1  # flaws weaker than this share of their ramp are not marked
_DIRECTIONS = {"left", "right", "above", "over", "below", "under"}
_PLURALS = {shape + ending: shape for shape in SHAPES for ending in ("", "s", "es")}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a picture.

    Attributes:
        part: the judge's part it belongs to: "shape 1", "count 2", "relation", "background", "nothing else" ...
        things: numbers of the things (of the reading) in which it shows; empty for what is not there to be seen.
    """

    part: str
    things: tuple[int, ...] = ()


def faults(reading: Reading, spec: Spec, counts: bool = True) -> list[Fault]:
    """What keeps a picture from showing its prompt, by the judge's best assignment.

    A group of which nothing is there fails in its shape, colour and size as well as in its count. With `counts` False
    wrong numbers and spare things are overlooked, as by the AI annotator.
    """
    found, things = match(spec, reading.things), reading.things
    slots = [k for k, group in enumerate(spec.groups) for _ in range(group.count)]
    out: list[Fault] = []
    for k, group in enumerate(spec.groups):
        own = [i for i, slot in zip(found.chosen, slots) if slot == k and i < len(things)]
        for name in ("shape", "colour", "size"):
            asked = getattr(group, name)
            wrong = tuple(i for i in own if asked and not things[i].has(name, asked))
            if wrong or (asked and not own):
                out.append(Fault(f"{name} {k + 1}", wrong))
        spare = _spare_of(reading, spec, found.chosen, k)
        if counts and (spare or len(own) < group.count):
            out.append(Fault(f"count {k + 1}", spare))
    strange = tuple(i for i in range(len(things)) if i not in found.chosen)
    if counts and strange:
        out.append(Fault("nothing else", strange))
    if spec.relation and found.relation <= POSITION_COSINE:
        out.append(Fault("relation", tuple(i for i in found.chosen if i < len(things))))
    if spec.background and reading.background != spec.background:
        out.append(Fault("background"))
    return out


def _spare_of(reading: Reading, spec: Spec, chosen: Sequence[int], k: int) -> tuple[int, ...]:
    """Unassigned things of group k's shape (the first group of that shape has them)."""
    owner = {group.shape: j for j, group in reversed(list(enumerate(spec.groups)))}
    return tuple(i for i, t in enumerate(reading.things) if i not in chosen and owner.get(t.shape) == k)


def word_parts(prompt: str) -> list[str]:
    """For each word of prompt.split() the judge's part it stands for, or "" ("a picture of", "and", "on").

    A number word is its group's count; articles are not. A relation is marked at its direction word.
    """
    out, group = [], 1
    joints = {"and", *_DIRECTIONS}
    for word in (re.sub(r"[,.]", "", word.lower()) for word in prompt.split()):
        if word in COUNTS[1:] or word == "one":
            out.append(f"count {group}")
        elif word in SIZES:
            out.append(f"size {group}")
        elif word in COLOURS:
            out.append(f"colour {group}")
        elif word in _PLURALS:
            out.append(f"shape {group}")
        elif word in BACKGROUNDS:
            out.append("background")
        else:
            out.append("relation" if word in _DIRECTIONS else "")
        group = 2 if word in joints else group
    return out


def misaligned_words(prompt: str, found: Sequence[Fault]) -> tuple[bool, ...]:
    """Per word of prompt.split(): True where the picture does not show it."""
    parts = {fault.part for fault in found}
    return tuple(part in parts for part in word_parts(prompt))


def _square(x: float, y: float, reach: float) -> Tensor:
    pixel = torch.arange(CANVAS) + 0.5
    return ((pixel - y).abs() <= reach)[:, None] & ((pixel - x).abs() <= reach)[None, :]


def _box(thing: Seen) -> Tensor:
    """(64, 64) bool: the box of a thing and one pixel around it."""
    return _square(thing.x, thing.y, thing.r + 1)


def misalignment_map(reading: Reading, found: Sequence[Fault]) -> Tensor:
    """(64, 64) in {0, 1}: the boxes of the things at fault; a wrong background is everything outside all boxes."""
    heat = torch.zeros(CANVAS, CANVAS)
    for i in {i for fault in found for i in fault.things}:
        heat[_box(reading.things[i])] = 1.0
    if any(fault.part == "background" for fault in found):
        things = torch.stack([_box(thing) for thing in reading.things]).any(0) if reading.things else heat.bool()
        heat[~things] = 1.0
    return heat


def _flaw(value: Tensor, best: float, worst: float) -> Tensor:
    """0 at `best`, 1 at `worst` and past it, 0 under LEAST."""
    share = ((value - best) / (worst - best)).clamp(0, 1)
    return share * (share >= LEAST)


def _texture(view: Planes, pictures: Tensor, things: Tensor) -> Tensor:
    """(B, 64, 64) how dirty the background is near a pixel, outside `things` (B, 64, 64) bool."""
    residual = (pictures - view.background[:, :, None, None]).square().mean(1, keepdim=True)
    far = (~things)[:, None].float()
    local = F.avg_pool2d(residual * far, 5, 1, 2) / F.avg_pool2d(far, 5, 1, 2).clamp(min=1e-6)
    return (_flaw(local.sqrt(), *TEXTURE) * far)[:, 0]


def artifact_maps(pictures: Tensor) -> Tensor:
    """Where checked pictures (B, 3, 64, 64) are flawed: (B, 64, 64) in [0, 1].

    Marked are the boxes of things that are blurred, pale, cut by the edge or fit no shape, as strongly as they are, and
    the dirt of the background. The ramps are those of `quality`. Composition has no place and is not marked.
    """
    if not len(pictures):
        return torch.zeros(0, CANVAS, CANVAS)
    view = planes(pictures)
    regions, fits = find_things(view)
    best = best_shapes(fits)[:, None]
    x, y, r, visible = (v.gather(1, best)[:, 0] for v in (fits.x, fits.y, fits.r, fits.visible))
    flaws = torch.stack([
        _flaw(edge_widths(regions.soft), *EDGE),
        _flaw(strengths(regions.chroma), CHROMA[1], CHROMA[0]),
        _flaw(visible, 1.0, 0.0),
        (~legible(regions, fits)).float(),
    ]).amax(0)
    heat = torch.zeros(len(pictures), CANVAS, CANVAS)
    things = torch.zeros_like(heat, dtype=torch.bool)
    for picture, *where, flaw in zip(*(column.tolist() for column in (regions.picture, x, y, r, flaws))):
        things[picture] |= _square(*where[:2], where[2] + BEYOND)
        box = _square(*where[:2], where[2] + 1)
        heat[picture][box] = heat[picture][box].clamp(min=flaw)
    return torch.maximum(heat, _texture(view, pictures, things))


def marks(seen: Looks, counts: bool = True) -> list[tuple[list[Fault], Tensor, Tensor]]:
    """For each picture: its faults, its misalignment map and its artifact map."""
    rows = [faults(reading, spec, counts) for reading, spec in zip(seen.readings, seen.specs)]
    maps = artifact_maps(seen.pictures)
    return [(row, misalignment_map(reading, row), heat) for row, reading, heat in zip(rows, seen.readings, maps)]


__all__ = ["Fault", "artifact_maps", "faults", "marks", "misaligned_words", "misalignment_map", "word_parts"]
