"""Reading pictures of the Shapes world: which things stand where, in which shape, colour and size, on which background.

The reader inverts the renderer, for a whole batch at once:

1. `regions`: the background, and connected regions of chroma that differ from it.
2. `fitting`: for every shape, the fit that area and centroid give; regions in doubt are looked at again as silhouettes.
3. A region that fits badly is split by hue and at a higher threshold; the parts are kept if they fit.
4. Colours are hues, so a pale thing keeps its colour. A hue between two goes by both names; a thing of several hues has
   no colour, but keeps its shape.

Lengths are pixels of the 64 x 64 canvas, origin in the upper left corner, y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from surveylib.worlds.shapes.fitting import (
    Fits,
    best_cosines,
    best_shapes,
    fit,
    legible,
    look_again,
    misfits,
)
from surveylib.worlds.shapes.regions import (
    CHROMA_AXES,
    LEAST_AREA,
    LOWEST_CHROMA,
    PALETTE_NORM,
    PALETTE_UNIT,
    WINDOW,
    Planes,
    Regions,
    check,
    cut_out,
    first_regions,
    label,
    planes,
    select,
    smooth,
)
from surveylib.worlds.shapes.scenes import BACKGROUNDS, CANVAS, COLOURS, SHAPES, SIZE_BOUNDARY, Scene

PAD = WINDOW // 2 + 1
PART_FIT = 0.92  # cosine from which a part of a split region is taken for a thing
LEAST_VISIBLE = 0.45  # share of a cut thing's area inside the canvas for it to count as present
MOST_REGIONS = 8
LARGEST_SPREAD = 0.21  # tangent of the hue's standard deviation within a thing; more means several colours
HUE_TOLERANCE = 14.0  # degrees, the width of the soft colour score
BETWEEN = 5 / 3  # largest ratio of the angles to the two nearest colours for a hue to go by both: the middle quarter


@dataclass(frozen=True)
class Seen:
    """One thing as read.

    (x, y) and r are the centre and the half-extent of its box in pixels. `visible` is the share of its area inside the
    canvas, `fit` the cosine between the region and the drawn shape, `confidence` the product of the scores of what was
    read. `shape` is None when no shape can be told, `colour` when it has several hues or one
    far from the palette's. `strength` is its chroma
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
    either: str | None = None  # second name of a hue that lies between two of the palette's, see BETWEEN

    @property
    def size(self) -> str:
        """"small" or "large", by `scenes.SIZE_BOUNDARY`."""
        return "small" if self.r < SIZE_BOUNDARY else "large"

    @property
    def size_scores(self) -> dict[str, float]:
        """Soft size: 1/2 at the boundary, 0.9 a pixel away from it."""
        large = float(1 / (1 + np.exp(-2.2 * (self.r - SIZE_BOUNDARY))))
        return {"small": 1 - large, "large": large}

    def is_called(self, colour: str) -> bool:
        """Whether its colour goes by this name; a hue between two goes by both."""
        return self.colour is not None and colour in (self.colour, self.either)

    def has(self, kind: str, value: str) -> bool:
        """Whether its "shape", "colour" or "size" is `value`."""
        return self.is_called(value) if kind == "colour" else getattr(self, kind) == value

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


def _join(parts: Sequence, kind):
    return kind(*(torch.cat([getattr(part, name) for part in parts]) for name in kind.__dataclass_fields__))


def _tried_again(view: Planes, regions: Regions, row: int, way: str) -> tuple[Regions, Fits] | None:
    """Split one region by hue or at higher thresholds; None when that gives fewer than two parts or a bad fit."""
    x, y = (int(v) for v in regions.corner[row])
    whole = torch.zeros(CANVAS + 2 * PAD, CANVAS + 2 * PAD, dtype=torch.bool)
    whole[y + PAD : y + PAD + WINDOW, x + PAD : x + PAD + WINDOW] = regions.own[row]
    whole = whole[PAD:-PAD, PAD:-PAD]
    if not whole.any():  # a frame around the window
        return None
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
    good = legible(parts, fits) & (best_cosines(fits) >= PART_FIT) & (parts.spread <= LARGEST_SPREAD)
    return (parts, fits) if bool(good.all()) else None


def separate(view: Planes, regions: Regions, fits: Fits) -> tuple[Regions, Fits]:
    """Replace regions that fit badly or have several colours by their parts, where the parts fit."""
    bad = ~legible(regions, fits) | (best_cosines(fits) < PART_FIT + 0.02) | (regions.spread > LARGEST_SPREAD)
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
    regions = _join([select(regions, rest), *(parts for parts, _ in split.values())], Regions)
    return regions, _join([kept, *(found for _, found in split.values())], Fits)


def find_things(view: Planes) -> tuple[Regions, Fits]:
    """All regions of a batch with the fits of every shape."""
    regions = first_regions(view)
    return separate(view, regions, look_again(view, regions, fit(regions)))


def colourless(view: Planes) -> Tensor:
    """(B,) pixels that differ from the background in lightness and lie 3 pixels or more off all colour."""
    light = smooth(view.light[:, None])[:, 0].abs() > 0.2
    plain = view.strength < 0.5 * LOWEST_CHROMA
    count = (light & plain).sum((1, 2))
    for i in (count >= LEAST_AREA).nonzero()[:, 0].tolist():
        near = F.max_pool2d((~plain[i])[None, None].float(), 7, 1, 3)[0, 0].bool()
        count[i] = (light[i] & ~near).sum()
    return count


def shape_scores(fits: Fits) -> Tensor:
    """(N, 6) in [0, 1]: how well the shape fits, times how close it comes to the best."""
    misfit = misfits(fits)
    best = misfit.amin(1, keepdim=True)
    return ((fits.cosine - 0.7) / 0.25).clamp(0, 1) * torch.exp((best - misfit) / 0.02)


def hue_angles(chroma: Tensor) -> Tensor:
    """(N, 8) degrees between a chroma (N, 2) and each of the palette's."""
    unit = chroma / chroma.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.rad2deg(torch.acos((unit @ PALETTE_UNIT.T).clamp(-1, 1)))


def colour_scores(chroma: Tensor) -> Tensor:
    """(N, 8) in [0, 1] from the angle between a chroma (N, 2) and each of the palette's: 1 on it."""
    angle = hue_angles(chroma)
    behind = (angle - BETWEEN * angle.amin(1, keepdim=True)).clamp(min=0)
    return torch.exp(-0.5 * (angle / HUE_TOLERANCE) ** 2) * torch.exp(-behind / 8)


def second_names(chroma: Tensor) -> list[str | None]:
    """The other name of each hue that lies in the middle quarter between two of the palette's, else None."""
    nearest = hue_angles(chroma).topk(2, dim=1, largest=False)
    between = nearest.values[:, 1] <= BETWEEN * nearest.values[:, 0]
    names = list(COLOURS)
    return [names[k] if yes else None for k, yes in zip(nearest.indices[:, 1].tolist(), between.tolist())]


def strengths(chroma: Tensor) -> Tensor:
    """(N,) length of a chroma (N, 2) over that of the nearest palette colour."""
    return chroma.norm(dim=1) / PALETTE_NORM[(chroma @ PALETTE_UNIT.T).argmax(1)]


def background_scores(background: Tensor) -> Tensor:
    """(B, 3) in [0, 1]: white, grey, black by lightness, 1/2 at the boundaries 0.84 and 0.45; 0 for coloured ones."""
    light = background.mean(1)
    white, black = torch.sigmoid((light - 0.84) / 0.03), torch.sigmoid((0.45 - light) / 0.03)
    plain = (1 - ((background @ CHROMA_AXES.T).norm(dim=1) - 0.08) / 0.1).clamp(0, 1)
    return torch.stack([white, 1 - white - black, black], 1).clamp(0, 1) * plain[:, None]


def _seen(regions: Regions, fits: Fits) -> list[Seen]:
    shapes, colours = shape_scores(fits), colour_scores(regions.chroma)
    good, best, cosines = legible(regions, fits), best_shapes(fits), best_cosines(fits)
    colours = colours * (regions.spread <= LARGEST_SPREAD)[:, None]
    hue = colours.argmax(1)
    strength = strengths(regions.chroma)
    x, y, r, visible = (v.gather(1, best[:, None])[:, 0].tolist() for v in (fits.x, fits.y, fits.r, fits.visible))
    things, other = [], second_names(regions.chroma)
    columns = (shapes, colours, good, cosines, best, hue, strength)
    names = list(COLOURS)
    for i, (shape_row, colour_row, told, cosine, s, k, strong) in enumerate(zip(*(c.tolist() for c in columns))):
        things.append(Seen(
            SHAPES[s] if told else None, names[k] if colour_row[k] >= 0.2 else None,
            x[i], y[i], r[i], visible[i], cosine, strong, dict(zip(SHAPES, shape_row)), dict(zip(names, colour_row)),
            other[i],
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
    if any(thing.visible < LEAST_VISIBLE for thing in things):
        return "a thing is mostly outside the picture"
    return "something without colour" if grey >= LEAST_AREA else ""


def read(pictures: Tensor) -> list[Reading]:
    """Read pictures (B, 3, 64, 64) in [0, 1].

    A picture is unreadable when a blob's shape cannot be told (`fitting.legible`), when there are more than
    MOST_REGIONS blobs, when a thing is cut so that less than LEAST_VISIBLE of its area shows, when something without
    colour stands in it, or when its background is coloured or restless. Specks under LEAST_AREA pixels are passed over.
    A thing of several hues, or of a hue that is none of the palette's, keeps its shape and has no colour.

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
