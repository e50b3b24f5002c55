"""What a person is asked: two pictures to compare, some to rank, one to rate, to like or to mark.

A `Task` holds the question with its pictures as encoded bytes. The answer to each kind, in the order the pictures are
shown:

    pair     "first", "second" or "tie"
    ranking  one rank for each picture, 1 is best, equal numbers are ties: (2, 1, 1, 4)
    rating   a number from low to high
    binary   True (like) or False
    rich     {"artifact": (cells, cells) bool, "misalignment": (cells, cells) bool, "misaligned": one bool a word};
             what is left out counts as unmarked. As in RichHF-18K (arXiv 2312.10240), on a coarse grid.

"skip" is an answer to all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from surveylib.feedback.records import decode_picture, encode_picture

TASK_KINDS = ("pair", "ranking", "rating", "binary", "rich")
MAPS = ("artifact", "misalignment")  # what can be painted on a picture
QUESTIONS = {
    "pair": "Which picture do you prefer for this prompt?",
    "ranking": "Order the pictures, the best first.",
    "rating": "How good is this picture for its prompt?",
    "binary": "Do you like this picture for its prompt?",
    "rich": "Mark where the picture is wrong, and the words it does not show.",
}


def picture_bytes(picture: Any) -> bytes:
    """A picture as encoded bytes: bytes as they are, a path read, a tensor or array (3, H, W) in [0, 1] to PNG.

    Raises ValueError for bytes that are no readable picture and for a path without a file.
    """
    if isinstance(picture, (str, Path)):
        path = Path(picture)
        if not path.is_file():
            raise ValueError(f"there is no picture at {str(picture)!r}; give bytes, a tensor or an existing file")
        picture = path.read_bytes()
    if isinstance(picture, (bytes, bytearray)):
        decode_picture(bytes(picture))
        return bytes(picture)
    return encode_picture(picture)


@dataclass(frozen=True)
class Task:
    """One question. Make it with `Task.pair`, `.ranking`, `.rating`, `.binary` or `.rich`.

    Attributes:
        kind: one of TASK_KINDS.
        prompt: the text the pictures were made for.
        images: encoded pictures; two for a pair, two to nine for a ranking, else one.
        task_id: unique in a session; empty: a hash of kind, prompt and pictures.
        prompt_id, models: passed on to the saved record; models names what made each picture.
        question: the line above the pictures; empty: the kind's own.
        low, high, step: the scale of a rating.
        cells: cells along each side of a picture to mark.
        extra: passed on to the saved record.
    """

    kind: str
    prompt: str
    images: tuple[bytes, ...]
    task_id: str = ""
    prompt_id: str = ""
    models: tuple[str, ...] = ()
    question: str = ""
    low: float = 1.0
    high: float = 5.0
    step: float = 1.0
    cells: int = 16
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in TASK_KINDS:
            raise ValueError(f"a task of kind {self.kind!r}; kinds are {', '.join(TASK_KINDS)}")
        object.__setattr__(self, "images", tuple(picture_bytes(x) for x in self.images))
        object.__setattr__(self, "question", self.question or QUESTIONS[self.kind])
        self._check()
        if not self.task_id:
            parts = [self.kind.encode(), self.prompt.encode(), *self.images]
            digest = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts))
            object.__setattr__(self, "task_id", digest.hexdigest()[:16])

    def _check(self) -> None:
        name = f"task {self.task_id or self.prompt!r}"
        fewest, most = {"pair": (2, 2), "ranking": (2, 9)}.get(self.kind, (1, 1))
        if not fewest <= len(self.images) <= most:
            many = str(fewest) if fewest == most else f"{fewest} to {most}"
            raise ValueError(f"{name}: a {self.kind} task shows {many} pictures, not {len(self.images)}")
        if len(set(self.images)) < len(self.images):
            raise ValueError(f"{name}: the same picture twice; leave it out, a comparison with itself says nothing")
        if self.models and len(self.models) != len(self.images):
            raise ValueError(f"{name}: {len(self.models)} models for {len(self.images)} pictures")
        if self.kind == "rating" and not (self.low < self.high and 0 < self.step <= self.high - self.low):
            raise ValueError(f"{name}: the scale {self.low:g} to {self.high:g} in steps of {self.step:g} is empty")
        if self.kind == "rich" and not 2 <= self.cells <= 64:
            raise ValueError(f"{name}: cells is {self.cells}; 2 to 64 can be painted")

    @classmethod
    def pair(cls, prompt: str, first: Any, second: Any, **fields: Any) -> Task:
        """Two pictures of one prompt."""
        return cls("pair", prompt, (first, second), **fields)

    @classmethod
    def ranking(cls, prompt: str, images: Iterable[Any], **fields: Any) -> Task:
        """Two to nine pictures of one prompt, to be ordered."""
        return cls("ranking", prompt, tuple(images), **fields)

    @classmethod
    def rating(cls, prompt: str, image: Any, low: float = 1.0, high: float = 5.0, **fields: Any) -> Task:
        """One picture on a scale from low to high."""
        return cls("rating", prompt, (image,), low=low, high=high, **fields)

    @classmethod
    def binary(cls, prompt: str, image: Any, **fields: Any) -> Task:
        """One picture, liked or not."""
        return cls("binary", prompt, (image,), **fields)

    @classmethod
    def rich(cls, prompt: str, image: Any, cells: int = 16, **fields: Any) -> Task:
        """One picture to mark: cells with artifacts, cells that do not fit the prompt, words not shown."""
        return cls("rich", prompt, (image,), cells=cells, **fields)


def number_repeats(tasks: Sequence[Task]) -> list[Task]:
    """Tasks with unique ids: a task without an id of its own that comes again gets "-2", "-3" after its hash.

    Asking a pair twice measures how far an annotator agrees with themselves, so repeats are allowed.
    """
    seen: dict[str, int] = {}
    numbered = []
    for task in tasks:
        seen[task.task_id] = count = seen.get(task.task_id, 0) + 1
        numbered.append(task if count == 1 else replace(task, task_id=f"{task.task_id}-{count}"))
    ids = [task.task_id for task in numbered]
    if len(set(ids)) < len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})
        raise ValueError(f"task ids must be unique; given twice: {', '.join(twice)}")
    return numbered
