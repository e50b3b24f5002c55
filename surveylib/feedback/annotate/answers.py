"""From an answer in the order shown to a record in the order of the task.

order[s] is the task's picture at the shown place s. A pair shown as order (1, 0) and answered "first" prefers the
task's second picture, so its record has preference 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surveylib.feedback.annotate.tasks import MAPS, Task
from surveylib.feedback.records import Record

SKIP = "skip"
PREFERENCES = {"first": 1.0, "second": 0.0, "tie": 0.5}
_SPOKEN = {"like": True, "dislike": False, True: True, False: False}


def _pair(task: Task, answer: Any, order: Sequence[int]) -> dict[str, Any]:
    if not isinstance(answer, str) or answer not in PREFERENCES:
        raise ValueError(f"task {task.task_id}: {answer!r} answers no pair; say first, second, tie or skip")
    shown = PREFERENCES[answer]
    return {"preference": shown if order[0] == 0 else 1.0 - shown}


def _ranking(task: Task, answer: Any, order: Sequence[int]) -> dict[str, Any]:
    count = len(task.images)
    try:
        ranks = [int(rank) for rank in answer]
        whole = all(rank == given for rank, given in zip(ranks, answer))
    except (TypeError, ValueError):
        ranks, whole = [], False
    if not whole or len(ranks) != count or not all(1 <= rank <= count for rank in ranks) or min(ranks) != 1:
        raise ValueError(f"task {task.task_id}: {answer!r} ranks no {count} pictures; "
                         f"give one rank from 1 (best) to {count} for each, or skip")
    saved = [0] * count
    for place, picture in enumerate(order):
        saved[picture] = ranks[place]
    return {"ranks": tuple(saved)}


def _rating(task: Task, answer: Any, order: Sequence[int]) -> dict[str, Any]:
    number = isinstance(answer, (int, float, np.number)) and not isinstance(answer, bool)
    if not number or not math.isfinite(answer) or not task.low <= answer <= task.high:
        raise ValueError(f"task {task.task_id}: {answer!r} is no rating from {task.low:g} to {task.high:g}")
    return {"rating": float(answer), "low": task.low, "high": task.high}


def _binary(task: Task, answer: Any, order: Sequence[int]) -> dict[str, Any]:
    if not isinstance(answer, (bool, np.bool_, str)) or answer not in _SPOKEN:
        raise ValueError(f"task {task.task_id}: {answer!r} is neither like (True), dislike (False) nor skip")
    return {"liked": _SPOKEN[answer if isinstance(answer, str) else bool(answer)]}


def _rich(task: Task, answer: Any, order: Sequence[int]) -> dict[str, Any]:
    allowed = (*MAPS, "misaligned")
    if not isinstance(answer, Mapping) or set(answer) - set(allowed):
        raise ValueError(f"task {task.task_id}: marks are a mapping with {', '.join(allowed)}, not {answer!r:.80}")
    maps, words = {}, task.prompt.split()
    for name in MAPS:
        cells = np.asarray(answer.get(name, np.zeros((task.cells, task.cells))), dtype=np.float32)
        if cells.shape != (task.cells, task.cells) or not bool(((cells >= 0) & (cells <= 1)).all()):
            raise ValueError(f"task {task.task_id}: {name} is {task.cells} x {task.cells} cells in [0, 1], "
                             f"not an array of shape {cells.shape}")
        maps[name] = cells
    misaligned = tuple(bool(word) for word in answer.get("misaligned", [False] * len(words)))
    if len(misaligned) != len(words):
        raise ValueError(f"task {task.task_id}: {len(misaligned)} marks for the {len(words)} words of the prompt")
    return {"heatmaps": maps, "misaligned": misaligned}


_RULES = {"pair": _pair, "ranking": _ranking, "rating": _rating, "binary": _binary, "rich": _rich}


def fields_of(task: Task, answer: Any, order: Sequence[int]) -> dict[str, Any]:
    """The record fields an answer sets, in the order of the task's own pictures.

    answer: as the module `tasks` lists, in the order shown. order: a permutation of the pictures, shown place to
    task's index. Raises ValueError that names the task, the answer and what is allowed.
    """
    if sorted(order) != list(range(len(task.images))):
        raise ValueError(f"task {task.task_id}: {tuple(order)} is no order of its {len(task.images)} pictures")
    return _RULES[task.kind](task, answer, order)


def to_record(task: Task, answer: Any, order: Sequence[int], seconds: float, **fields: Any) -> Record:
    """The record of an answer. fields: further record fields (annotator, source, time, extra)."""
    extra = {**task.extra, **fields.pop("extra", {}), "task": task.task_id, "order": list(order), "seconds": seconds}
    return Record(kind=task.kind, prompt=task.prompt, images=task.images, prompt_id=task.prompt_id, models=task.models,
                  extra=extra, **fields_of(task, answer, order), **fields)
