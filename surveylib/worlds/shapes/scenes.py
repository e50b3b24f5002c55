"""Scenes of the Shapes world: what stands in a picture, before any pixel is drawn.

A scene is one to four things on a plain background. Lengths are pixels of the 64 x 64 canvas, the origin is the
upper left corner, x grows to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

CANVAS = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (0.86, 0.16, 0.16),
    "orange": (0.96, 0.54, 0.10),
    "yellow": (0.96, 0.86, 0.15),
    "green": (0.16, 0.66, 0.28),
    "cyan": (0.15, 0.78, 0.84),
    "blue": (0.16, 0.31, 0.86),
    "purple": (0.55, 0.22, 0.76),
    "pink": (0.96, 0.48, 0.72),
}
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "grey": (0.72, 0.72, 0.72), "black": (0.08, 0.08, 0.08)}
SIZES = {"small": (6.5, 8.0), "large": (10.5, 12.5)}  # half-extents in pixels
SIZE_BOUNDARY = 9.25  # a thing with a smaller half-extent is "small"
GAP = 3.0  # least distance between the boxes of two things, pixels
MARGIN = 2.0  # least distance between a box and the edge of the canvas, pixels
MAX_THINGS = 4

# Pairs that no training picture and no training caption contains: the generalisation suite asks for them.
UNSEEN_PAIRS = (("purple", "star"), ("green", "triangle"), ("orange", "ring"), ("pink", "cross"))


def _known(kind: str, value: str, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {kind} {value!r}; known: {', '.join(allowed)}")


@dataclass(frozen=True)
class Thing:
    """One coloured shape. (x, y) is the centre of its box and r the half-extent of the box, in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    r: float

    def __post_init__(self):
        _known("shape", self.shape, SHAPES)
        _known("colour", self.colour, COLOURS)
        if not self.r > 0:
            raise ValueError(f"r={self.r} must be a positive half-extent in pixels")

    @property
    def size(self) -> str:
        """"small" or "large"."""
        return "small" if self.r < SIZE_BOUNDARY else "large"


@dataclass(frozen=True)
class Scene:
    """Up to four things on a plain background; an empty scene is allowed (a blank picture)."""

    things: tuple[Thing, ...]
    background: str = "white"

    def __post_init__(self):
        _known("background", self.background, BACKGROUNDS)
        if len(self.things) > MAX_THINGS:
            raise ValueError(f"{len(self.things)} things in a scene; at most {MAX_THINGS} are allowed")

    def shifted(self, dx: float, dy: float) -> Scene:
        """The same scene moved by (dx, dy) pixels; things may leave the canvas."""
        return replace(self, things=tuple(replace(t, x=t.x + dx, y=t.y + dy) for t in self.things))


def place(radii: np.ndarray, rng: np.random.Generator, side: str | None = None, tries: int = 64) -> np.ndarray | None:
    """Centres for boxes of the given half-extents: no two closer than GAP, all inside MARGIN, the whole centred.

    Args:
        radii: (n,) half-extents in pixels.
        rng: source of randomness.
        side: None, or where the first box stands with respect to the second: "left of", "right of", "above", "below".
            The displacement along that axis then exceeds the other one by at least 4 pixels.
        tries: layouts drawn, of which the first that fits is taken.

    Returns:
        (n, 2) centres, or None when no layout was found (the caller draws other radii).
    """
    n = len(radii)
    low, high = (MARGIN + radii)[:, None], (CANVAS - MARGIN - radii)[:, None]
    reach, pairs = radii[:, None] + radii[None] + GAP, np.triu_indices(n, 1)
    centres = rng.uniform(low, high, size=(tries, n, 2))
    box_low, box_high = (centres - radii[:, None]).min(1), (centres + radii[:, None]).max(1)
    # Move each group's box to the middle of the canvas, up to a jitter: a well composed picture.
    centres += (CANVAS / 2 - (box_low + box_high) / 2 + rng.uniform(-2, 2, size=(tries, 2)))[:, None]
    apart = np.abs(centres[:, :, None] - centres[:, None]).max(-1) - reach
    fits = (apart[:, *pairs] >= 0).all(1) & ((centres >= low) & (centres <= high)).all((1, 2))
    for i in np.flatnonzero(fits):
        if side is None or relation_of(*centres[i, 0], *centres[i, 1]) == side:
            return centres[i]
    return None


def relation_of(x1: float, y1: float, x2: float, y2: float, lead: float = 4.0) -> str | None:
    """Where the first point stands with respect to the second, or None when neither axis leads by `lead` pixels."""
    dx, dy = x1 - x2, y1 - y2
    if abs(dx) >= abs(dy) + lead:
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= abs(dx) + lead:
        return "above" if dy < 0 else "below"
    return None
