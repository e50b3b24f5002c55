"""From records of any kind to pairs of pictures: what reward models and preference losses are trained on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from surveylib.feedback.pictures import RecordError, decode_picture, fit
from surveylib.feedback.record import Record

Comparison = tuple[bytes | str, bytes | str, float, float]  # first, second, preference, weight


@dataclass
class PairData:
    """M comparisons of N pictures.

    Attributes:
        images: (N, 3, H, W) float32 in [0, 1]; each picture once.
        first, second: (M,) int64, rows of `images`.
        prompts: M texts. prompt_ids: (M,) int64, equal for equal prompts.
        preference: (M,) float32, probability that the first is preferred; 0.5 is a tie.
        weight: (M,) float32, >= 0.
        skipped: what was left out, by reason.
    """

    images: Tensor
    first: Tensor
    second: Tensor
    prompts: list[str]
    prompt_ids: Tensor
    preference: Tensor
    weight: Tensor
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.prompts)

    def subset(self, index: Tensor | Sequence[int]) -> PairData:
        """The comparisons with these numbers (or under a mask of M bools); all pictures stay."""
        index = torch.as_tensor(index)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        return PairData(
            self.images, self.first[index], self.second[index], [self.prompts[i] for i in index.tolist()],
            self.prompt_ids[index], self.preference[index], self.weight[index], Counter(self.skipped),
        )  # fmt: skip

    def split(self, share: float, seed: int = 0) -> tuple[PairData, PairData]:
        """Split by prompt: (1 - share, share) of the prompts, so that no prompt stands on both sides.

        Raises:
            ValueError: share outside (0, 1), or fewer than two prompts.
        """
        known = torch.unique(self.prompt_ids)
        if not 0 < share < 1 or len(known) < 2:
            raise ValueError(f"share = {share} must lie in (0, 1) and there must be two prompts, got {len(known)}")
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        count = min(max(1, round(share * len(known))), len(known) - 1)
        held = torch.isin(self.prompt_ids, known[order[:count]])
        return self.subset(~held), self.subset(held)


def _of_ranking(record: Record) -> list[Comparison]:
    """Every pair of a ranking; the lower rank is preferred, equal ranks tie."""
    judged = list(zip(record.images, record.ranks))
    return [
        (a, b, 1.0 if rank_a < rank_b else 0.0 if rank_a > rank_b else 0.5, record.weight)
        for (a, rank_a), (b, rank_b) in combinations(judged, 2)
    ]


def _value(record: Record, dimension: str | None) -> float:
    """The number by which a single picture is compared, on [0, 1] of its scale."""
    if record.kind == "binary":
        return float(record.liked)
    if dimension is None and record.rating is not None:
        value = record.rating
    elif record.ratings is not None:
        if dimension is None:
            names = ", ".join(record.ratings)
            raise ValueError(f"record {record.record_id!r} rates several dimensions; choose dimension= one of {names}")
        if dimension not in record.ratings:
            raise RecordError("dimension not rated", f"{dimension!r}; rated: {', '.join(record.ratings)}")
        value = record.ratings[dimension]
    else:
        raise RecordError("no rating", f"record {record.record_id!r} holds no rating to compare by")
    return (value - record.low) / (record.high - record.low)


def _of_ratings(records: list[Record], dimension: str | None, skipped: Counter[str]) -> list[Comparison]:
    """Pairs of single-picture records of one prompt. Several ratings of one picture are averaged (by weight) first."""
    sums: dict[bytes | str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for record in records:
        try:
            value = _value(record, dimension)
        except RecordError as error:
            skipped[error.reason] += 1
            continue
        total = sums[record.images[0]]
        total[0] += record.weight * value
        total[1] += record.weight
        total[2] += 1
    rated = [(image, v / w, w / n) for image, (v, w, n) in sums.items() if w > 0]
    skipped["weight zero"] += len(sums) - len(rated)
    if len(rated) == 1:
        skipped["only one picture of its prompt"] += 1
    binary, out = records[0].kind == "binary", []
    for (a, value_a, weight_a), (b, value_b, weight_b) in combinations(rated, 2):
        if binary and value_a == value_b:  # two likes say nothing about which is better
            skipped["both liked or both disliked"] += 1
        else:
            preference = 1.0 if value_a > value_b else 0.0 if value_a < value_b else 0.5
            out.append((a, b, preference, (weight_a + weight_b) / 2))
    return out


def _comparisons(
    records: Iterable[Record], dimension: str | None, within: str, skipped: Counter[str]
) -> list[tuple[str, str, Comparison]]:
    """(prompt key, prompt, comparison) of all records."""
    out: list[tuple[str, str, Comparison]] = []
    groups: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        key = record.prompt_id or record.prompt
        if record.kind == "pair":
            out.append((key, record.prompt, (*record.images, record.preference, record.weight)))
        elif record.kind == "ranking":
            out.extend((key, record.prompt, c) for c in _of_ranking(record))
        else:
            judge = record.annotator if within == "annotator" else None
            groups[key, record.prompt, record.kind == "binary", judge].append(record)
    for (key, prompt, *_), group in groups.items():
        out.extend((key, prompt, c) for c in _of_ratings(group, dimension, skipped))
    return out


class _Gallery:
    """Pictures by what stands in the record; each is decoded once."""

    def __init__(self, size: int | None):
        self.size, self.rows, self.pictures = size, {}, []
        self.bad: dict[bytes | str, RecordError] = {}

    def row(self, picture: bytes | str) -> int:
        if picture in self.bad:
            raise self.bad[picture]
        if picture not in self.rows:
            try:
                decoded = decode_picture(picture)
            except RecordError as error:
                self.bad[picture] = error
                raise
            decoded = decoded if self.size is None else fit(decoded, self.size)
            if self.pictures and decoded.shape != self.pictures[0].shape:
                sizes = f"{tuple(self.pictures[0].shape[1:])} and {tuple(decoded.shape[1:])}"
                raise ValueError(f"pictures differ in size ({sizes}); give size= to resize and cut them to a square")
            self.rows[picture] = len(self.pictures)
            self.pictures.append(decoded)
        return self.rows[picture]


def _check_choice(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}; allowed: {', '.join(allowed)}")


def to_pairs(
    records: Iterable[Record],
    ties: str = "half",
    dimension: str | None = None,
    within: str = "prompt",
    size: int | None = None,
    on_error: str = "raise",
) -> PairData:
    """Every comparison that the records hold.

    Pairs stay as they are and rankings give all their pairs. Ratings, rich feedback and binary feedback give the pairs
    of pictures of the same prompt; several ratings of one picture are averaged first. Two liked (or two disliked)
    pictures give no pair.

    Args:
        ties: "half" keeps ties with preference 0.5; "drop" leaves them out and counts them.
        dimension: which of several rated dimensions to compare by.
        within: "prompt" compares ratings of all annotators of a prompt; "annotator" only those of the same annotator.
        size: resize the shorter side to this and cut the middle; needed when the pictures differ in size.
        on_error: "raise" or "skip" for a picture that is missing or corrupt.

    Returns:
        `PairData`; `skipped` counts what gave no pair, by reason.

    Raises:
        ValueError: an argument outside the above, pictures of several sizes, several dimensions and none chosen, or
            nothing left to compare. RecordError (a ValueError): a picture that cannot be decoded.
    """
    _check_choice("ties", ties, "half", "drop")
    _check_choice("within", within, "prompt", "annotator")
    _check_choice("on_error", on_error, "raise", "skip")
    skipped: Counter[str] = Counter()
    gallery, kept, prompt_rows = _Gallery(size), [], {}
    for key, prompt, (first, second, preference, weight) in _comparisons(records, dimension, within, skipped):
        if ties == "drop" and preference == 0.5:
            skipped["tie"] += 1
            continue
        try:
            rows = gallery.row(first), gallery.row(second)
        except RecordError as error:
            if on_error == "raise":
                raise
            skipped[error.reason] += 1
            continue
        kept.append((*rows, prompt, prompt_rows.setdefault(key, len(prompt_rows)), preference, weight))
    skipped = +skipped
    if not kept:
        raise ValueError(f"the records hold no comparison; left out: {dict(skipped) or 'nothing'}")
    first, second, prompts, ids, preference, weight = zip(*kept)
    return PairData(
        torch.stack(gallery.pictures), torch.tensor(first), torch.tensor(second), list(prompts), torch.tensor(ids),
        torch.tensor(preference, dtype=torch.float32), torch.tensor(weight, dtype=torch.float32), skipped,
    )  # fmt: skip
