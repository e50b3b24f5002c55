"""The folder of a run: locked while in use, marked with what the run is, one checkpoint that is never half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from surveylib.alignment.processes import Processes
from surveylib.runs.checkpoint import STATE_FILE, load_checkpoint, save_checkpoint, write_atomically

FORMAT = 1  # of the checkpoint's content; raise it when older checkpoints can no longer be read
IDENTITY_FILE, CHECKPOINT, LOCK = "identity.json", "checkpoint", ".lock"


class CheckpointFolder:
    """Checkpoints of one run under `path`. Rank 0 writes, all ranks read.

    Raises (on entering):
        ValueError: the folder is in use by another process, or holds another run or another format; says what differs.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any], processes: Processes) -> None:
        self.path, self.processes = Path(path), processes
        self.identity = {"format": FORMAT, **identity}
        self._lock = FileLock(self.path / LOCK)

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
        different = [key for key in self.identity if found.get(key) != json.loads(json.dumps(self.identity[key]))]
        if different:
            key = different[0]
            raise ValueError(f"{self.path} holds another run: its {key} is {str(found.get(key))[:120]}, this run's is "
                             f"{str(self.identity[key])[:120]}. Choose another folder, or delete this one")

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
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint; the one before stays until this one is whole."""
        if self.processes.main:
            save_checkpoint(self.path / CHECKPOINT, state)
        self.processes.wait()
