"""Picture quality in the Shapes world: a utility of its own, apart from what the picture shows.

Four parts, each in [0, 1], and their geometric mean. Each part answers to one flaw of `data.FLAWS` (or to noise):

==========  ======================================================  ===========================================
part        what is measured                                        flaw that lowers it
==========  ======================================================  ===========================================
sharpness   width of the edges, as the sigma of a Gaussian          blurred
contrast    chroma of the things over the palette's                 pale
centring    middle of the box around all things, share visible      off-centre, things cut by the edge
clean       texture of the background                               noise, specks, shading
==========  ======================================================  ===========================================

With soft coverage a of a thing, sum a(1 - a) over sum |grad a| is sigma / sqrt(pi) for an edge blurred by sigma,
whatever the length of the edge. A picture without things has quality 0, except for its clean background.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.worlds.shapes.reading import LOWEST_CHROMA, Fits, Planes, Regions, check, find_things, planes, strengths
from surveylib.worlds.shapes.scenes import CANVAS

EDGE = (0.5, 1.9)  # edge widths in pixels: sharp up to the first, sharpness 0 from the second on
CHROMA = (0.15, 0.95)  # strength over the palette's: contrast 0 and 1
OFFSET = (3.5, 18.0)  # distance of the group's middle from the picture's, pixels: centring 1 and 0
TEXTURE = (0.005, 0.1)  # standard deviation of the background: clean 1 and 0
FLOOR = 0.02  # least value of a part in the geometric mean
NAMES = ("sharpness", "contrast", "centring", "clean")
CHUNK = 256


@dataclass(frozen=True)
class Quality:
    """The parts and their geometric mean, (B,) float32 each, in [0, 1]."""

    sharpness: Tensor
    contrast: Tensor
    centring: Tensor
    clean: Tensor

    @property
    def overall(self) -> Tensor:
        """Geometric mean of the four parts, each taken as at least FLOOR; 0 for a picture without things."""
        parts = torch.stack([getattr(self, name) for name in NAMES])
        return parts.clamp(min=FLOOR).log().mean(0).exp() * (self.contrast > 0)


def _ramp(value: Tensor, best: float, worst: float) -> Tensor:
    return ((value - worst) / (best - worst)).clamp(0, 1)


def edge_widths(soft: Tensor) -> Tensor:
    """Sigma of the edges of soft masks (N, H, W), in pixels; about 0.3 for a drawn shape, near sigma when blurred."""
    soft = soft.clamp(0, 1)
    across = F.pad(soft, (0, 1))[..., 1:] - soft
    down = F.pad(soft, (0, 0, 0, 1))[..., 1:, :] - soft
    slope = (across.square() + down.square()).sqrt().sum((1, 2))
    return torch.pi**0.5 * (soft * (1 - soft)).sum((1, 2)) / slope.clamp(min=1e-6)


def _mean_by_picture(value: Tensor, regions: Regions, count: int) -> Tensor:
    """Mean over the things of each picture, weighed by the root of their area; 0 without things."""
    weight = regions.soft.sum((1, 2)).clamp(min=1).sqrt()
    total = torch.zeros(count).index_add(0, regions.picture, value * weight)
    return total / torch.zeros(count).index_add(0, regions.picture, weight).clamp(min=1e-6)


def _centring(regions: Regions, fits: Fits, count: int) -> Tensor:
    best = fits.cosine.argmax(1, keepdim=True)
    x, y, r, visible = (v.gather(1, best)[:, 0] for v in (fits.x, fits.y, fits.r, fits.visible))
    low = torch.full((count, 2), torch.inf)
    middle = torch.stack([x, y], 1)
    where = regions.picture[:, None].expand(-1, 2)
    low = low.scatter_reduce(0, where, middle - r[:, None], "amin")
    high = -torch.full((count, 2), torch.inf).scatter_reduce(0, where, -(middle + r[:, None]), "amin")
    offset = ((low + high) / 2 - CANVAS / 2).norm(dim=1)
    return _ramp(offset, *OFFSET).nan_to_num(0.0) * _mean_by_picture(visible, regions, count)


def _clean(view: Planes, pictures: Tensor) -> Tensor:
    """From the root mean square distance to the background, 5 pixels and more off every strong chroma."""
    things = (view.strength > 2 * LOWEST_CHROMA)[:, None].float()
    far = F.max_pool2d(F.max_pool2d(things, (1, 11), 1, (0, 5)), (11, 1), 1, (5, 0))[:, 0] == 0
    residual = (pictures - view.background[:, :, None, None]).square().mean(1)
    texture = ((residual * far).sum((1, 2)) / far.sum((1, 2)).clamp(min=1)).sqrt()
    return _ramp(texture, *TEXTURE)


def _parts_of(pictures: Tensor) -> Quality:
    view = planes(pictures)
    regions, fits = find_things(view)
    count = len(pictures)
    sharpness = _mean_by_picture(_ramp(edge_widths(regions.soft), *EDGE), regions, count)
    contrast = _mean_by_picture(_ramp(strengths(regions.chroma), CHROMA[1], CHROMA[0]), regions, count)
    return Quality(sharpness, contrast, _centring(regions, fits, count), _clean(view, pictures))


def quality_parts(pictures: Tensor) -> Quality:
    """The four parts of pictures (B, 3, 64, 64) in [0, 1].

    Raises:
        ValueError: pictures of another shape or dtype, or not finite.
    """
    pictures = check(pictures)
    chunks = [_parts_of(chunk) for chunk in pictures.split(CHUNK)] if len(pictures) else []
    return Quality(*(torch.cat([torch.zeros(0), *(getattr(c, name) for c in chunks)]) for name in NAMES))


def quality(pictures: Tensor) -> Tensor:
    """Quality (B,) in [0, 1], the geometric mean of the parts; arguments as in `quality_parts`."""
    return quality_parts(pictures).overall
