"""Reading pictures of the Shapes world: which things stand where, in which shape, colour and size, on which background.

The reader inverts the renderer, for a whole batch at once:

1. The background is the median of the picture's border. What is left is looked at in the plane of chroma (red, green
   and blue less their mean): backgrounds are grey, so a thing's chroma is its coverage times its colour, whatever lies
   behind it, and a pale thing keeps its direction (hue).
2. Connected regions of chroma are cut out, with one call of `scipy.ndimage.label` for the batch.
3. For every shape, the region's area and centroid give half-extent and centre (both keep under blur); that shape is
   drawn by the renderer's own distance fields, sharp and blurred, and compared with the region by the cosine.
   Regions cut by the picture's edge are compared over a grid of half-extents, with the canvas as a mask.
4. A region that fits badly is tried again, split by hue and at a higher threshold; the parts are kept if they fit.

Lengths are pixels of the 64 x 64 canvas, origin in the upper left corner, y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from surveylib.worlds.shapes.render import DISTANCES as DISTANCE
from surveylib.worlds.shapes.render import coverage, render
from surveylib.worlds.shapes.scenes import BACKGROUNDS, CANVAS, COLOURS, SHAPES, SIZE_BOUNDARY, SIZES, Scene, Thing

WINDOW = 32  # edge of the crop that holds one region
PAD = WINDOW // 2 + 1
LOWEST_CHROMA = 0.15  # of the palette's; less is background
LEAST_AREA = 18  # pixels; smaller specks are dirt, not things
LARGEST_BOX = 30  # pixels; a region with a longer box is a merged blob
LEAST_FIT = 0.92  # cosine between region and drawn shape below which the shape is unreadable
LEAST_VISIBLE = 0.45  # share of a cut thing's area inside the canvas for it to count as present
MOST_REGIONS = 8
LARGEST_SPREAD = 0.21  # tangent of the hue's standard deviation within a thing; more means several colours
HUE_TOLERANCE = 14.0  # degrees, the width of the soft colour score
BLURS = (0.0, 1.0, 1.4, 1.9)  # standard deviations at which shapes are drawn, pixels
_SECTORS = 720  # directions of the chroma plane in the table of hues
_CHROMA = torch.tensor([[2.0, -1.0, -1.0], [0.0, 3**0.5, -(3**0.5)]]) / 6**0.5  # orthonormal, across the grey axis
_PALETTE = torch.tensor(list(COLOURS.values())) @ _CHROMA.T  # (8, 2)
_PALETTE_NORM = _PALETTE.norm(dim=1)
_PALETTE_UNIT = _PALETTE / _PALETTE_NORM[:, None]


@dataclass(frozen=True)
class Seen:
    """One thing as read.

    (x, y) and r are the centre and the half-extent of its box in pixels. `visible` is the share of its area inside the
    canvas, `fit` the cosine between the region and the drawn shape, `confidence` the product of the scores of what was
    read. `shape` is None when no shape fits, `colour` when the hue is none of the palette's. `strength` is its chroma
    over the palette's (1 for a full colour, less when pale). The scores are in [0, 1] by name.
    """

    shape: str | None
    colour: str | None
    x: float
    y: float
    r: float
    visible: float
    fit: float
    strength: float
    shape_scores: dict[str, float]
    colour_scores: dict[str, float]

    @property
    def size(self) -> str:
        """"small" or "large", by `scenes.SIZE_BOUNDARY`."""
        return "small" if self.r < SIZE_BOUNDARY else "large"

    @property
    def size_scores(self) -> dict[str, float]:
        """Soft size: 1/2 at the boundary, 0.9 a pixel away from it."""
        large = float(1 / (1 + np.exp(-2.2 * (self.r - SIZE_BOUNDARY))))
        return {"small": 1 - large, "large": large}

    @property
    def confidence(self) -> float:
        """Score of the shape times score of the colour; 0 when either was not read."""
        if self.shape is None or self.colour is None:
            return 0.0
        return self.shape_scores[self.shape] * self.colour_scores[self.colour]


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its things, its background (None when coloured or restless), and whether it is readable."""

    things: tuple[Seen, ...]
    background: str | None
    background_scores: dict[str, float]
    readable: bool
    reason: str  # "" when readable


@dataclass(frozen=True)
class Regions:
    """Regions of a batch of pictures, as arrays of length N."""

    picture: Tensor  # index of the picture
    corner: Tensor  # (N, 2) x and y of the window's upper left pixel
    box: Tensor  # (N, 4) left, top, right, bottom in pixels, right and bottom exclusive
    soft: Tensor  # (N, WINDOW, WINDOW) coverage, 1 inside
    own: Tensor  # (N, WINDOW, WINDOW) bool, the region itself
    chroma: Tensor  # (N, 2) its colour in the chroma plane
    length: Tensor  # (N,) root of the sum of squares of `soft`, less what the picture's noise adds
    spread: Tensor  # (N,) standard deviation of the hue about its mean, as a tangent


@dataclass(frozen=True)
class Fits:
    """The best fit of every shape to every region: (N, 6) each."""

    cosine: Tensor
    x: Tensor
    y: Tensor
    r: Tensor
    visible: Tensor


def check(pictures: Tensor) -> Tensor:
    """Validate pictures at the border: (B, 3, 64, 64), floating, finite; returns them float32 on the CPU in [0, 1].

    Raises:
        ValueError: another shape, an integer dtype or values that are not finite.
    """
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, CANVAS, CANVAS):
        found = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ValueError(f"pictures must be a tensor (B, 3, {CANVAS}, {CANVAS}) in [0, 1]; got {found}")
    if not pictures.is_floating_point():
        raise ValueError(f"pictures must be floating in [0, 1]; got {pictures.dtype}: divide bytes by 255")
    pictures = pictures.detach().to("cpu", torch.float32)
    if not torch.isfinite(pictures).all():
        raise ValueError("pictures hold values that are not finite (nan or inf)")
    return pictures.clamp(0, 1)


@dataclass(frozen=True)
class Planes:
    """A batch of pictures relative to their backgrounds."""

    background: Tensor  # (B, 3) median of the border
    restless: Tensor  # (B,) median distance of the border's pixels from it
    noise: Tensor  # (B,) standard deviation of a chroma coordinate on the border, robust
    chroma: Tensor  # (B, 64, 64, 4): as it is and smoothed
    light: Tensor  # (B, 64, 64) mean of the channels less the background's
    strength: Tensor  # (B, 64, 64) smoothed chroma over the nearest palette colour's
    hue: Tensor  # (B, 64, 64) index of the nearest palette colour


def _smooth(maps: Tensor) -> Tensor:
    """Binomial 3 x 3 smoothing of (B, C, H, W), edges repeated."""
    maps = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    maps = (maps[..., :-2] + 2 * maps[..., 1:-1] + maps[..., 2:]) / 4
    return (maps[..., :-2, :] + 2 * maps[..., 1:-1, :] + maps[..., 2:, :]) / 4


def planes(pictures: Tensor) -> Planes:
    """Background, chroma, lightness and hue of checked pictures (B, 3, 64, 64)."""
    top, sides = pictures[:, :, [0, 1, -2, -1], :], pictures[:, :, 2:-2, [0, 1, -2, -1]]
    border = torch.cat([top.flatten(2), sides.flatten(2)], 2)  # (B, 3, n)
    background = border.median(2).values
    beside = border - background[:, :, None]
    restless = beside.square().sum(1).sqrt().median(1).values
    noise = 1.4826 * torch.einsum("c,bcn->bn", _CHROMA[0], beside).abs().median(1).values
    relative = pictures - background[:, :, None, None]
    light = relative.mean(1)
    chroma = torch.stack([(relative * line[:, None, None]).sum(1) for line in _CHROMA], 1)
    smooth = _smooth(chroma)
    a, b = smooth.unbind(1)
    sector = (torch.atan2(b, a) * (_SECTORS / (2 * torch.pi)) + _SECTORS / 2).long().clamp(0, _SECTORS - 1)
    hue = _hue_of_sector()[sector]
    strength = (a * a + b * b).sqrt() / _PALETTE_NORM[hue]
    return Planes(background, restless, noise, torch.cat([chroma, smooth], 1).permute(0, 2, 3, 1), light, strength, hue)


@cache
def _hue_of_sector() -> Tensor:
    """Nearest palette colour for each of _SECTORS directions of the chroma plane, from -pi on."""
    angle = (torch.arange(_SECTORS) + 0.5) * (2 * torch.pi / _SECTORS) - torch.pi
    return (torch.stack([angle.cos(), angle.sin()], 1) @ _PALETTE_UNIT.T).argmax(1)


_CONNECTED = np.zeros((3, 3, 3), dtype=bool)
_CONNECTED[1] = True  # eight neighbours within a picture, none across pictures


def label(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connected regions of at least LEAST_AREA pixels.

    Args:
        mask: (S, 64, 64) bool, one slice a picture (or a part of one).

    Returns:
        labels (S, 64, 64) with 0 outside and i + 1 on region i; (N,) slice of each; (N, 4) boxes (left, top, right,
        bottom; the last two exclusive).
    """
    labels, count = ndimage.label(mask, structure=_CONNECTED)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= LEAST_AREA
    keep[0] = False
    order = np.zeros(count + 1, dtype=np.int32)
    order[keep] = np.arange(1, keep.sum() + 1)
    places = [place for place, kept in zip(ndimage.find_objects(labels), keep[1:]) if kept]
    slices = np.array([p[0].start for p in places], dtype=np.int64)
    boxes = [(p[2].start, p[1].start, p[2].stop, p[1].stop) for p in places]
    return order[labels], slices, np.array(boxes, dtype=np.int64).reshape(-1, 4)


def cut_out(view: Planes, labels: np.ndarray, slices: np.ndarray, boxes: np.ndarray, picture: np.ndarray) -> Regions:
    """The regions of `label` as windows. `picture` (S,) says which picture each slice of `labels` belongs to."""
    n = len(slices)
    which = torch.as_tensor(picture)[torch.as_tensor(slices)]
    box = torch.as_tensor(boxes)
    corner = torch.div(box[:, :2] + box[:, 2:] - WINDOW, 2, rounding_mode="floor")
    step = torch.arange(WINDOW)
    down, across = (corner[:, 1, None] + step)[:, :, None], (corner[:, 0, None] + step)[:, None, :]
    inside = (down >= 0) & (down < CANVAS) & (across >= 0) & (across < CANVAS)
    down, across = down.clamp(0, CANVAS - 1), across.clamp(0, CANVAS - 1)
    marks = torch.as_tensor(labels)[torch.as_tensor(slices)[:, None, None], down, across] * inside
    own = marks == torch.arange(1, n + 1)[:, None, None]
    near = F.max_pool2d(own[:, None].float(), 5, 1, 2)[:, 0].bool() & (own | (marks == 0)) & inside
    chroma, smooth = view.chroma[which[:, None, None], down, across].split(2, dim=-1)  # (N, W, W, 2)
    mean = (chroma * own[..., None]).sum((1, 2)) / own.sum((1, 2))[:, None].clamp(min=1)
    unit = mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-6)
    along = (chroma * unit[:, None, None]).sum(-1)
    ranked = along.masked_fill(~own, -1.0).flatten(1).sort(1, descending=True).values
    full = ranked.gather(1, (own.sum((1, 2)) * 3 // 10)[:, None])[:, 0].clamp(min=1e-3)  # its 70th percentile
    soft = along / full[:, None, None] * near
    beside = (smooth[..., 1] * unit[:, None, None, 0] - smooth[..., 0] * unit[:, None, None, 1]) * own
    spread = (beside.square().sum((1, 2)) / own.sum((1, 2))).sqrt() / full
    added = near.sum((1, 2)) * (view.noise[which] / full).square()
    power = soft.square().sum((1, 2))
    length = torch.maximum(power - added, 0.5 * power).sqrt().clamp(min=1e-6)
    return Regions(which, corner, box, soft, own, unit * full[:, None], length, spread)


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
    regions = _first_regions(planes(pictures))
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


def _select(regions: Regions, rows: Tensor) -> Regions:
    return Regions(*(getattr(regions, name)[rows] for name in Regions.__dataclass_fields__))


def fit(regions: Regions) -> Fits:
    """Fit every shape to every region."""
    cut = (regions.box[:, :2] <= 0).any(1) | (regions.box[:, 2:] >= CANVAS).any(1)
    columns = []
    for shape in SHAPES:
        found = torch.empty(5, len(cut))
        for rows, rule in ((~cut, _fit_whole), (cut, _fit_cut)):
            if rows.any():
                found[:, rows] = torch.stack(rule(shape, _select(regions, rows)))
        columns.append(found)
    return Fits(*torch.stack(columns, 2))


def quality_of_fit(regions: Regions, fits: Fits) -> Tensor:
    """(N,) best cosine of each region; 0 for boxes longer than LARGEST_BOX."""
    longest = (regions.box[:, 2:] - regions.box[:, :2]).amax(1)
    return torch.where(longest > LARGEST_BOX, 0.0, fits.cosine.amax(1))


def _join(parts: Sequence, kind):
    return kind(*(torch.cat([getattr(part, name) for part in parts]) for name in kind.__dataclass_fields__))


def _tried_again(view: Planes, regions: Regions, row: int, way: str) -> tuple[Regions, Fits] | None:
    """Split one region by hue or at higher thresholds; None when that gives fewer than two parts or a bad fit."""
    x, y = (int(v) for v in regions.corner[row])
    whole = torch.zeros(CANVAS + 2 * PAD, CANVAS + 2 * PAD, dtype=torch.bool)
    whole[y + PAD : y + PAD + WINDOW, x + PAD : x + PAD + WINDOW] = regions.own[row]
    whole = whole[PAD:-PAD, PAD:-PAD]
    picture = int(regions.picture[row])
    strength, hue = view.strength[picture], view.hue[picture]
    if way == "hue":
        share = torch.bincount(hue[whole], minlength=len(COLOURS))
        colours = [k for k in range(len(COLOURS)) if share[k] >= LEAST_AREA]
        masks = [whole & (hue == k) for k in colours]
    else:
        masks = [whole & (strength > float(way) * strength[whole].quantile(0.9))]
    if not masks:
        return None
    labels, slices, boxes = label(torch.stack(masks).numpy())
    if len(slices) < 2:
        return None
    parts = cut_out(view, labels, slices, boxes, np.full(len(masks), picture))
    fits = fit(parts)
    good = (quality_of_fit(parts, fits) >= LEAST_FIT) & (parts.spread <= LARGEST_SPREAD)
    return (parts, fits) if bool(good.all()) else None


def separate(view: Planes, regions: Regions, fits: Fits) -> tuple[Regions, Fits]:
    """Replace regions that fit badly or have several colours by their parts, where the parts fit."""
    bad = (quality_of_fit(regions, fits) < LEAST_FIT + 0.02) | (regions.spread > LARGEST_SPREAD)
    bad = bad.nonzero()[:, 0].tolist()
    split = {}
    for row in bad:
        for way in ("hue", "0.6", "0.75"):
            found = _tried_again(view, regions, row, way)
            if found is not None:
                split[row] = found
                break
    if not split:
        return regions, fits
    rest = torch.tensor([i for i in range(len(regions.picture)) if i not in split], dtype=torch.long)
    kept = Fits(*(getattr(fits, name)[rest] for name in Fits.__dataclass_fields__))
    regions = _join([_select(regions, rest), *(parts for parts, _ in split.values())], Regions)
    return regions, _join([kept, *(found for _, found in split.values())], Fits)


def _first_regions(view: Planes) -> Regions:
    """Connected chroma over 0.4 of each picture's strongest."""
    peak = view.strength.flatten(1).topk(24, dim=1).values.mean(1).clamp(max=1.2)
    mask = view.strength > (0.4 * peak).clamp(min=LOWEST_CHROMA)[:, None, None]
    labels, slices, boxes = label(mask.numpy())
    return cut_out(view, labels, slices, boxes, np.arange(len(mask)))


def find_things(view: Planes) -> tuple[Regions, Fits]:
    """All regions of a batch with the fits of every shape."""
    regions = _first_regions(view)
    return separate(view, regions, fit(regions))


def colourless(view: Planes) -> Tensor:
    """(B,) pixels that differ from the background in lightness and lie 3 pixels or more off all colour."""
    light = _smooth(view.light[:, None])[:, 0].abs() > 0.2
    plain = view.strength < 0.5 * LOWEST_CHROMA
    count = (light & plain).sum((1, 2))
    for i in (count >= LEAST_AREA).nonzero()[:, 0].tolist():
        near = F.max_pool2d((~plain[i])[None, None].float(), 7, 1, 3)[0, 0].bool()
        count[i] = (light[i] & ~near).sum()
    return count


def shape_scores(fits: Fits) -> Tensor:
    """(N, 6) in [0, 1]: how well the shape fits, times how close it comes to the best."""
    best = fits.cosine.amax(1, keepdim=True)
    return ((fits.cosine - 0.7) / 0.25).clamp(0, 1) * torch.exp((fits.cosine - best) / 0.02)


def colour_scores(chroma: Tensor) -> Tensor:
    """(N, 8) in [0, 1] from the angle between a chroma (N, 2) and each of the palette's: 1 on it."""
    unit = chroma / chroma.norm(dim=1, keepdim=True).clamp(min=1e-6)
    angle = torch.rad2deg(torch.acos((unit @ _PALETTE_UNIT.T).clamp(-1, 1)))
    best = angle.amin(1, keepdim=True)
    return torch.exp(-0.5 * (angle / HUE_TOLERANCE) ** 2) * torch.exp(-(angle - best) / 8)


def strengths(chroma: Tensor) -> Tensor:
    """(N,) length of a chroma (N, 2) over that of the nearest palette colour."""
    return chroma.norm(dim=1) / _PALETTE_NORM[(chroma @ _PALETTE_UNIT.T).argmax(1)]


def background_scores(background: Tensor) -> Tensor:
    """(B, 3) in [0, 1]: white, grey, black by lightness, 1/2 at the boundaries 0.84 and 0.45; 0 for coloured ones."""
    light = background.mean(1)
    white, black = torch.sigmoid((light - 0.84) / 0.03), torch.sigmoid((0.45 - light) / 0.03)
    plain = (1 - ((background @ _CHROMA.T).norm(dim=1) - 0.08) / 0.1).clamp(0, 1)
    return torch.stack([white, 1 - white - black, black], 1).clamp(0, 1) * plain[:, None]


def _seen(regions: Regions, fits: Fits) -> list[Seen]:
    shapes, colours = shape_scores(fits), colour_scores(regions.chroma)
    good, best = quality_of_fit(regions, fits), fits.cosine.argmax(1)
    colours = colours * (regions.spread <= LARGEST_SPREAD)[:, None]
    hue = colours.argmax(1)
    strength = strengths(regions.chroma)
    x, y, r, visible = (torch.stack(_pick([v], best)).squeeze(0).tolist() for v in (fits.x, fits.y, fits.r,
                                                                                   fits.visible))
    things = []
    rows = zip(shapes.tolist(), colours.tolist(), good.tolist(), best.tolist(), hue.tolist(), strength.tolist())
    names = list(COLOURS)
    for i, (shape_row, colour_row, cosine, s, k, strong) in enumerate(rows):
        things.append(Seen(
            SHAPES[s] if cosine >= LEAST_FIT else None, names[k] if colour_row[k] >= 0.2 else None,
            x[i], y[i], r[i], visible[i], cosine, strong, dict(zip(SHAPES, shape_row)), dict(zip(names, colour_row)),
        ))
    return things


def _trouble(things: Sequence[Seen], background: str | None, restless: float, grey: int) -> str:
    """Why a picture cannot be read, or ""."""
    if background is None:
        return "the background is not white, grey or black"
    if restless > 0.2:
        return "the background is restless"
    if len(things) > MOST_REGIONS:
        return f"{len(things)} blobs, more than {MOST_REGIONS}"
    if any(thing.shape is None for thing in things):
        return f"{sum(thing.shape is None for thing in things)} blobs fit no shape"
    if any(thing.colour is None for thing in things):
        return f"{sum(thing.colour is None for thing in things)} blobs have no colour of the palette"
    if any(thing.visible < LEAST_VISIBLE for thing in things):
        return "a thing is mostly outside the picture"
    return "something without colour" if grey >= LEAST_AREA else ""


def read(pictures: Tensor) -> list[Reading]:
    """Read pictures (B, 3, 64, 64) in [0, 1].

    A picture is unreadable when a blob fits no shape (cosine under LEAST_FIT) or no colour, when there are more than
    MOST_REGIONS blobs, when a thing is cut so that less than LEAST_VISIBLE of its area shows, when something without
    colour stands in it, or when its background is coloured or restless. Specks under LEAST_AREA pixels are passed over.

    Raises:
        ValueError: pictures of another shape or dtype, or not finite.
    """
    pictures = check(pictures)
    if not len(pictures):
        return []
    view = planes(pictures)
    regions, fits = find_things(view)
    grey = colourless(view).tolist()
    by_picture: list[list[Seen]] = [[] for _ in pictures]
    for picture, thing in zip(regions.picture.tolist(), _seen(regions, fits)):
        by_picture[picture].append(thing)
    names, readings = list(BACKGROUNDS), []
    for i, row in enumerate(background_scores(view.background).tolist()):
        background = names[int(np.argmax(row))] if max(row) >= 0.4 else None
        things = tuple(by_picture[i])
        trouble = _trouble(things, background, float(view.restless[i]), grey[i])
        readings.append(Reading(things, background, dict(zip(names, row)), not trouble, trouble))
    return readings


@dataclass(frozen=True)
class Difference:
    """Where a reading departs from a scene: kind is "shape", "colour", "size", "place" (over 2 pixels off), "missing",
    "extra", "background" or "unreadable"."""

    kind: str
    expected: str | None
    found: str | None


def differences(reading: Reading, scene: Scene) -> list[Difference]:
    """Compare a reading with the scene that was drawn; things are paired by least total distance of their centres."""
    out = [] if reading.readable else [Difference("unreadable", None, reading.reason)]
    far = np.array([[np.hypot(t.x - s.x, t.y - s.y) for s in reading.things] for t in scene.things])
    far = far.reshape(len(scene.things), len(reading.things))
    rows, columns = linear_sum_assignment(far)
    for i, j in zip(rows, columns):
        thing, seen = scene.things[i], reading.things[j]
        for kind in ("shape", "colour", "size"):
            if getattr(thing, kind) != getattr(seen, kind):
                out.append(Difference(kind, getattr(thing, kind), getattr(seen, kind)))
        if far[i, j] > 2:
            out.append(Difference("place", f"({thing.x:.1f}, {thing.y:.1f})", f"({seen.x:.1f}, {seen.y:.1f})"))
    missing = [t for i, t in enumerate(scene.things) if i not in rows]
    extra = [s for j, s in enumerate(reading.things) if j not in columns]
    out += [Difference("missing", f"{t.colour} {t.shape}", None) for t in missing]
    out += [Difference("extra", None, f"{s.colour} {s.shape}") for s in extra]
    if reading.background != scene.background:
        out.append(Difference("background", scene.background, reading.background))
    return out
