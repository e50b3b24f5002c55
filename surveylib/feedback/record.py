"""One schema for every kind of feedback on pictures, checked when a record is made.

    kind      pictures   label
    pair      2          preference: probability that the first is preferred (1, 0.5 for a tie, 0, or between)
    ranking   2 or more  ranks: 1 is best, equal numbers are ties
    rating    1          rating, on the scale low to high
    ratings   1          ratings: dimension -> rating, all on the scale low to high
    rich      1          any of heatmaps, misaligned words, rating, ratings
    binary    1          liked
"""

from __future__ import annotations

import json
import math
import numbers
from dataclasses import dataclass, field, fields
from os import PathLike, fspath
from typing import Any

import numpy as np

from surveylib.feedback.pictures import RecordError, name_of, picture_format

KINDS = ("pair", "ranking", "rating", "ratings", "rich", "binary")
LABELS = {
    "pair": ("preference",),
    "ranking": ("ranks",),
    "rating": ("rating",),
    "ratings": ("ratings",),
    "rich": ("rating", "ratings", "heatmaps", "misaligned"),
    "binary": ("liked",),
}
_ALL_LABELS = ("preference", "ranks", "rating", "ratings", "liked", "heatmaps", "misaligned")
_TEXTS = ("kind", "prompt", "record_id", "prompt_id", "annotator", "source")


@dataclass(frozen=True, eq=False)
class Record:
    """One judgement by one annotator, or one aggregated judgement.

    Args:
        kind: one of `KINDS`.
        prompt: the text the pictures were made for.
        images: encoded pictures (PNG, JPEG, WebP bytes) or paths or web addresses: 2 for a pair, at least 2 for a
            ranking, 1 otherwise.
        record_id, prompt_id, annotator, source: names; "" where unknown.
        models: the generator of each picture, or empty.
        weight: finite, >= 0.
        time: seconds (of the answer, or since the epoch: `source` says), or None.
        extra: what has no field here; JSON values.
        preference: pair: probability in [0, 1] that images[0] is preferred; 0.5 is a tie.
        ranks: ranking: one whole number >= 1 a picture; 1 is best, equal numbers are ties.
        rating, ratings: in [low, high].
        liked: binary.
        heatmaps: rich: name -> (H, W) float32 in [0, 1]; higher is worse (more artifact, more misalignment).
        misaligned: rich: per word of prompt.split(), True where the picture does not show it.

    Raises:
        RecordError (a ValueError): names the record, the field, the value and what is allowed.
    """

    kind: str
    prompt: str
    images: tuple[bytes | str, ...]
    record_id: str = ""
    prompt_id: str = ""
    annotator: str = ""
    source: str = ""
    models: tuple[str, ...] = ()
    weight: float = 1.0
    time: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    preference: float | None = None
    ranks: tuple[int, ...] | None = None
    rating: float | None = None
    low: float = 0.0
    high: float = 1.0
    ratings: dict[str, float] | None = None
    liked: bool | None = None
    heatmaps: dict[str, np.ndarray] | None = None
    misaligned: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                self._refuse("wrong type", name, getattr(self, name), "a text")
        if self.kind not in KINDS:
            self._refuse("unknown kind", "kind", self.kind, f"one of {', '.join(KINDS)}")
        self._check_images()
        self._check_common()
        self._check_which_labels()
        for name in LABELS[self.kind]:
            if getattr(self, name) is not None:
                getattr(self, f"_check_{name}")()

    def _refuse(self, reason: str, name: str, value: Any, allowed: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        which = f"record {self.record_id!r}" if self.record_id else f"{self.kind!r} record, prompt {self.prompt!r:.70}"
        raise RecordError(reason, f"{which}: {name} = {shown}; allowed: {allowed}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _sequence(self, name: str) -> tuple:
        value = getattr(self, name)
        if not isinstance(value, (tuple, list)):
            self._refuse("wrong type", name, value, "a tuple or list")
        return tuple(value)

    def _number(self, name: str, value: Any, low: float, high: float, reason: str = "label outside its range") -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            self._refuse("wrong type", name, value, f"a number in [{low:g}, {high:g}]")
        value = float(value)
        if not low <= value <= high:  # also refuses NaN
            self._refuse(reason, name, value, f"a number in [{low:g}, {high:g}]")
        return value

    def _check_images(self) -> None:
        if isinstance(self.images, (bytes, str)) or not isinstance(self.images, (tuple, list)):
            self._refuse("wrong type", "images", type(self.images).__name__, "a tuple of bytes or paths")
        images = tuple(fspath(i) if isinstance(i, PathLike) else i for i in self.images)
        self._set("images", images)
        least, most = {"pair": (2, 2), "ranking": (2, math.inf)}.get(self.kind, (1, 1))
        if not least <= len(images) <= most:
            wanted = f"{least}" if least == most else f"{least} or more"
            self._refuse("wrong number of pictures", "images", f"{len(images)} pictures", f"{wanted} for a {self.kind}")
        for index, image in enumerate(images):
            if not isinstance(image, (bytes, str)) or len(image) == 0:
                self._refuse("missing picture", f"images[{index}]", image, "encoded bytes or a path")
            if isinstance(image, bytes) and picture_format(image) is None:
                self._refuse("corrupt picture", f"images[{index}]", image[:16], "PNG, JPEG or WebP bytes")
        if len(set(images)) < len(images):
            twice = next(i for i in images if images.count(i) > 1)
            self._refuse("self-comparison", "images", name_of(twice) + " twice", "different pictures")

    def _check_common(self) -> None:
        models = self._sequence("models")
        if (models and len(models) != len(self.images)) or not all(isinstance(m, str) for m in models):
            self._refuse("wrong number of models", "models", models, f"none or {len(self.images)} texts")
        self._set("models", models)
        self._set("weight", self._number("weight", self.weight, 0, math.inf, "weight outside its range"))
        if math.isinf(self.weight):
            self._refuse("weight outside its range", "weight", self.weight, "a finite number >= 0")
        if self.time is not None:
            self._set("time", self._number("time", self.time, -math.inf, math.inf, "time is not a number"))
        try:
            self._set("extra", json.loads(json.dumps(self.extra, allow_nan=False)))
        except (TypeError, ValueError) as error:
            self._refuse("extra is not JSON", "extra", self.extra, f"JSON values ({error})")
        if not isinstance(self.extra, dict):
            self._refuse("extra is not JSON", "extra", self.extra, "a dict")
        low = self._number("low", self.low, -math.inf, math.inf, "wrong scale")
        high = self._number("high", self.high, -math.inf, math.inf, "wrong scale")
        if not low < high or math.isinf(low) or math.isinf(high):
            self._refuse("wrong scale", "low, high", (low, high), "finite numbers with low < high")
        self._set("low", low)
        self._set("high", high)

    def _check_which_labels(self) -> None:
        wanted = LABELS[self.kind]
        for name in _ALL_LABELS:
            value = getattr(self, name)
            if name not in wanted and value is not None:
                self._refuse("label of another kind", name, value, f"for a {self.kind}: {', '.join(wanted)}")
        if all(getattr(self, name) is None for name in wanted):
            self._refuse("missing label", wanted[0], None, f"a {self.kind} needs {' or '.join(wanted)}")

    def _check_preference(self) -> None:
        self._set("preference", self._number("preference", self.preference, 0, 1))

    def _check_rating(self) -> None:
        self._set("rating", self._number("rating", self.rating, self.low, self.high))

    def _check_ratings(self) -> None:
        if not isinstance(self.ratings, dict) or not self.ratings or not all(isinstance(k, str) for k in self.ratings):
            self._refuse("wrong type", "ratings", self.ratings, "a dict dimension -> rating with at least one entry")
        checked = {k: self._number(f"ratings[{k!r}]", v, self.low, self.high) for k, v in self.ratings.items()}
        self._set("ratings", checked)

    def _check_liked(self) -> None:
        if not isinstance(self.liked, (bool, np.bool_)):
            self._refuse("wrong type", "liked", self.liked, "True or False")
        self._set("liked", bool(self.liked))

    def _check_ranks(self) -> None:
        ranks = self._sequence("ranks")
        if len(ranks) != len(self.images):
            self._refuse("wrong number of ranks", "ranks", ranks, f"{len(self.images)} numbers, one a picture")
        for rank in ranks:
            if isinstance(rank, bool) or not isinstance(rank, numbers.Integral):
                self._refuse("wrong type", "ranks", ranks, "whole numbers >= 1")
            if rank < 1:
                self._refuse("label outside its range", "ranks", ranks, "whole numbers >= 1; 1 is best")
        self._set("ranks", tuple(int(r) for r in ranks))

    def _check_heatmaps(self) -> None:
        if not isinstance(self.heatmaps, dict) or not self.heatmaps:
            self._refuse("wrong type", "heatmaps", self.heatmaps, "a dict name -> (H, W) array with at least one entry")
        kept = {}
        for name, heatmap in self.heatmaps.items():
            array = np.array(heatmap, dtype=np.float32)  # a copy
            if array.ndim != 2 or 0 in array.shape:
                self._refuse("wrong heatmap", f"heatmaps[{name!r}]", array.shape, "shape (H, W) with H, W >= 1")
            if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
                span = f"{array.min()} to {array.max()}"
                self._refuse("label outside its range", f"heatmaps[{name!r}]", span, "values in [0, 1]")
            array.flags.writeable = False
            kept[str(name)] = array
        self._set("heatmaps", kept)

    def _check_misaligned(self) -> None:
        words, flags = self.prompt.split(), self._sequence("misaligned")
        if len(flags) != len(words):
            self._refuse("wrong number of words", "misaligned", flags, f"{len(words)} flags, one a word of {words}")
        if not all(isinstance(f, (bool, np.bool_)) for f in flags):
            self._refuse("wrong type", "misaligned", flags, "True or False for each word")
        self._set("misaligned", tuple(bool(f) for f in flags))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        for entry in fields(self):
            mine, theirs = getattr(self, entry.name), getattr(other, entry.name)
            if entry.name == "heatmaps" and mine is not None and theirs is not None:
                if mine.keys() != theirs.keys() or not all(np.array_equal(mine[k], theirs[k]) for k in mine):
                    return False
            elif mine != theirs:
                return False
        return True

    def __hash__(self) -> int:
        return hash((self.kind, self.prompt, self.images, self.record_id))
