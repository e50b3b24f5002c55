"""The folder of a run: locked while in use, marked with what the run is, one checkpoint that is never half written.

Where all weights are trained, the reference does not move: it lies beside the checkpoint, in ``reference-1/``, and is
written once (and once more after each resuming). The checkpoint names the folder that belongs to it.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from surveylib.alignment.memory import FREE
from surveylib.alignment.processes import Processes
from surveylib.runs.checkpoint import STATE_FILE, load_checkpoint, save_checkpoint, write_atomically

FORMAT = 1  # of the checkpoint's content; raise it when older checkpoints can no longer be read
IDENTITY_FILE, CHECKPOINT, LOCK = "identity.json", "checkpoint", ".lock"
REFERENCE = "reference"
OWN_NAMES = re.compile(rf"({CHECKPOINT}|{REFERENCE}-\d+)(\.new|\.old)?")  # what is written and deleted here
NAMED = 4  # differing fields that a message lists
SMALL = 64 * 2**20  # bytes of trained weights up to which a checkpoint, about four times that, takes a second or so
SECONDS = 300.0  # between checkpoints of larger ones


class CheckpointFolder:
    """Checkpoints of one run under `path`. Rank 0 writes, all ranks read. Settings in `FREE` may differ from those of
    the run that began it.

    Raises (on entering):
        ValueError: the folder is in use by another process, or holds another run or another format; says what differs.
        It holds no run, but files under the names of a run's, which would be written over or deleted.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any], processes: Processes) -> None:
        self.path, self.processes = Path(path), processes
        self.identity = {"format": FORMAT, **identity}
        self._lock = FileLock(self.path / LOCK)
        self._reference: tuple[Any, int, str] | None = None  # what was written, its changes in place, where

    def __enter__(self) -> CheckpointFolder:
        if self.processes.main:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise ValueError(f"{self.path} is in use by another run; wait, or choose another folder") from error
            try:
                self._claim()
            except BaseException:
                self._lock.release()
                raise
        self.processes.wait()
        return self

    def __exit__(self, *error: object) -> None:
        if self.processes.main:
            self._lock.release()

    def _claim(self) -> None:
        file = self.path / IDENTITY_FILE
        if not file.exists():
            check_free(self.path, (path for path in self.path.iterdir() if OWN_NAMES.fullmatch(path.name)))
            write_atomically(file, json.dumps(self.identity, indent=1))
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged; delete the folder to start anew") from error
        if not isinstance(found, dict):
            raise ValueError(f"{file} is damaged: it holds no names with values; delete the folder to start anew")
        if found.get("format") != FORMAT:
            raise ValueError(f"{self.path} holds a run of format {found.get('format')}, and this version of surveylib "
                             f"writes format {FORMAT}: go on with the version that began it, or choose another folder")
        asked = json.loads(json.dumps(self.identity))
        if different := [words for key in asked if (words := _difference(key, found.get(key), asked[key]))]:
            raise ValueError(f"{self.path} holds another run: {'; '.join(different)}. Choose another folder, or delete "
                             "this one")

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None.

        Raises:
            ValueError: a file of it is missing or damaged; the message names it.
        """
        folder = self.path / CHECKPOINT
        try:
            state = load_checkpoint(folder)
        except (KeyError, TypeError) as error:  # JSON of another shape, or of other tensors
            raise ValueError(f"{folder / STATE_FILE} is damaged ({error!r}); delete {folder} to start anew") from error
        if state is not None and not isinstance(state, dict):
            raise ValueError(f"{folder / STATE_FILE} is damaged: it holds no state; delete {folder} to start anew")
        if state is not None and (name := state.pop(REFERENCE, None)) is not None:
            state["snapshots"] = {**state.get("snapshots", {}), REFERENCE: self._load_reference(name)}
        return state

    def _load_reference(self, name: str) -> dict[str, Tensor]:
        try:
            found = load_checkpoint(self.path / name)
        except ValueError as error:
            raise ValueError(f"{self.path / name} is damaged; delete {self.path} to start anew") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.path / name} is missing or damaged; delete {self.path} to start anew")
        return found

    def save(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint; the one before stays until this one is whole. All processes call."""
        self.write(state)
        self.processes.wait()

    def write(self, state: dict[str, Any]) -> None:
        """As `save`, without waiting for the other processes."""
        if not self.processes.main:
            return
        snapshots = dict(state.get("snapshots", {}))
        if (reference := snapshots.pop(REFERENCE, None)) is not None:
            state = {**state, "snapshots": snapshots, REFERENCE: self._keep_reference(reference)}
        save_checkpoint(self.path / CHECKPOINT, state)
        for folder, _ in self._references():  # of older checkpoints
            if folder.name != state.get(REFERENCE):
                shutil.rmtree(folder, ignore_errors=True)

    def _references(self) -> list[tuple[Path, int]]:
        """Folders of references, half written ones too, and their numbers."""
        found = [(path, re.fullmatch(rf"{REFERENCE}-(\d+)(\.new|\.old)?", path.name)) for path in self.path.iterdir()]
        return [(path, int(match[1])) for path, match in found if match]

    def _keep_reference(self, reference: dict[str, Tensor]) -> str:
        """Name of the folder that holds these weights: a new one, unless they were written before and not changed."""
        changes = sum(value._version for value in reference.values())
        if self._reference is None or self._reference[0] is not reference or self._reference[1] != changes:
            name = f"{REFERENCE}-{1 + max((number for _, number in self._references()), default=0)}"
            save_checkpoint(self.path / name, reference)
            self._reference = reference, changes, name
        return self._reference[2]


def check_free(folder: Path, taken: Iterable[Path]) -> None:
    """Refuses to begin a run in a folder with files of something else.

    Raises:
        ValueError: `taken`, what lies there under names that the run would use, is not empty; the message names them.
    """
    if names := sorted(path.name for path in taken):
        raise ValueError(f"{folder} holds no run, but {', '.join(names)}: a run writes and deletes files of "
                         f"{'this name' if len(names) == 1 else 'these names'}. Choose another folder, or move them")


def _difference(key: str, found: Any, asked: Any) -> str:
    """In words what differs between two entries of an identity; "" where nothing does that counts."""
    if found == asked:
        return ""
    if key == "prompts":
        return "it has other prompts"
    old, new = _fields(found), _fields(asked)
    if old is None or new is None:
        return f"its {key} is {str(found)[:120]}, this run's is {str(asked)[:120]}"
    names = [name for name in dict.fromkeys([*old, *new]) if name not in FREE and old.get(name) != new.get(name)]
    there, here = (", ".join(f"{n}={named[n]}" if n in named else f"without {n}" for n in names[:NAMED])
                   for named in (old, new))
    more = f" ({len(names)} differ)" if len(names) > NAMED else ""
    return f"its {key} is {there}, this run's is {here}{more}" if names else ""


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of an entry of an identity: a dict, or the text of a dataclass; None where it has none."""
    if not isinstance(value, str):
        return value if isinstance(value, dict) else None
    try:
        call = ast.parse(value, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if not isinstance(call, ast.Call) or call.args:
        return None
    return {"kind": ast.unparse(call.func)} | {named.arg: ast.unparse(named.value) for named in call.keywords}


class Saving:
    """When a run's checkpoint is written: after an epoch, where the last one is old enough, and at the end.

    Args:
        folder: None writes nothing. state: what is written. pause: seconds between two checkpoints at least, by the
            clock of rank 0; 0 writes one after every epoch.
    """

    def __init__(self, folder: CheckpointFolder | None, state: Callable[[], dict[str, Any]], pause: float) -> None:
        self.folder, self.state, self.pause = folder, state, pause
        self._last, self._unwritten = time.monotonic(), False

    def after_epoch(self, end: bool) -> None:
        """Writes where it is time, and at the `end`. All processes call."""
        if self.folder is None:
            return
        self._unwritten = True
        if end or self._due():
            self.folder.save(self.state())
            self._last, self._unwritten = time.monotonic(), False

    def stopped(self) -> None:
        """The caller takes no further epoch: writes what is not yet. Sharded weights would have to be gathered, and
        other processes may be gone: there the last checkpoint stands."""
        if self._unwritten and self.folder.processes.sharding is None:
            self.folder.write(self.state())
            self._unwritten = False

    def _due(self) -> bool:
        if not self.pause:
            return True
        processes = self.folder.processes
        old = processes.main and time.monotonic() - self._last >= self.pause
        return processes.sum_numbers({"due": float(old)})["due"] > 0


def usual_pause(parameters: Sequence[Tensor]) -> float:
    """Seconds between checkpoints for weights of this size: 0 for small ones, `SECONDS` for large ones."""
    return 0.0 if sum(p.numel() * p.element_size() for p in parameters) <= SMALL else SECONDS
