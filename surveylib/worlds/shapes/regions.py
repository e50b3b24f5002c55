"""Where the things of a picture stand: its background, and connected regions of what differs from it.

Everything is relative to the background, the median of the picture's border. Backgrounds are grey, so the chroma (red,
green and blue less their mean) of a thing is its coverage times its colour, whatever lies behind it, and a pale thing
keeps its direction (hue). Lengths are pixels of the 64 x 64 canvas, origin in the upper left corner, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from surveylib.worlds.shapes.scenes import CANVAS, COLOURS

WINDOW = 32  # edge of the crop that holds one region
LOWEST_CHROMA = 0.15  # of the palette's; less is background
PALE_CHROMA = 0.18  # a pale thing that stands apart from the strong ones counts from here on
LEAST_AREA = 18  # pixels; smaller specks are dirt, not things
_SECTORS = 720  # directions of the chroma plane in the table of hues
CHROMA_AXES = torch.tensor([[2.0, -1.0, -1.0], [0.0, 3**0.5, -(3**0.5)]]) / 6**0.5  # orthonormal, across the grey axis
_PALETTE = torch.tensor(list(COLOURS.values())) @ CHROMA_AXES.T  # (8, 2)
PALETTE_NORM = _PALETTE.norm(dim=1)
PALETTE_UNIT = _PALETTE / PALETTE_NORM[:, None]


@dataclass(frozen=True)
class Regions:
    """Regions of a batch of pictures, as arrays of length N."""

    picture: Tensor  # index of the picture
    corner: Tensor  # (N, 2) x and y of the window's upper left pixel
    box: Tensor  # (N, 4) left, top, right, bottom in pixels, right and bottom exclusive
    soft: Tensor  # (N, WINDOW, WINDOW) coverage, 1 inside
    own: Tensor  # (N, WINDOW, WINDOW) bool, the region itself
    free: Tensor  # (N, WINDOW, WINDOW) bool, inside the canvas and not part of another region
    chroma: Tensor  # (N, 2) its colour in the chroma plane
    length: Tensor  # (N,) root of the sum of squares of `soft`, less what the picture's noise adds
    spread: Tensor  # (N,) standard deviation of the hue about its mean, as a tangent


def check(pictures: Tensor) -> Tensor:
    """Validate pictures at the border: (B, 3, 64, 64), floating, finite; returns them float32 on the CPU in [0, 1].

    Raises:
        ValueError: another shape, an integer dtype, values that are not finite or far outside [0, 1].
    """
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, CANVAS, CANVAS):
        found = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ValueError(f"pictures must be a tensor (B, 3, {CANVAS}, {CANVAS}) in [0, 1]; got {found}")
    if not pictures.is_floating_point():
        raise ValueError(f"pictures must be floating in [0, 1]; got {pictures.dtype}: divide bytes by 255")
    pictures = pictures.detach().to("cpu", torch.float32)
    if not torch.isfinite(pictures).all():
        raise ValueError("pictures hold values that are not finite (nan or inf)")
    if pictures.numel() and (pictures.amin() < -0.75 or pictures.amax() > 2):
        raise ValueError(f"pictures must lie in [0, 1], got {pictures.amin():.3g} to {pictures.amax():.3g}; bytes: "
                         "pictures / 255, [-1, 1]: pictures / 2 + 0.5")
    return pictures.clamp(0, 1)


@dataclass(frozen=True)
class Planes:
    """A batch of pictures relative to their backgrounds."""

    background: Tensor  # (B, 3) median of the border
    restless: Tensor  # (B,) median distance of the border's pixels from it
    noise: Tensor  # (B,) standard deviation of a chroma coordinate on the border, robust
    chroma: Tensor  # (B, 64, 64, 4): as it is and smoothed
    contrast: Tensor  # (B, 64, 64) root mean square distance of the channels from the background
    light: Tensor  # (B, 64, 64) mean of the channels less the background's
    strength: Tensor  # (B, 64, 64) smoothed chroma over the nearest palette colour's
    hue: Tensor  # (B, 64, 64) index of the nearest palette colour


def smooth(maps: Tensor) -> Tensor:
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
    noise = 1.4826 * torch.einsum("c,bcn->bn", CHROMA_AXES[0], beside).abs().median(1).values
    relative = pictures - background[:, :, None, None]
    light = relative.mean(1)
    chroma = torch.stack([(relative * line[:, None, None]).sum(1) for line in CHROMA_AXES], 1)
    even = smooth(chroma)
    a, b = even.unbind(1)
    sector = (torch.atan2(b, a) * (_SECTORS / (2 * torch.pi)) + _SECTORS / 2).long().clamp(0, _SECTORS - 1)
    hue = _hue_of_sector()[sector]
    strength = (a * a + b * b).sqrt() / PALETTE_NORM[hue]
    both, contrast = torch.cat([chroma, even], 1).permute(0, 2, 3, 1), relative.square().mean(1).sqrt()
    return Planes(background, restless, noise, both, contrast, light, strength, hue)


@cache
def _hue_of_sector() -> Tensor:
    """Nearest palette colour for each of _SECTORS directions of the chroma plane, from -pi on."""
    angle = (torch.arange(_SECTORS) + 0.5) * (2 * torch.pi / _SECTORS) - torch.pi
    return (torch.stack([angle.cos(), angle.sin()], 1) @ PALETTE_UNIT.T).argmax(1)


def around(mask: Tensor, reach: int) -> Tensor:
    """Masks (N, H, W) bool, widened by `reach` pixels to all sides."""
    return F.max_pool2d(mask[:, None].float(), 2 * reach + 1, 1, reach)[:, 0].bool()


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
    free = (own | (marks == 0)) & inside
    near = around(own, 2) & free
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
    return Regions(which, corner, box, soft, own, free, unit * full[:, None], length, spread)


def first_regions(view: Planes) -> Regions:
    """Connected chroma over 0.4 of each picture's strongest; and what stands apart from it, over PALE_CHROMA."""
    peak = view.strength.flatten(1).topk(24, dim=1).values.mean(1).clamp(max=1.2)
    mask = view.strength > (0.4 * peak).clamp(min=LOWEST_CHROMA)[:, None, None]
    mask |= (view.strength > PALE_CHROMA) & ~around(mask, 3)
    labels, slices, boxes = label(mask.numpy())
    return cut_out(view, labels, slices, boxes, np.arange(len(mask)))


def select(regions: Regions, rows: Tensor) -> Regions:
    """Some of the regions, by number or by a bool mask."""
    return Regions(*(getattr(regions, name)[rows] for name in Regions.__dataclass_fields__))
