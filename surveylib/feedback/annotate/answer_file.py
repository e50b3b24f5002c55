"""The files a session writes: answers.jsonl with the answers that stand, answers.skipped.jsonl with the tasks skipped.

The first is a file of records at every moment: `read_records` reads it while a session runs and after it was killed.
An answer is one appended line; an undo cuts the last line off. Both are one system call, so a kill leaves the file with
the line or without it; a line torn by a full disk or a power cut is dropped and counted when the file is opened.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import SoftFileLock, Timeout

from surveylib.feedback.records import Record, append_record, read_records

POSITION = "position"  # in a record's extra: where in the session it was given, skips counted


@dataclass(frozen=True)
class Entry:
    """One thing that was done: a task answered (with its record) or skipped (without)."""

    position: int
    task_id: str
    record: Record | None


class LockedError(RuntimeError):
    """Another session has the file open."""


def _cut(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class LineFile:
    """A text file of lines that grows by appends and shrinks by cutting the last one. Knows where its lines start.

    Attributes:
        torn: bytes of an unfinished last line that `mend` dropped.
    """

    def __init__(self, path: Path):
        self.path, self.torn, self.size = path, 0, 0
        self.starts: list[int] = []

    def mend(self) -> None:
        """Find the lines. An unfinished last line goes; one that only lacks its end gets it."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and _is_object(data[whole:]):
            with open(self.path, "ab") as file:
                file.write(b"\n")
            data += b"\n"
            whole = len(data)
        elif whole < len(data):
            self.torn = len(data) - whole
            _cut(self.path, whole)
        if not whole:
            self.path.unlink(missing_ok=True)
        ends = [0, *(i + 1 for i, byte in enumerate(data[:whole]) if byte == 10)]
        self.starts, self.size = ends[:-1], whole

    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.size else []

    def check(self) -> None:
        """Raise RuntimeError where the file is no longer as this session left it."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self.size:
            raise RuntimeError(f"{self.path} was changed by something else ({self.size} bytes expected, {size} found); "
                               "nothing was written. Close the session and open it again")

    def grow(self, write) -> None:
        """Call write(path), which appends; a failed write is cut off again before its error goes on."""
        self.check()
        before = self.size
        try:
            write(self.path)
        except BaseException:
            if self.path.exists() and self.path.stat().st_size > before:
                _cut(self.path, before)
            raise
        with open(self.path, "rb") as file:
            file.seek(before)
            added = file.read()
        here = before
        for line in added.splitlines(keepends=True):
            self.starts.append(here)
            here += len(line)
        self.size = here

    def drop_last(self) -> None:
        """Cut the last line off."""
        self.check()
        start = self.starts[-1]
        _cut(self.path, start)
        self.starts.pop()
        self.size = start


class AnswerFile:
    """What stands in the files of a session, held by one session at a time.

    path: a .jsonl file; it and its folder are made at the first answer.
    The lock is a file beside it with the process id; the lock of a process that is gone on this machine is taken over.

    Raises:
        LockedError: another session has the file open; names the process.
        ValueError: another suffix, or a file that is none of records; nothing is changed then.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix.lower() != ".jsonl":
            raise ValueError(f"answers are appended to a .jsonl file, not {self.path.name!r}; export() writes .parquet")
        self.skip_path = self.path.with_suffix(".skipped.jsonl")
        self._lock = SoftFileLock(f"{self.path}.lock", timeout=0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LockedError(self._holder()) from error
        try:
            self._answers, self._skips = LineFile(self.path), LineFile(self.skip_path)
            self.entries = self._read()
        except BaseException:
            self._lock.release()
            raise

    def _holder(self) -> str:
        if self._lock.is_lock_held_by_us:
            return (f"{self.path} is open in another session of this process; close that one (session.close()), or "
                    "pass take_over=True")
        return (f"{self.path} is open in another session (process {self._lock.pid}); close that one, or, if no such "
                f"session runs, delete {self._lock.lock_file}")

    def _read(self) -> list[Entry]:
        records = read_records(self.path, check_pictures=False) if self.path.exists() else []  # before anything is cut
        self._answers.mend()
        entries = []
        for number, record in enumerate(records, start=1):
            position = record.extra.get(POSITION, number)
            if not isinstance(position, int):
                raise ValueError(f"{self.path}, record {number}: {POSITION} is {position!r}, not a whole number")
            entries.append(Entry(position, str(record.extra.get("task", "")), record))
        for number, line in enumerate(self._skipped_lines(), start=1):
            try:
                row = json.loads(line)
                entries.append(Entry(int(row[POSITION]), str(row["task"]), None))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.skip_path}, line {number} is no skipped task ({error}); "
                                 "delete the file to be asked the skipped tasks again") from error
        return sorted(entries, key=lambda entry: entry.position)

    def _skipped_lines(self) -> list[str]:
        self._skips.mend()
        return self._skips.lines()

    @property
    def torn(self) -> int:
        """Bytes of unfinished lines dropped at opening."""
        return self._answers.torn + self._skips.torn

    @property
    def next_position(self) -> int:
        return self.entries[-1].position + 1 if self.entries else 1

    def add_answer(self, record: Record) -> None:
        """Append a record; its extra holds task and position. On the disk when this returns."""
        self._answers.grow(lambda path: append_record(path, record))
        self.entries.append(Entry(record.extra[POSITION], record.extra["task"], record))

    def add_skip(self, task_id: str) -> None:
        """Note a skipped task. On the disk when this returns."""
        row: dict[str, Any] = {"task": task_id, POSITION: self.next_position, "time": time.time()}

        def write(path: Path) -> None:
            with open(path, "ab", buffering=0) as file:
                file.write(json.dumps(row).encode() + b"\n")
                os.fsync(file.fileno())

        self._skips.grow(write)
        self.entries.append(Entry(row[POSITION], task_id, None))

    def undo(self) -> Entry:
        """Take the last entry back, on the disk too."""
        entry = self.entries[-1]
        (self._answers if entry.record is not None else self._skips).drop_last()
        return self.entries.pop()

    def close(self) -> None:
        """Let go of the file. May be called again."""
        self._lock.release()
