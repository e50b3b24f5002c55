"""Answers of simulated annotators as feedback records: pair, ranking, rating, ratings, rich, binary.

An `AnswerSheet` is one annotator at work: it counts the answers given (taste drifts with them) and draws each from
(seed, annotator, number of answers before, kind of question, name of the data set). Two sheets with the same seed and
questions give the same records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from surveylib.feedback.records import Record, encode_picture
from surveylib.worlds.shapes.annotators import Annotator, random_for
from surveylib.worlds.shapes.looks import Looks
from surveylib.worlds.shapes.marks import marks, misaligned_words, misalignment_map
from surveylib.worlds.shapes.scenes import CANVAS

PATCH = 8  # edge of the squares in which artifacts are overlooked or marked, pixels


@dataclass(frozen=True)
class Shown:
    """Pictures that can be asked about.

    Attributes:
        seen: what there is to see, see `looks.look`.
        models: the maker of each picture, or empty.
        prompt_ids: a name for the prompt of each picture, or empty.
        source: name of the data set the records belong to.
    """

    seen: Looks
    models: tuple[str, ...] = ()
    prompt_ids: tuple[str, ...] = ()
    source: str = ""
    encoded: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        for name in ("models", "prompt_ids"):
            if len(getattr(self, name)) not in (0, len(self.seen)):
                raise ValueError(f"{len(getattr(self, name))} {name} for {len(self.seen)} pictures; give one a picture")

    def picture(self, row: int) -> bytes:
        """PNG bytes of a picture, encoded once."""
        if row not in self.encoded:
            self.encoded[row] = encode_picture(self.seen.pictures[row])
        return self.encoded[row]

    def fields(self, rows: Sequence[int]) -> dict[str, Any]:
        """Fields of a record about these pictures.

        Raises:
            ValueError: pictures of different prompts, or a row that is not there.
        """
        wrong = [row for row in rows if not 0 <= row < len(self.seen)]
        if wrong:
            raise ValueError(f"no picture {wrong[0]}: there are {len(self.seen)}, counted from 0")
        prompts = sorted({self.seen.prompts[row] for row in rows})
        if len(prompts) > 1:
            raise ValueError(f"pictures of one question belong to one prompt; got {', '.join(map(repr, prompts))}")
        return {
            "prompt": prompts[0], "images": tuple(self.picture(row) for row in rows), "source": self.source,
            "prompt_id": self.prompt_ids[rows[0]] if self.prompt_ids else "",
            "models": tuple(self.models[row] for row in rows) if self.models else (),
        }


@dataclass
class AnswerSheet:
    """One annotator answering; `answered` grows with every answer.

    Every method takes rows of `shown`, in the order in which the annotator sees them, and returns one `Record`.
    Further fields of the record (record_id, weight, extra) may be given by name.

    Raises (all methods):
        ValueError: rows that are not there, pictures of different prompts, or what `Record` refuses (a picture compared
            with itself, too few pictures).
    """

    annotator: Annotator
    shown: Shown
    seed: int = 0
    answered: int = 0

    def _next(self, what: str) -> np.random.Generator:
        rng = random_for(self.seed, self.annotator.name, self.answered, f"{self.shown.source}|{what}")
        self.answered += 1
        return rng

    def _record(self, kind: str, rows: Sequence[int], more: dict[str, Any]) -> Record:
        who = self.annotator.name
        name = f"{self.shown.source or 'shapes'}-{self.seed}-{who}-{self.answered}"
        return Record(kind, annotator=who, **{"record_id": name, **self.shown.fields(rows), **more})

    def _utilities(self, rows: Sequence[int], dimension: str | None) -> list[float]:
        self.shown.fields(rows)
        seen = self.shown.seen.pick(rows)
        if dimension is None:
            return self.annotator.utility(seen, self.answered).tolist()
        return self.annotator.chooses_by(seen, dimension, self.answered).tolist()

    def pair(self, first: int, second: int, dimension: str | None = None, **more: Any) -> Record:
        """Which of two pictures is better, or a tie; by `dimension` of `annotators.DIMENSIONS`, None: by utility."""
        u = self._utilities((first, second), dimension)
        preference = self.annotator.compare(*u, self._next("pair"))
        return self._record("pair", (first, second), {"preference": preference, **more})

    def ranking(self, rows: Sequence[int], **more: Any) -> Record:
        """Ranks of two pictures or more, 1 is best; ties as the annotator's threshold has them."""
        u = self._utilities(rows, None)
        return self._record("ranking", rows, {"ranks": self.annotator.rank(u, self._next("ranking")), **more})

    def _rated(self, row: int, names: dict[str, str], low: float, high: float, step: float) -> dict[str, float]:
        self.shown.fields((row,))
        values = self.annotator.dimensions(self.shown.seen.pick((row,)), self.answered)
        strange = [name for name in names.values() if name not in values]
        if strange:
            raise ValueError(f"unknown dimension {strange[0]!r}; known: {', '.join(values)}")
        rng = self._next("rating")
        return {ours: self.annotator.rate(float(values[name]), low, high, rng, step) for ours, name in names.items()}

    def rating(
        self, row: int, low: float = 1, high: float = 10, step: float = 1, dimension: str = "overall", **more: Any
    ) -> Record:
        """One number for the picture, on the scale low, low + step, ..., high; for one of `annotators.DIMENSIONS`."""
        value = self._rated(row, {"it": dimension}, low, high, step)["it"]
        return self._record("rating", (row,), {"rating": value, "low": low, "high": high, **more})

    def ratings(
        self, row: int, names: dict[str, str], low: float = 1, high: float = 5, step: float = 1, **more: Any
    ) -> Record:
        """One number for each dimension; `names` gives what the record calls it -> one of `annotators.DIMENSIONS`."""
        values = self._rated(row, names, low, high, step)
        return self._record("ratings", (row,), {"ratings": values, "low": low, "high": high, **more})

    def binary(self, row: int, least: float = 0.75, **more: Any) -> Record:
        """Like or dislike; `least` is the utility that is liked half the time."""
        (u,) = self._utilities((row,), None)
        return self._record("binary", (row,), {"liked": self.annotator.likes(u, self._next("binary"), least), **more})

    def rich(self, row: int, **more: Any) -> Record:
        """Heatmaps "artifact" and "misalignment", misaligned words, and four scores in [0, 1], higher is better, named
        as in RichHF-18K. Each fault and each artifact patch is overlooked with the annotator's probability; a lazy
        answer marks nothing."""
        scores = self._rated(row, RICH_SCORES, 0.0, 1.0, 0.25)
        seen, person, rng = self.shown.seen.pick((row,)), self.annotator, self._next("rich")
        self.answered -= 1  # scores and marks are one answer
        ((found, _, artifacts),) = marks(seen, person.counts)
        careless = rng.random() < person.lazy
        noticed = [fault for fault in found if rng.random() >= person.overlooks]
        patches = rng.random((CANVAS // PATCH, CANVAS // PATCH)) >= person.overlooks
        if careless:
            noticed, patches = [], np.zeros_like(patches)
        kept = F.interpolate(torch.from_numpy(patches)[None, None].float(), size=CANVAS)[0, 0]
        maps = {"artifact": (artifacts * kept).numpy(), "misalignment": misalignment_map(seen.readings[0],
                                                                                       noticed).numpy()}
        return self._record("rich", (row,), {
            "ratings": scores, "heatmaps": maps, "misaligned": misaligned_words(seen.prompts[0], noticed), **more,
        })


RICH_SCORES = {"aesthetics_score": "aesthetics", "artifact_score": "quality", "misalignment_score": "faithfulness",
               "overall_score": "overall"}

__all__ = ["RICH_SCORES", "AnswerSheet", "Shown"]
