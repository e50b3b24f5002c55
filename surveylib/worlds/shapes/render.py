"""The renderer of the Shapes world: scenes to anti-aliased 64 x 64 pictures, all at once.

Each thing is a signed distance field d (negative inside, in pixels). Its coverage of a pixel is clip(1/2 - d, 0, 1),
a one-pixel wide ramp at the edge, and things are painted over the background in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surveylib.worlds.shapes.scenes import BACKGROUNDS, CANVAS, COLOURS, Scene


def _box(x: Tensor, y: Tensor, half_x: Tensor, half_y: Tensor) -> Tensor:
    return torch.maximum(x.abs() - half_x, y.abs() - half_y)


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.hypot(x, y) - r


def _ring(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74 * r).abs() - 0.26 * r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return _box(x, y, r, r)


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, r, 0.32 * r), _box(x, y, 0.32 * r, r))


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    # Corners (0, -r), (r, r), (-r, r): the sides are |x| 2/sqrt(5) - (y + r)/sqrt(5) <= 0, the base y <= r.
    return torch.maximum((2 * x.abs() - (y + r)) / 5**0.5, y - r)


def _star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Five points; the plane is folded onto one edge (a polygon distance by reflections)."""
    # The upright star of outer radius q spans y in [-q, 0.809 q]: scale and shift it so that its box is centred.
    q = r / 0.951
    x, y = x.abs(), -(y - 0.0955 * q)
    kx, ky, inner = 0.809016994, -0.587785252, 0.46
    fold = 2 * (kx * x + ky * y).clamp(min=0)
    x, y = x - fold * kx, y - fold * ky
    fold = 2 * (-kx * x + ky * y).clamp(min=0)
    x, y = x + fold * kx, y - fold * ky
    x, y = x.abs(), y - q
    bx, by = -inner * ky, inner * kx - 1.0
    along = ((x * bx + y * by) / (bx * bx + by * by)).clamp(min=0)
    along = torch.minimum(along, q)
    return torch.hypot(x - bx * along, y - by * along) * torch.sign(y * bx - x * by)


DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring}


def coverage(shape: str, x: Tensor, y: Tensor, r: Tensor, canvas: int = CANVAS) -> Tensor:
    """How much of each pixel n things of one shape cover.

    Args:
        shape: one of `scenes.SHAPES`.
        x, y, r: (n,) centres and half-extents in pixels.
        canvas: edge of the picture in pixels.

    Returns:
        (n, canvas, canvas) in [0, 1].
    """
    if shape not in DISTANCES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(DISTANCES)}")
    pixel = torch.arange(canvas, dtype=torch.float32) + 0.5
    across = pixel[None, None, :] - x[:, None, None]
    down = pixel[None, :, None] - y[:, None, None]
    across, down = torch.broadcast_tensors(across, down)
    return (0.5 - DISTANCES[shape](across, down, r[:, None, None])).clamp(0, 1)


def render(scenes: Sequence[Scene]) -> Tensor:
    """Draw scenes.

    Returns:
        (B, 3, 64, 64) float32 in [0, 1].
    """
    pictures = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes]).reshape(-1, 3, 1, 1)
    pictures = pictures.expand(-1, -1, CANVAS, CANVAS).clone()
    things = [(b, k, thing) for b, scene in enumerate(scenes) for k, thing in enumerate(scene.things)]
    if not things:
        return pictures
    cover = torch.empty(len(things), CANVAS, CANVAS)
    for shape in DISTANCES:
        rows = [i for i, (_, _, thing) in enumerate(things) if thing.shape == shape]
        if rows:
            boxes = [(things[i][2].x, things[i][2].y, things[i][2].r) for i in rows]
            x, y, r = torch.tensor(boxes, dtype=torch.float32).T
            cover[rows] = coverage(shape, x, y, r)
    paint = torch.tensor([COLOURS[thing.colour] for _, _, thing in things]).reshape(-1, 3, 1, 1)
    for layer in range(max(k for _, k, _ in things) + 1):  # painter's order, all pictures at once
        rows = [i for i, (_, k, _) in enumerate(things) if k == layer]
        where = [things[i][0] for i in rows]
        alpha = cover[rows].unsqueeze(1)
        pictures[where] = pictures[where] * (1 - alpha) + paint[rows] * alpha
    return pictures
