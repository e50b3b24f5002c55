"""Fitting shapes to regions: which of the renderer's shapes a region is, and where and how large.

For every shape, the region's area and centroid give half-extent and centre (both keep under blur); that shape is drawn
by the renderer's own distance fields, sharp and blurred, and compared with the region by the cosine. Regions cut by the
picture's edge are compared over a grid of half-extents, with the canvas as a mask.

Generated things are ragged, shaded and of several hues, and people still name them. A region in doubt is looked at
again as a silhouette: coverage by contrast with the background, whatever the hue, and never over 1. Then limbs are
counted (five for a star, four for a cross).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from surveylib.worlds.shapes.regions import WINDOW, Planes, Regions, around, first_regions, planes, select
from surveylib.worlds.shapes.render import DISTANCES as DISTANCE
from surveylib.worlds.shapes.render import coverage, render
from surveylib.worlds.shapes.scenes import CANVAS, SHAPES, SIZES, Scene, Thing

BLURS = (0.0, 1.0, 1.4, 1.9)  # standard deviations at which shapes are drawn, pixels
LARGEST_BOX = 30  # pixels; a region with a longer box is a merged blob
SURE_FIT = 0.97  # cosine from which the best shape is taken without a look at the others
LEAST_FIT = 0.88  # cosine below which no shape is read
LEAST_LEAD = 1.15  # between the two: the second shape must misfit so many times as much as the best
SQUARISH = 1.5  # a circle must fit so many times better than a square: blur and raggedness round corners off
LEAST_LIMBS = 0.25  # least moment by which limbs are counted, see `limbs`
_WRONG_LIMBS = 0.85  # factor of the cosine of shapes with another number of limbs


@dataclass(frozen=True)
class Fits:
    """The best fit of every shape to every region: (N, 6) each."""

    cosine: Tensor
    x: Tensor
    y: Tensor
    r: Tensor
    visible: Tensor


@cache
def moments(shape: str) -> tuple[float, float]:
    """Area over r**2 and height of the centroid over r (downwards, from the box's centre) of a shape."""
    r = 24.0
    middle = torch.tensor([CANVAS / 2])
    cover = coverage(shape, middle, middle, torch.tensor([r]))[0]
    down = (torch.arange(CANVAS) + 0.5 - CANVAS / 2)[:, None]
    return float(cover.sum() / r**2), float((cover * down).sum() / cover.sum() / r)


@cache
def _areas(shape: str, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """What `cut_out` measures as area of a shape blurred by sigma: (areas ascending, half-extents).

    Blur keeps the sum of a thing's coverage but lowers the peak of thin shapes, by which `cut_out` divides.
    """
    radii = np.arange(3.0, 15.0, 0.5)
    middle = CANVAS / 2
    pictures = render([Scene((Thing(shape, "red", middle, middle, float(r)),)) for r in radii])
    if sigma:
        line = _blur_line(CANVAS, sigma)
        pictures = 1 - line @ (1 - pictures) @ line
    regions = first_regions(planes(pictures))
    return np.maximum.accumulate(regions.soft.sum((1, 2)).numpy()), radii


@cache
def _blur_line(size: int, sigma: float) -> Tensor:
    """A Gaussian blur along one axis as a symmetric (size, size) matrix; nothing comes in from outside."""
    apart = torch.arange(size)[:, None] - torch.arange(size)[None]
    return torch.exp(-0.5 * (apart / sigma) ** 2) / (sigma * (2 * torch.pi) ** 0.5)


def _compare(shape: str, regions: Regions, x: Tensor, y: Tensor, r: Tensor, blurs: Sequence[float]) -> list[Tensor]:
    """Cosine of regions with a drawn shape, the best of the blurs, and the share of it inside the canvas.

    Args:
        x, y, r: (N, K), K candidates a region.

    Returns:
        (N, K) each.
    """
    pixel = torch.arange(WINDOW) + 0.5
    ax, ay = regions.corner[:, 0, None] + pixel, regions.corner[:, 1, None] + pixel  # (N, W)
    inside = ((ay > 0) & (ay < CANVAS))[:, :, None] & ((ax > 0) & (ax < CANVAS))[:, None, :]
    across, down = ax[:, None, None, :] - x[..., None, None], ay[:, None, :, None] - y[..., None, None]
    across, down = torch.broadcast_tensors(across, down)
    sharp = (0.5 - DISTANCE[shape](across, down, r[..., None, None])).clamp(0, 1) * inside[:, None]
    visible = (sharp.sum((2, 3)) / (moments(shape)[0] * r**2)).clamp(max=1)
    soft, best = regions.soft[:, None], torch.zeros_like(x)
    for sigma in blurs:
        line = _blur_line(WINDOW, sigma) if sigma else None
        drawn = sharp if line is None else line @ sharp @ line
        product = (drawn * soft).sum((2, 3))
        best = torch.maximum(best, product / drawn.square().sum((2, 3)).sqrt().clamp(min=1e-6))
    return [(best / regions.length[:, None]).clamp(max=1), visible]


def _pick(values: Sequence[Tensor], chosen: Tensor) -> list[Tensor]:
    return [value.gather(1, chosen[:, None])[:, 0] for value in values]


def _fit_whole(shape: str, regions: Regions) -> list[Tensor]:
    """Half-extent and centre from area and centroid, for each blur."""
    pixel = torch.arange(WINDOW) + 0.5
    area = regions.soft.sum((1, 2)).clamp(min=1.0)
    x = (regions.soft.sum(1) * pixel).sum(1) / area + regions.corner[:, 0]
    middle = (regions.soft.sum(2) * pixel).sum(1) / area + regions.corner[:, 1]
    found = []
    for sigma in BLURS:
        r = torch.from_numpy(np.interp(area.numpy(), *_areas(shape, sigma))).float()
        y = middle - moments(shape)[1] * r
        cosine, visible = _compare(shape, regions, x[:, None], y[:, None], r[:, None], (sigma,))
        found.append(torch.stack([cosine[:, 0], x, y, r, visible[:, 0]]))
    table = torch.stack(found, 2)
    return _pick(table, table[0].argmax(1))


def _fit_cut(shape: str, regions: Regions) -> list[Tensor]:
    """Half-extents on a grid, the centre placed by the uncut sides of the box; then a finer grid about the best."""
    radii = torch.linspace(SIZES["small"][0] - 0.5, SIZES["large"][1] + 1, 15).expand(len(regions.picture), -1)
    left, top, right, bottom = (side[:, None].float() for side in regions.box.unbind(1))
    x = torch.where(left <= 0, right - radii, torch.where(right >= CANVAS, left + radii, (left + right) / 2))
    high = torch.where(bottom >= CANVAS, top + radii, bottom - radii)  # the upper or the lower side is uncut
    middle = torch.where((top > 0) & (bottom < CANVAS), (top + bottom) / 2, high)
    x, radii, y = torch.cat([x, x], 1), torch.cat([radii, radii], 1), torch.cat([high, middle], 1)
    cosine, _ = _compare(shape, regions, x, y, radii, BLURS[:2])
    x, y, r = (value[:, None] for value in _pick((x, y, radii), cosine.argmax(1)))
    dx, dy, dr = 0.4 * torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3).T
    x, y, r = x + dx, y + dy, r + 0.7 * dr
    cosine, visible = _compare(shape, regions, x, y, r, BLURS[:3])
    return _pick((cosine, x, y, r, visible), cosine.argmax(1))


def fit(regions: Regions) -> Fits:
    """Fit every shape to every region."""
    cut = (regions.box[:, :2] <= 0).any(1) | (regions.box[:, 2:] >= CANVAS).any(1)
    columns = []
    for shape in SHAPES:
        found = torch.empty(5, len(cut))
        for rows, rule in ((~cut, _fit_whole), (cut, _fit_cut)):
            if rows.any():
                found[:, rows] = torch.stack(rule(shape, select(regions, rows)))
        columns.append(found)
    return Fits(*torch.stack(columns, 2))


def misfits(fits: Fits) -> Tensor:
    """(N, 6) how far each shape is from the region, 0 for a perfect fit.

    Where the outline is clean enough to show corners (SURE_FIT), a circle that does not fit SQUARISH times as well as a
    square stands just behind the square.
    """
    misfit = 1 - fits.cosine
    circle, square = (misfit[:, SHAPES.index(name)] for name in ("circle", "square"))
    squarish = (square < SQUARISH * circle) & (circle <= 1 - SURE_FIT)
    behind = torch.where(squarish, torch.maximum(circle, square + 1e-4), circle)
    return torch.where(torch.tensor([shape == "circle" for shape in SHAPES]), behind[:, None], misfit)


def best_shapes(fits: Fits) -> Tensor:
    """(N,) index into SHAPES of the shape each region is nearest to."""
    return misfits(fits).argmin(1)


def best_cosines(fits: Fits) -> Tensor:
    """(N,) cosine of each region with its nearest shape."""
    return fits.cosine.gather(1, best_shapes(fits)[:, None])[:, 0]


def _in_doubt(fits: Fits) -> Tensor:
    first, second = misfits(fits).topk(2, dim=1, largest=False).values.unbind(1)
    return (fits.cosine.amax(1) < SURE_FIT) & (second < LEAST_LEAD * first)


def legible(regions: Regions, fits: Fits) -> Tensor:
    """(N,) bool: whether the nearest shape can be told.

    The box is not longer than LARGEST_BOX, and the shape fits well (SURE_FIT), or passably (LEAST_FIT) with no other
    shape near (LEAST_LEAD).
    """
    longest = (regions.box[:, 2:] - regions.box[:, :2]).amax(1)
    return (longest <= LARGEST_BOX) & (best_cosines(fits) >= LEAST_FIT) & ~_in_doubt(fits)


def silhouettes(view: Planes, regions: Regions) -> Regions:
    """The regions with coverage by contrast, whatever the hue: 1 from the median contrast of the region on."""
    step = torch.arange(WINDOW)
    down = (regions.corner[:, 1, None] + step).clamp(0, CANVAS - 1)[:, :, None]
    across = (regions.corner[:, 0, None] + step).clamp(0, CANVAS - 1)[:, None, :]
    contrast = view.contrast[regions.picture[:, None, None], down, across]
    full = contrast.masked_fill(~regions.own, torch.nan).flatten(1).nanmedian(1).values.clamp(min=1e-3)
    soft = (contrast / full[:, None, None]).clamp(max=1) * (around(regions.own, 3) & regions.free)
    own = soft > 0.4
    rows, columns = own.any(2), own.any(1)
    first, last = (lambda m: m.float().argmax(1)), (lambda m: WINDOW - m.flip(1).float().argmax(1))
    sides = torch.stack([first(columns), first(rows), last(columns), last(rows)], 1)
    length = soft.square().sum((1, 2)).sqrt().clamp(min=1e-6)
    return replace(regions, soft=soft, own=own, box=sides + regions.corner.repeat(1, 2), length=length)


def limbs(soft: Tensor) -> Tensor:
    """(N, 2) moments of order four and five of masks (N, W, W) about their centroids: |sum m r^2 e^(ik a)| / sum m r^2.

    A drawn cross has about (0.5, 0), a star (0, 0.5), a square (0.3, 0); raggedness and blur lower them.
    """
    soft, pixel = soft.clamp(0, 1), torch.arange(soft.shape[-1]) + 0.5
    area = soft.sum((1, 2)).clamp(min=1e-6)[:, None]
    across = pixel - (soft.sum(1) * pixel).sum(1, keepdim=True) / area
    down = pixel - (soft.sum(2) * pixel).sum(1, keepdim=True) / area
    point = torch.complex(*torch.broadcast_tensors(across[:, None, :], down[:, :, None]))
    weight = soft * point.abs().square()
    turn = point / point.abs().clamp(min=1e-3)
    total = weight.sum((1, 2)).clamp(min=1e-6)
    return torch.stack([(weight * turn**k).sum((1, 2)).abs() / total for k in (4, 5)], 1)


def look_again(view: Planes, regions: Regions, fits: Fits) -> Fits:
    """Fit the regions that no shape fits well once more, as silhouettes; keep what fits better, and count limbs."""
    rows = (best_cosines(fits) < SURE_FIT).nonzero()[:, 0]
    if not len(rows):
        return fits
    shown = silhouettes(view, select(regions, rows))
    again = fit(shown)
    better = best_cosines(again) > best_cosines(fits)[rows]
    four, five = limbs(shown.soft).unbind(1)
    star = torch.tensor([shape == "star" for shape in SHAPES])
    wrong = ((five > four) & (five >= LEAST_LIMBS))[:, None] & ~star
    wrong = wrong | (((four > five) & (four >= LEAST_LIMBS))[:, None] & star)
    columns = {}
    for name in Fits.__dataclass_fields__:
        column = getattr(fits, name).clone()
        column[rows] = torch.where(better[:, None], getattr(again, name), column[rows])
        columns[name] = column
    columns["cosine"][rows] *= torch.where(wrong, _WRONG_LIMBS, 1.0)
    return Fits(**columns)
