"""Pairwise comparisons as choice models read them: who was shown first, who second, how far the first was preferred."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Comparisons:
    """M comparisons of n items. Build one with `comparisons` or `comparisons_from_records`.

    Attributes:
        items: names of the n items.
        first, second: (M,) int64, index of the item in the first (left) and in the second place.
        preference: (M,) float64 in [0, 1], probability that the first is preferred: 1, 0.5 (tie), 0 or between.
        weight: (M,) float64 > 0, how often a record counts.
        annotator, prompt: (M,) names, or None where not known. Used to cluster, and by `AnnotatorAbility`.
        skipped: why records were left out, with counts.
    """

    items: tuple[str, ...]
    first: Tensor
    second: Tensor
    preference: Tensor
    weight: Tensor
    annotator: tuple[str, ...] | None = None
    prompt: tuple[str, ...] | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        check_columns(self)
        same = self.first == self.second
        if bool(same.any()):
            m = int(same.nonzero()[0])
            raise ValueError(f"comparison {m} compares {self.items[int(self.first[m])]!r} with itself: remove it")
        outside = ~((self.preference >= 0) & (self.preference <= 1))
        if bool(outside.any()):
            m = int(outside.nonzero()[0])
            raise ValueError(f"comparison {m} has preference {float(self.preference[m])}: it must be in [0, 1], the "
                             "probability that the first is preferred (1, 0.5 for a tie, 0, or between)")

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def annotators(self) -> tuple[str, ...]:
        """Names of those who judged, in order; none where not known."""
        return sorted_names(self.annotator or ())

    @cached_property
    def annotator_number(self) -> Tensor:
        """(M,) int64, place of each record's annotator in ``annotators``."""
        return item_numbers(self.annotator, self.annotators)

    def wins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(winners, losers, records): an edge for each record and each direction that has a share of the preference.

        A tie gives both directions.
        """
        first, second, y, m = self.first.numpy(), self.second.numpy(), self.preference.numpy(), np.arange(len(self))
        a, b = y > 0, y < 1
        return np.r_[first[a], second[b]], np.r_[second[a], first[b]], np.r_[m[a], m[b]]

    def take(self, index: np.ndarray) -> Comparisons:
        """The records at ``index``, an array of integers or booleans."""
        rows = np.arange(len(self))[index]
        pick = torch.as_tensor(rows)
        names = {name: None if (column := getattr(self, name)) is None else tuple(column[m] for m in rows)
                 for name in ("annotator", "prompt")}
        return Comparisons(self.items, self.first[pick], self.second[pick], self.preference[pick], self.weight[pick],
                           **names)


def check_columns(data: Any) -> None:
    """Raise ValueError for no records, columns of different length, or a weight that is not finite and positive."""
    if len(data) == 0:
        left_out = f" (left out: {dict(data.skipped)})" if data.skipped else ""
        raise ValueError(f"no records to fit{left_out}: give at least one comparison or ranking")
    for name in ("second", "preference", "weight", "annotator", "prompt"):
        column = getattr(data, name, None)
        if column is not None and len(column) != len(data):
            raise ValueError(f"{name} has {len(column)} entries for {len(data)} records: give one for each")
    bad = ~(torch.isfinite(data.weight) & (data.weight > 0))
    if bool(bad.any()):
        m = int(bad.nonzero()[0])
        raise ValueError(f"record {m} has weight {float(data.weight[m])}: weights must be finite and above 0")


def comparisons(
    first: Sequence[Any], second: Sequence[Any], preference: Sequence[float] | Tensor | float = 1.0, *,
    weight: Sequence[float] | Tensor | None = None, annotator: Sequence[Any] | None = None,
    prompt: Sequence[Any] | None = None, items: Sequence[Any] | None = None,
) -> Comparisons:
    """Comparisons from columns of item names (strings, integers or an integer tensor), one entry a record.

    Args:
        preference: (M,) or one number for all; probability that ``first`` is preferred.
        items: all items in the order wanted; by default those that occur, sorted.

    Raises:
        ValueError: no records, columns of different length, an item that is not in ``items``, a self-comparison, a
            preference outside [0, 1], a weight that is not positive.
    """
    first, second = _names(first), _names(second)
    items = tuple(_names(items)) if items is not None else sorted_names(set(first) | set(second))
    count = len(first)
    y = torch.as_tensor(preference, dtype=torch.float64)
    return Comparisons(
        items, item_numbers(first, items), item_numbers(second, items), y.expand(count) if y.ndim == 0 else y,
        torch.ones(count, dtype=torch.float64) if weight is None else torch.as_tensor(weight, dtype=torch.float64),
        annotator=None if annotator is None else tuple(_names(annotator)),
        prompt=None if prompt is None else tuple(_names(prompt)))


def _names(column: Sequence[Any]) -> list[str]:
    """Entries of a column as strings."""
    return [str(x) for x in (column.tolist() if isinstance(column, (Tensor, np.ndarray)) else column)]


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names in order: by number where all are whole numbers, else by letter."""
    names = set(names)
    return tuple(sorted(names, key=int if all(x.isdecimal() for x in names) else None))


def item_numbers(column: Sequence[str], items: tuple[str, ...]) -> Tensor:
    """(M,) int64: the place of each name in ``items``. Raises ValueError for a repeated or an unknown name."""
    place = {name: i for i, name in enumerate(items)}
    if len(place) < len(items):
        raise ValueError(f"an item is named twice in {list(items)}: names must differ")
    unknown = sorted(set(column) - set(place))
    if unknown:
        raise ValueError(f"unknown item {unknown[0]!r}: items are {', '.join(items)}")
    return torch.tensor([place[name] for name in column], dtype=torch.long)


def record_items(record: Any, item: str) -> list[str] | None:
    """Item names of the pictures of a record: the models that made them, or the pictures themselves. None: unknown."""
    if item == "model":
        return [str(m) for m in record.models] if len(record.models) == len(record.images) else None
    if item == "image":
        return [x if isinstance(x, str) else hashlib.sha1(x).hexdigest()[:12] for x in record.images]
    raise ValueError(f"unknown item {item!r}: choose 'model' (who made the picture) or 'image' (the picture itself)")


def comparisons_from_records(records: Iterable[Any], item: str = "model") -> Comparisons:
    """Comparisons from feedback records (`surveylib.feedback.records.Record`) of kind ``pair``.

    Args:
        item: what is compared: ``"model"`` ranks the models that made the pictures, ``"image"`` the pictures.

    Left out and counted in ``skipped``: records of another kind, of unknown models, and two pictures of one model.
    The prompt is the record's ``prompt_id``, or its text where there is none.
    """
    skipped: Counter[str] = Counter()
    rows = []
    for record in records:
        names = record_items(record, item) if record.kind == "pair" else None
        if record.kind != "pair":
            skipped[f"kind {record.kind}"] += 1
        elif names is None:
            skipped["models unknown"] += 1
        elif names[0] == names[1]:
            skipped[f"the same {item} twice"] += 1
        else:
            rows.append((*names, record.preference, record.weight, record.annotator,
                         record.prompt_id or record.prompt))
    if not rows:
        raise ValueError(f"no records to fit (left out: {dict(skipped)}): give at least one comparison")
    first, second, preference, weight, annotator, prompt = zip(*rows)
    data = comparisons(first, second, preference, weight=weight, prompt=prompt,
                       annotator=annotator if all(annotator) else None)
    data.skipped.update(skipped)
    return data
