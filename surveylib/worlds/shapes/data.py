"""Training data of the Shapes world: pictures and captions, misaligned on purpose at documented rates.

Large text-to-image models learn from captions that are wrong or silent about half the picture, and from pictures that
are blurred, pale or badly framed. `FLAWS` does the same here, so that the pre-trained models need alignment for the
same reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, OPPOSITE, Group, Spec, is_held_out, realise, sample_spec
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    MAX_THINGS,
    SHAPES,
    SIZES,
    UNSEEN_PAIRS,
    Scene,
    Thing,
    place,
)

# Share of the training examples on which each flaw is tried, drawn independently. Those of pictures always come about.
# Those of captions do not where there is nothing to alter or the altered caption would be held out; the card of a model
# gives the measured share beside.
FLAWS = {
    "wrong caption": 0.10,  # one attribute of the caption is not the picture's
    "incomplete caption": 0.15,  # an attribute or a thing of the picture is not named
    "pale": 0.12,  # colours drawn towards grey
    "blurred": 0.10,  # Gaussian blur, sigma 1.2 to 2 pixels
    "off-centre": 0.12,  # the group is moved by 8 to 14 pixels, things may be cut by the edge
}
# Shares of the caption categories; None is the richer combination.
MIXTURE = {
    "single object": 0.08,
    "two objects": 0.14,
    "counting": 0.18,
    "colours": 0.14,
    "position": 0.16,
    "colour attribution": 0.14,
    "size": 0.08,
    None: 0.08,
}


@dataclass(frozen=True)
class Example:
    """One training example: the caption as written, the spec the picture was drawn for, and its flaws."""

    caption: str
    spec: Spec
    scene: Scene
    flaws: tuple[str, ...]


def scene_for(spec: Spec, rng: np.random.Generator) -> Scene:
    """A random scene that shows a spec; what the spec leaves open is drawn, never with a pair of `UNSEEN_PAIRS`
    (unless the spec names one)."""
    while True:
        things = []
        for group in spec.groups:
            size = group.size or str(rng.choice(list(SIZES)))
            allowed = [c for c in COLOURS if (c, group.shape) not in UNSEEN_PAIRS]
            shared = group.colour or (str(rng.choice(allowed)) if rng.random() < 0.5 else None)
            for _ in range(group.count):
                colour = shared or str(rng.choice(allowed))
                things.append((group.shape, colour, rng.uniform(*SIZES[size])))
        centres = place(np.array([r for *_, r in things]), rng, spec.relation)
        if centres is not None:
            break
    # White is the background of half the pictures whose prompt does not name one.
    background = spec.background or str(rng.choice(list(BACKGROUNDS), p=(0.5, 0.25, 0.25)))
    placed = (Thing(s, c, float(x), float(y), float(r)) for (s, c, r), (x, y) in zip(things, centres))
    return Scene(tuple(placed), background)


def _other(options, current: str, rng: np.random.Generator) -> str:
    return str(rng.choice([o for o in options if o != current]))


def change_one(spec: Spec, rng: np.random.Generator, kind: str | None = None) -> Spec | None:
    """The same spec with exactly one attribute changed.

    Args:
        kind: "shape", "colour", "size", "count", "relation", "background" or "swap" (the colours of two groups change
            places); None takes one at random of those the spec has.

    Returns:
        The changed spec, or None when the spec has no such attribute.
    """
    kinds = ["shape", "count"]
    kinds += ["colour"] if any(g.colour for g in spec.groups) else []
    kinds += ["size"] if any(g.size for g in spec.groups) else []
    kinds += ["relation"] if spec.relation else []
    kinds += ["background"] if spec.background else []
    kinds += ["swap"] if len({g.colour for g in spec.groups if g.colour}) == 2 else []
    kind = kind or str(rng.choice(kinds))
    if kind not in kinds:
        return None
    if kind == "relation":
        return replace(spec, relation=OPPOSITE[spec.relation])
    if kind == "background":
        return replace(spec, background=_other(BACKGROUNDS, spec.background, rng))
    groups = list(spec.groups)
    if kind == "swap":
        first, second = groups
        groups = [replace(first, colour=second.colour), replace(second, colour=first.colour)]
        return replace(spec, groups=tuple(groups))
    room = MAX_THINGS - spec.count  # how many things may be added
    has = {"shape": lambda g: True, "count": lambda g: g.count + room > 1}.get(kind, lambda g: getattr(g, kind))
    fits = [i for i, g in enumerate(groups) if has(g)]
    i = int(rng.choice(fits))
    group = groups[i]
    if kind == "shape":
        taken = {g.shape for g in groups}
        groups[i] = replace(group, shape=str(rng.choice([s for s in SHAPES if s not in taken])))
    elif kind == "colour":
        groups[i] = replace(group, colour=_other(COLOURS, group.colour, rng))
    elif kind == "size":
        groups[i] = replace(group, size=_other(SIZES, group.size, rng))
    else:
        counts = [n for n in range(1, group.count + room + 1) if n != group.count]
        groups[i] = replace(group, count=int(rng.choice(counts)))
    return replace(spec, groups=tuple(groups))


def drop_one(spec: Spec, rng: np.random.Generator) -> Spec | None:
    """The spec with one thing left unsaid: a colour, a size, the background, the relation or a whole group."""
    options: list[Spec] = []
    for i, group in enumerate(spec.groups):
        for field in ("colour", "size"):
            if getattr(group, field):
                groups = [replace(g, **{field: None}) if j == i else g for j, g in enumerate(spec.groups)]
                options.append(replace(spec, groups=tuple(groups)))
    if spec.background:
        options.append(replace(spec, background=None))
    if len(spec.groups) == 2:
        options += [replace(spec, groups=(g,), relation=None) for g in spec.groups]
        options += [replace(spec, relation=None)] if spec.relation else []
    return options[rng.integers(len(options))] if options else None


def _trainable(spec: Spec) -> bool:
    groups: tuple[Group, ...] = spec.groups
    if len(groups) == 2 and groups[0].shape == groups[1].shape:
        return False
    return not is_held_out(spec) and not spec.unseen_pair


def example(
    rng: np.random.Generator, flaws: dict[str, float] = FLAWS, mixture: dict[str | None, float] = MIXTURE
) -> Example:
    """Draw one training example; held-out tuples and unseen pairs never occur, neither drawn nor by a caption flaw."""
    names, shares = list(mixture), np.array(list(mixture.values()))
    while True:
        category = names[rng.choice(len(names), p=shares / shares.sum())]
        spec = sample_spec(category, rng)
        if _trainable(spec):
            break
    scene = scene_for(spec, rng)
    caption_spec, found = spec, []
    for flaw, alter in (("wrong caption", change_one), ("incomplete caption", drop_one)):
        if rng.random() < flaws.get(flaw, 0.0):
            altered = alter(caption_spec, rng)
            if altered is not None and _trainable(altered):
                caption_spec = altered
                found.append(flaw)
    found += [f for f in ("pale", "blurred", "off-centre") if rng.random() < flaws.get(f, 0.0)]
    if "off-centre" in found:
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(8, 14)
        scene = scene.shifted(far * np.cos(angle), far * np.sin(angle))
    return Example(realise(caption_spec, rng), spec, scene, tuple(found))


def blur(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W) pictures with reflected edges; sigma in pixels."""
    reach = max(1, round(3 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=pictures.dtype) / sigma) ** 2)
    line = (line / line.sum()).to(pictures)
    channels = pictures.shape[1]
    pictures = F.pad(pictures, (reach,) * 4, mode="reflect")
    pictures = F.conv2d(pictures, line.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(pictures, line.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def pictures_of(examples: list[Example], rng: np.random.Generator) -> Tensor:
    """Render examples with the flaws of their pictures: (B, 3, 64, 64) float32 in [0, 1]."""
    pictures = render([e.scene for e in examples])
    for i, e in enumerate(examples):
        if "pale" in e.flaws:
            grey = pictures[i].mean(0, keepdim=True)
            strength = float(rng.uniform(0.45, 0.65))
            pictures[i] = (1 - strength) * pictures[i] + strength * (0.5 * grey + 0.4)
        if "blurred" in e.flaws:
            pictures[i] = blur(pictures[i : i + 1], float(rng.uniform(1.2, 2.0)))[0]
    return pictures


def stream(batch: int, seed: int, flaws: dict[str, float] = FLAWS) -> Iterator[tuple[Tensor, list[str]]]:
    """Endless batches of (pictures (batch, 3, 64, 64) in [0, 1], captions), a function of the seed alone."""
    rng = np.random.default_rng(seed)
    while True:
        examples = [example(rng, flaws) for _ in range(batch)]
        yield pictures_of(examples, rng), [e.caption for e in examples]


__all__ = ["ALL_CATEGORIES", "FLAWS", "MIXTURE", "Example", "blur", "change_one", "drop_one", "example", "pictures_of",
           "scene_for", "stream"]
