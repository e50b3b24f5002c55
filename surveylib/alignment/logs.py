"""Where a run's progress is written: JSON Lines, TensorBoard, a sheet of pictures every few epochs."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from surveylib.alignment.engine import Progress
from surveylib.alignment.pictures import sheet_due
from surveylib.alignment.processes import AlignmentError
from surveylib.figures.sheet import sheet
from surveylib.runs.checkpoint import write_atomically

METRICS_FILE, PICTURES = "metrics.jsonl", "pictures"
NO_TENSORBOARD = ("TensorBoard is not installed, so no event files are written; metrics.jsonl holds the same numbers. "
                  "For TensorBoard: pip install tensorboard")


def significant(value: float) -> float:
    """Six significant digits: a KL may be 1e-8."""
    return float(f"{value:.6g}")


def row_of(progress: Progress) -> dict[str, Any]:
    """One line of the log: epoch, updates, metrics and cost so far."""
    ledger = progress.ledger
    cost = {"network_calls": ledger.network_calls, "backward_passes": ledger.backward_passes,
            "decodes": ledger.decodes, "reward_calls": ledger.reward_calls, "seconds": round(ledger.wall, 2)}
    metrics = {name: significant(value) for name, value in progress.metrics.items()}
    return {"epoch": progress.epoch, "updates": progress.updates, **metrics, **cost}


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run; a last line cut by a crash is left out."""
    file = Path(folder) / METRICS_FILE
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Log:
    """The log of a run folder. On resuming, rows after the checkpoint are dropped: they come again.

    Args:
        folder: of the run. first: epochs already done. every: epochs between sheets of pictures, 0 for none.
        tensorboard: also write event files. None: where the package is installed, which is no dependency of ours.

    Raises:
        AlignmentError: `tensorboard` is True and the package is not there; says what to install.
    """

    def __init__(self, folder: str | Path, first: int = 0, every: int = 5, tensorboard: bool | None = None) -> None:
        tensorboard = writes_events(tensorboard)
        self.folder, self.every = Path(folder), every
        kept = [row for row in read_rows(folder) if row["epoch"] <= first]
        write_atomically(self.folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in kept))
        self.events = _events(self.folder / "tensorboard", first) if tensorboard else None

    def write(self, progress: Progress) -> dict[str, Any]:
        """Appends one epoch, on the disk when it returns: before the checkpoint that counts it. Returns its row."""
        row = row_of(progress)
        with open(self.folder / METRICS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.events is not None:
            for name, value in row.items():
                self.events.add_scalar(name, value, progress.epoch)
            self.events.flush()
        if progress.pictures is not None and sheet_due(progress.epoch, self.every):
            self.write_pictures(progress)
        return row

    def write_pictures(self, progress: Progress, most: int = 16) -> Path | None:
        """A sheet of the epoch's first pictures; None for samples that are not pictures."""
        if progress.pictures.ndim != 4:
            return None
        path = self.folder / PICTURES / f"epoch-{progress.epoch:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sheet(list(progress.pictures[:most].float().cpu()), progress.prompts[:most], columns=4))
        return path

    def close(self) -> None:
        """Closes the event file."""
        if self.events is not None:
            self.events.close()


def writes_events(tensorboard: bool | None = None) -> bool:
    """Whether event files are written. None: where TensorBoard is installed.

    Raises:
        AlignmentError: asked for, and TensorBoard is not installed.
    """
    installed = find_spec("tensorboard") is not None
    if tensorboard and not installed:
        raise AlignmentError(NO_TENSORBOARD)
    return installed if tensorboard is None else tensorboard


def _events(folder: Path, first: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first + 1)
