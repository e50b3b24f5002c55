"""Attribute heads: what a caption says, read off a tower's features by linear maps that are dropped after training.

A text encoder trained by noise regression or contrast alone can keep neighbouring hues almost equal, and a vision tower
learns shapes late. Cross entropy on the parsed caption (or on the drawn scene) asks for them directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surveylib.worlds.shapes.prompts import OPPOSITE, RELATIONS, parse
from surveylib.worlds.shapes.scenes import BACKGROUNDS, CANVAS, COLOURS, MAX_THINGS, SHAPES, SIZES, Scene, relation_of

GROUPS = 2
# Classes of one group and of the whole; 0 is "not said".
OF_GROUP = (len(SHAPES) + 1, MAX_THINGS + 1, len(COLOURS) + 1, len(SIZES) + 1)
OF_WHOLE = (len(RELATIONS) + 1, len(BACKGROUNDS) + 1)
CLASSES = (*OF_GROUP * GROUPS, *OF_WHOLE)


def _number(options, value: str | None) -> int:
    return 0 if value is None else 1 + list(options).index(value)


def attribute_targets(captions: Sequence[str]) -> Tensor:
    """(N, 10) class numbers: shape, count, colour, size of the first and of the second group as they are said,
    relation, background. 0 stands for what is not said."""
    rows = []
    for caption in captions:
        spec = parse(caption)
        row = []
        for group in (*spec.groups, None, None)[:GROUPS]:
            row += [0] * len(OF_GROUP) if group is None else [
                _number(SHAPES, group.shape), group.count, _number(COLOURS, group.colour), _number(SIZES, group.size)]
        rows.append([*row, _number(RELATIONS, spec.relation), _number(BACKGROUNDS, spec.background)])
    return torch.tensor(rows)


class CaptionHeads(nn.Module):
    """Reads captions off a text tower: each token's own word, and all attributes off the end-of-text token."""

    def __init__(self, width: int, words: int):
        super().__init__()
        self.word, self.attributes = nn.Linear(width, words), nn.Linear(width, sum(CLASSES))

    def forward(self, hidden: Tensor, tokens: Tensor, end: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of words plus that of attributes.

        hidden (B, L, W), tokens (B, L), end (B,) place of the end-of-text token, targets (B, 10).
        """
        said = torch.arange(tokens.shape[1], device=tokens.device)[None] <= end[:, None]
        words = F.cross_entropy(self.word(hidden[said]).float(), tokens[said])
        pooled = hidden[torch.arange(len(end), device=end.device), end]
        logits = self.attributes(pooled).float().split(CLASSES, dim=1)
        return words + sum(F.cross_entropy(part, targets[:, i]) for i, part in enumerate(logits)) / len(CLASSES)


PATCH = 8
PATCHES = (CANVAS // PATCH) ** 2
OF_PATCH = (len(SHAPES) + 1, len(COLOURS) + 1)
# Of each shape: count, common colour, common size, where it stands to the other thing; then the background.
OF_SCENE = (*(MAX_THINGS + 1, len(COLOURS) + 1, len(SIZES) + 1, len(RELATIONS) + 1) * len(SHAPES), len(BACKGROUNDS))


def scene_labels(scene: Scene) -> Tensor:
    """(64 + 64 + 25,) uint8: shape and colour of the thing whose box holds each patch's centre (row by row, 0 for
    none), then per shape its count, the colour and the size all its things share (0: none or several), and where it
    stands to the other thing in a scene of two; last the background."""
    centres = (np.arange(CANVAS // PATCH) + 0.5) * PATCH
    shapes, colours = np.zeros((2, len(centres), len(centres)), dtype=np.uint8)
    for thing in scene.things:
        inside = (np.abs(centres[:, None] - thing.y) <= thing.r + 1) & (np.abs(centres[None] - thing.x) <= thing.r + 1)
        shapes[inside], colours[inside] = _number(SHAPES, thing.shape), _number(COLOURS, thing.colour)
    whole = []
    for shape in SHAPES:
        own = [t for t in scene.things if t.shape == shape]
        others = [t for t in scene.things if t.shape != shape]
        side = relation_of(own[0].x, own[0].y, others[0].x, others[0].y) if len(own) == len(others) == 1 else None
        common = [values.pop() if len(values) == 1 else None
                  for values in ({t.colour for t in own}, {t.size for t in own})]
        whole += [len(own), _number(COLOURS, common[0]), _number(SIZES, common[1]), _number(RELATIONS, side)]
    whole.append(list(BACKGROUNDS).index(scene.background))
    return torch.from_numpy(np.concatenate([shapes.ravel(), colours.ravel(), np.array(whole, dtype=np.uint8)]))


def centres(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where each shape stands: middle of the patches it covers, x and y in [-1, 1], (B, 7, 2), and whether it is there,
    (B, 7); labels (B, 153) of `scene_labels`."""
    side = CANVAS // PATCH
    axis = torch.linspace(-1 + 1 / side, 1 - 1 / side, side, device=labels.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    covered = F.one_hot(labels[:, :PATCHES].long(), len(SHAPES) + 1)[..., 1:].float()
    count = covered.sum(1)
    middle = covered.transpose(1, 2) @ torch.stack([x.flatten(), y.flatten()], -1) / count[..., None].clamp(min=1)
    return middle, count > 0


class PictureHeads(nn.Module):
    """Reads a scene off a vision tower: shape and colour off each patch token, the whole off the pooled class token,
    and off that where each shape stands, from which a relation follows."""

    def __init__(self, width: int):
        super().__init__()
        self.patch, self.scene = nn.Linear(width, sum(OF_PATCH)), nn.Linear(width, sum(OF_SCENE))
        self.place = nn.Linear(width, 2 * len(SHAPES))

    def forward(self, tokens: Tensor, pooled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(patch loss, scene loss, place loss): sums of mean cross entropies, and the mean squared error of centres in
        half canvases; tokens (B, 1 + 64, W), pooled (B, W), labels (B, 153)."""
        patches, labels = self.patch(tokens[:, 1:]).float().split(OF_PATCH, dim=-1), labels.long()
        near = sum(F.cross_entropy(part.flatten(0, 1), labels[:, i * PATCHES : (i + 1) * PATCHES].flatten())
                   for i, part in enumerate(patches))
        parts = self.scene(pooled).float().split(OF_SCENE, dim=1)
        whole = sum(F.cross_entropy(part, labels[:, 2 * PATCHES + i]) for i, part in enumerate(parts))
        where, there = centres(labels)
        errors = (self.place(pooled).float().unflatten(1, (len(SHAPES), 2)) - where).square().sum(-1)
        return near, whole, (errors * there).sum() / there.sum().clamp(min=1)


OF_SAID = (*OF_SCENE[:-1], len(BACKGROUNDS) + 1)


def said_labels(captions: Sequence[str]) -> Tensor:
    """(N, 29) class numbers: the last part of `scene_labels`, as the captions say it; 0 stands for what is not said.

    What belongs to a shape stands in its row: that a red circle stands left of a square is said of circle and square.
    """
    table = []
    for caption in captions:
        spec = parse(caption)
        of_shape = dict.fromkeys(SHAPES, (0, 0, 0, 0))
        for group, side in zip(spec.groups, (spec.relation, OPPOSITE.get(spec.relation)), strict=False):
            of_shape[group.shape] = (group.count, _number(COLOURS, group.colour), _number(SIZES, group.size),
                                     _number(RELATIONS, side))
        whole = [number for shape in SHAPES for number in of_shape[shape]]
        table.append([*whole, _number(BACKGROUNDS, spec.background)])
    return torch.tensor(table)


class BindingHead(nn.Module):
    """Reads what belongs to each shape off the end-of-text token, as `PictureHeads` does off the class token."""

    def __init__(self, width: int):
        super().__init__()
        self.said = nn.Linear(width, sum(OF_SAID))

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Sum of cross entropies; pooled (B, W), labels (B, 29) of `said_labels`."""
        parts = self.said(pooled).float().split(OF_SAID, dim=1)
        return sum(F.cross_entropy(part, labels[:, i]) for i, part in enumerate(parts))
