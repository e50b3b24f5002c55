"""An aesthetic predictor: the mean rating of a picture from its embedding alone (LAION aesthetic predictor v2).

    L = (r(x) - y)^2,   r: linear layers 768-1024-128-64-16-1 without activations on E_img(x) / |E_img(x)|

The prompt is not read. Ratings are of one scale [low, high] and are predicted on [0, 1] of it (ours; the original
predicts 1 to 10). Dropout 0.2, 0.2, 0.1 as published. Chapter: "Learning a reward".

Two options are ours. Mean ratings of pictures of one kind lie close together: with `centre` and `spread` the layers
predict (y - centre) / spread, so that what is to be learned is as large as what dropout disturbs. A small trunk's
embedding says what is in the picture and little of how it looks: with `tokens` the layers also see mean and standard
deviation of the picture's tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surveylib.feedback.pictures import RecordError, decode_picture
from surveylib.feedback.record import Record
from surveylib.rewards.learned.imagereward import PAPER_WIDTHS, scalar_mlp
from surveylib.rewards.learned.trunk import Features, Widths


def rating_loss(predicted: Tensor, rating: Tensor) -> Tensor:
    """(N,) squared errors."""
    return (predicted - rating).square()


class AestheticHead(nn.Module):
    """The published layers on the unit embedding of the picture; prompt-blind."""

    name = "aesthetic"
    outputs = ("score",)

    def __init__(self, widths: Widths, hidden: tuple[int, ...] = PAPER_WIDTHS, tokens: bool = False,
                 centre: float = 0.0, spread: float = 1.0):
        if not spread > 0:
            raise ValueError(f"spread={spread} must be positive: it is the standard deviation of the ratings")
        super().__init__()
        self.options = {"hidden": list(hidden), "tokens": tokens, "centre": centre, "spread": spread}
        self.centre, self.spread = centre, spread
        self.norm = nn.LayerNorm(2 * widths.vision) if tokens else None
        self.layers = scalar_mlp(widths.projection + (2 * widths.vision if tokens else 0), tuple(hidden))

    def forward(self, features: Features) -> Tensor:
        """(B, 1)."""
        unit = F.normalize(features.image, dim=-1)
        seen = unit * unit.shape[-1] ** 0.5
        if self.norm is not None:
            mean, deviation = features.image_tokens.mean(1), features.image_tokens.std(1)
            seen = torch.cat([seen, self.norm(torch.cat([mean, deviation], -1))], -1)
        return self.centre + self.spread * self.layers(seen).float()

    def reward(self, outputs: Tensor) -> Tensor:
        """(B,) of `forward`'s (B, 1)."""
        return outputs[:, 0]

    def range(self) -> tuple[float, float]:
        """No bound; ratings are about [0, 1]."""
        return float("-inf"), float("inf")

    def rating_loss(self, outputs: Tensor, rating: Tensor) -> Tensor:
        """(N,) losses of outputs (N, 1) against ratings in [0, 1], in units of spread^2."""
        return rating_loss(outputs[:, 0], rating) / self.spread**2


@dataclass
class RatingData:
    """M rated pictures: images (N, 3, H, W) in [0, 1], row (M,), prompts M texts, prompt_ids (M,), rating (M,) in
    [0, 1] of the scale, weight (M,), skipped counts."""

    images: Tensor
    row: Tensor
    prompts: list[str]
    prompt_ids: Tensor
    rating: Tensor
    weight: Tensor
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.prompts)


def to_ratings(records: Iterable[Record], dimension: str | None = None) -> RatingData:
    """Mean rating of every picture, on [0, 1] of its scale, by weight.

    Args:
        dimension: which of several dimensions; None takes the single rating.

    Returns:
        `RatingData`; `skipped` counts records that hold no such rating, and corrupt pictures, by reason.

    Raises:
        ValueError: no rating left.
    """
    sums: dict[tuple[bytes | str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    skipped: Counter[str] = Counter()
    for record in records:
        value = record.rating if dimension is None else (record.ratings or {}).get(dimension)
        if value is None:
            skipped["no rating" if dimension is None else f"no rating of {dimension!r}"] += 1
            continue
        total = sums[record.images[0], record.prompt]
        total[0] += record.weight * (value - record.low) / (record.high - record.low)
        total[1] += record.weight
    rows: dict[bytes | str, int] = {}
    pictures, kept, texts = [], [], {}
    for (picture, prompt), (value, weight) in sums.items():
        try:
            if weight <= 0:
                raise RecordError("weight zero", "")
            if picture not in rows:
                pictures.append(decode_picture(picture))
                rows[picture] = len(pictures) - 1
        except RecordError as error:
            skipped[error.reason] += 1
            continue
        kept.append((rows[picture], prompt, texts.setdefault(prompt, len(texts)), value / weight, weight))
    if not kept:
        raise ValueError(f"the records hold no rating; left out: {dict(skipped) or 'nothing'}")
    row, prompts, ids, rating, weight = zip(*kept)
    return RatingData(torch.stack(pictures), torch.tensor(row), list(prompts), torch.tensor(ids), torch.tensor(rating),
                      torch.tensor(weight), skipped)
