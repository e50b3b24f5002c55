"""open-image-preferences-v1: which of two pictures (FLUX.1-dev, Stable Diffusion 3.5 Large) volunteers prefer.

Hub: data-is-better-together/open-image-preferences-v1-binarized, parquet with the columns prompt, chosen, rejected (the
pictures). The chosen picture always stands first: shuffle before training a model that sees the order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surveylib.feedback.datasets import hub
from surveylib.feedback.datasets.stream import RecordStream, need_choice
from surveylib.feedback.record import Record

HUB = "data-is-better-together/open-image-preferences-v1-binarized"
SPLITS = ("train",)
COLUMNS = ("prompt", "chosen", "rejected")
HOW = (
    f"open-image-preferences was not found. Download it with `hf download {HUB} --repo-type dataset` and give the "
    "folder, or give the hub id where there is a network. Size: not verified."
)


def to_record(row: dict[str, Any]) -> Record:
    """One row as a pair whose first picture is the chosen one."""
    return Record(
        kind="pair",
        prompt=row["prompt"],
        images=(hub.encoded(row["chosen"]), hub.encoded(row["rejected"])),
        preference=1.0,
        source="open-image-preferences",
    )


def load(
    path_or_hub: str | Path = HUB,
    split: str = "train",
    streaming: bool = True,
    limit: int | None = None,
    on_error: str = "skip",
    check_pictures: bool = True,
) -> RecordStream:
    """Pairs of open-image-preferences; arguments and errors as in `pickapic.load`."""
    need_choice("split", split, SPLITS)
    rows = hub.rows(path_or_hub, split, streaming, COLUMNS, ("chosen", "rejected"), HOW)
    return RecordStream(rows, lambda row: [to_record(row)], limit, on_error, check_pictures)
