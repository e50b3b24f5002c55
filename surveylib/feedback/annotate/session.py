"""A session of annotation without any interface: what is asked next, what was answered, what is on the disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from surveylib.feedback.annotate.answer_file import POSITION, AnswerFile, Entry, LockedError
from surveylib.feedback.annotate.answers import SKIP, to_record
from surveylib.feedback.annotate.tasks import Task, number_repeats
from surveylib.feedback.records import Record, write_records

SOURCE = "surveylib.feedback.annotate"
_OPEN: WeakValueDictionary[Path, AnnotationSession] = WeakValueDictionary()  # sessions of this process by file


@dataclass(frozen=True)
class Shown:
    """A task as it is shown: pictures in the drawn order.

    Attributes:
        task: the question. images: its pictures in the order shown. order: shown place -> the task's own index.
        number: counted from 1 in the session's list.
    """

    task: Task
    images: tuple[bytes, ...]
    order: tuple[int, ...]
    number: int

    @property
    def kind(self) -> str:
        return self.task.kind

    @property
    def prompt(self) -> str:
        return self.task.prompt


@dataclass(frozen=True)
class Progress:
    """answered + skipped + left = total, the tasks of the list. other: answers in the file to tasks not in the list."""

    answered: int
    skipped: int
    total: int
    other: int

    @property
    def left(self) -> int:
        return self.total - self.answered - self.skipped


def shown_order(task: Task, seed: int) -> tuple[int, ...]:
    """The order in which a task's pictures are shown: uniform, a function of (seed, task id) alone.

    So a session that resumes, or asks in another order, shows each task as it did before.
    """
    digest = hashlib.sha256(f"{seed}:{task.task_id}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    return tuple(int(i) for i in rng.permutation(len(task.images)))


class AnnotationSession:
    """Asks tasks in order, saves each answer at once, resumes where it was left.

    Args:
        tasks: at least one `Task`. Repeats are allowed: they are numbered.
        path: the file of answers (.jsonl). Skipped tasks are noted beside it, in <name>.skipped.jsonl.
        annotator: who answers; goes into every record. A file belongs to one annotator.
        seed: draws the order in which pictures are shown; each record names that order; its label has
            it undone.
        expect: number of answers -> accuracy (0 to 1) of a personal reward trained on so many, for the line on what to
            expect. Measured by the caller; empty: no such line. expect_note: what was measured, for that line.
        take_over: a session of this process that has the file open is closed first, as when a cell is run again.

    Raises:
        LockedError: another session has the file open.
        ValueError: no tasks, equal ids, or a file of another annotator or with other tasks under the same ids.
    """

    def __init__(self, tasks: Sequence[Task], path: str | Path, *, annotator: str = "", seed: int = 0,
                 expect: Mapping[int, float] | None = None, expect_note: str = "", take_over: bool = False):
        self.tasks = number_repeats(tasks)
        if not self.tasks:
            raise ValueError("a session needs at least one task")
        self.annotator, self.seed, self.expect_note = annotator, int(seed), expect_note
        self.expect = _checked_expectation(expect or {})
        self._by_id = {task.task_id: task for task in self.tasks}
        self._numbers = {task.task_id: number for number, task in enumerate(self.tasks, start=1)}
        self._key = Path(path).resolve()
        if take_over and self._key in _OPEN:
            _OPEN[self._key].close()
        self._file = AnswerFile(path)
        try:
            self._check_entries()
        except BaseException:
            self._file.close()
            raise
        self._closed, self._since = False, None
        _OPEN[self._key] = self

    def _check_entries(self) -> None:
        seen: set[str] = set()
        for entry in self._file.entries:
            record, task = entry.record, self._by_id.get(entry.task_id)
            if record is not None and record.annotator != self.annotator:
                raise ValueError(f"{self.path} holds answers of {record.annotator!r}; {self.annotator!r} needs a file "
                                 "of their own")
            if task is None:
                continue
            if entry.task_id in seen:
                raise ValueError(f"{self.path} holds task {entry.task_id} twice; take one of the two out")
            seen.add(entry.task_id)
            asked = (task.kind, task.prompt, task.images)
            if record is not None and (record.kind, record.prompt, record.images) != asked:
                raise ValueError(f"{self.path} holds an answer to another task with the id {entry.task_id} (prompt "
                                 f"{record.prompt!r}, here {task.prompt!r}); use another file for other tasks")

    @property
    def path(self) -> Path:
        """The file of answers."""
        return self._file.path

    @property
    def torn(self) -> int:
        """Bytes of an unfinished answer that were dropped when the file was opened; 0 normally."""
        return self._file.torn

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def records(self) -> list[Record]:
        """All answers that stand in the file, in the order given, those to tasks not in the list included."""
        return [entry.record for entry in self._file.entries if entry.record is not None]

    @property
    def progress(self) -> Progress:
        mine = [entry for entry in self._file.entries if entry.task_id in self._by_id]
        answered = sum(entry.record is not None for entry in mine)
        other = sum(entry.record is not None for entry in self._file.entries) - answered
        return Progress(answered, len(mine) - answered, len(self.tasks), other)

    @property
    def current(self) -> Shown | None:
        """The task to answer next, or None when all are done. The clock of the answer starts when it is first read."""
        done = {entry.task_id for entry in self._file.entries}
        task = next((task for task in self.tasks if task.task_id not in done), None)
        if task is None:
            return None
        if self._since is None:
            self._since = time.monotonic()
        order = shown_order(task, self.seed)
        return Shown(task, tuple(task.images[i] for i in order), order, self._numbers[task.task_id])

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"this session on {self.path} is closed; make a new one to go on")

    def answer(self, answer: Any, seconds: float | None = None) -> Record | None:
        """Answer the current task; the answer is on the disk when this returns.

        answer: as `surveylib.feedback.annotate.tasks` lists for each kind, in the order shown, or "skip".
        seconds: time taken; None: since `current` was first read for this task.
        Returns the record, or None for a skip. Raises ValueError for an answer that does not fit, RuntimeError when all
        tasks are done, the session is closed or the file was changed by something else; the task then stays current.
        """
        self._require_open()
        shown = self.current
        if shown is None:
            raise RuntimeError(f"all {len(self.tasks)} tasks are done; undo() takes the last answer back")
        taken = time.monotonic() - self._since if seconds is None else float(seconds)
        if not 0 <= taken < float("inf"):
            raise ValueError(f"seconds is {seconds!r}; the time of an answer is finite and not negative")
        record = None
        if isinstance(answer, str) and answer == SKIP:
            self._file.add_skip(shown.task.task_id)
        else:
            spoken = {"answer": answer} if isinstance(answer, (str, bool, int, float)) else {}
            extra = {**spoken, "seed": self.seed, POSITION: self._file.next_position}
            record = to_record(shown.task, answer, shown.order, round(taken, 3), annotator=self.annotator,
                               source=SOURCE, time=time.time(), extra=extra, record_id=self._record_id(shown.task))
            self._file.add_answer(record)
        self._since = None
        return record

    def _record_id(self, task: Task) -> str:
        return f"{self.annotator}-{task.task_id}" if self.annotator else task.task_id

    def undo(self) -> Task | None:
        """Take the last answer or skip back, also on the disk, and ask that task again. Any number of times.

        Returns the task, or None when there is nothing to take back: at the start, or when the last entry of the file
        belongs to a task that is not in the list.
        """
        self._require_open()
        last = self.last
        if last is None:
            return None
        self._file.undo()
        self._since = None
        return self._by_id[last.task_id]

    @property
    def last(self) -> Entry | None:
        """What `undo` would take back, or None."""
        entries = self._file.entries
        return entries[-1] if entries and entries[-1].task_id in self._by_id else None

    def run(self, annotator: Callable[[Shown], Any], limit: int | None = None) -> list[Record]:
        """Let a callable answer: annotator(shown) -> answer, at most `limit` tasks (None: all that are left).

        Returns the records made; skips are saved and not among them.
        """
        made = []
        for _ in range(self.progress.left if limit is None else limit):
            shown = self.current
            if shown is None:
                break
            record = self.answer(annotator(shown))
            if record is not None:
                made.append(record)
        return made

    def expectation(self) -> str:
        """The line on what to expect after so many answers, from the caller's numbers; "" where none were given."""
        if not self.expect:
            return ""
        count = self.progress.answered
        passed = max((n for n in self.expect if n <= count), default=None)
        ahead = min((n for n in self.expect if n > count), default=None)
        said = [f"{self.expect[n]:.0%} after {n} answers" for n in (passed, ahead) if n is not None]
        note = f" ({self.expect_note})" if self.expect_note else ""
        return f"What to expect: a reward trained on your answers predicts new choices right, {', '.join(said)}{note}."

    def export(self, path: str | Path) -> int:
        """Write all standing answers as one file of records (.parquet or .jsonl); returns how many.

        Raises ValueError when path is the session's own file.
        """
        if Path(path).resolve() in (self._key, self._file.skip_path.resolve()):
            raise ValueError(f"{path} is the session's own file; export to another")
        return write_records(self.records, path)

    def close(self) -> None:
        """Let go of the file, so that another session can open it. May be called again."""
        self._closed = True
        self._file.close()
        if _OPEN.get(self._key) is self:
            del _OPEN[self._key]

    def __enter__(self) -> AnnotationSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _checked_expectation(expect: Mapping[int, float]) -> dict[int, float]:
    for count, accuracy in expect.items():
        if int(count) != count or count < 1 or not 0 <= accuracy <= 1:
            raise ValueError(f"expect maps a number of answers to an accuracy in [0, 1], not {count!r} to {accuracy!r}")
    return {int(count): float(accuracy) for count, accuracy in sorted(expect.items())}


__all__ = ["AnnotationSession", "LockedError", "Progress", "Shown", "shown_order"]
