"""Scenes, prompts and an independent rule for "the scene shows the spec", shared by the tests of judge and reader."""

from itertools import permutations

import numpy as np
import torch

from surveylib.worlds.shapes.data import scene_for
from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, sample_spec
from surveylib.worlds.shapes.render import render


def draw(n, seed=0):
    """n specs over all categories (and the richer combination), a scene for each, the pictures, and the generator."""
    rng = np.random.default_rng(seed)
    kinds = [*ALL_CATEGORIES, None]
    specs = [sample_spec(kinds[i % len(kinds)], rng) for i in range(n)]
    scenes = [scene_for(spec, rng) for spec in specs]
    return specs, scenes, render(scenes), rng


def noisy(pictures, sigma=0.05, seed=0):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))
    return (pictures + sigma * noise).clamp(0, 1)


def pale(pictures, strength):
    return (1 - strength) * pictures + strength * (0.5 * pictures.mean(1, keepdim=True) + 0.4)


def shows(scene, spec):
    """Whether a scene satisfies a spec, from the scene's own numbers."""
    if len(scene.things) != spec.count or (spec.background or scene.background) != scene.background:
        return False
    slots = [(k, group) for k, group in enumerate(spec.groups) for _ in range(group.count)]
    far = {"left of": lambda a, b: b.x - a.x, "right of": lambda a, b: a.x - b.x,
           "above": lambda a, b: b.y - a.y, "below": lambda a, b: a.y - b.y}.get(spec.relation)
    for order in permutations(scene.things):
        fits = all(thing.shape == group.shape and group.colour in (None, thing.colour)
                   and group.size in (None, thing.size) for thing, (_, group) in zip(order, slots))
        sides = [(a, b) for a, (i, _) in zip(order, slots) for b, (j, _) in zip(order, slots) if i < j]
        if fits and (far is None or all(far(a, b) > 0 for a, b in sides)):
            return True
    return False
