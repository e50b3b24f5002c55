"""Pick-a-Pic v1 and v2 (arXiv 2305.01569): which of two pictures of one prompt a user of a web application prefers.

Hub: yuvalkirstain/pickapic_v1, yuvalkirstain/pickapic_v2, parquet with the pictures as bytes in jpg_0 and jpg_1 (the
image addresses no longer work). Labels: (1, 0), (0, 1), or (0.5, 0.5) for a tie. Contains pictures not safe for work.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from surveylib.feedback.datasets import hub
from surveylib.feedback.datasets.stream import RecordError, RecordStream, need_choice
from surveylib.feedback.record import Record

HUBS = {"v1": "yuvalkirstain/pickapic_v1", "v2": "yuvalkirstain/pickapic_v2"}
SPLITS = ("train", "validation", "test", "validation_unique", "test_unique")
COLUMNS = (
    "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_0_url",
    "image_1_uid", "image_1_url", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id",
    "user_id", "num_example_per_prompt",
)  # fmt: skip
HOW = (
    "Pick-a-Pic was not found. Download it from the hub with `hf download yuvalkirstain/pickapic_v1 --repo-type "
    "dataset` (or pickapic_v2) and give the folder, or give the hub id where there is a network. Size: v1 train is "
    "193 GB; validation_unique and test_unique hold 500 pairs each."
)


def _seconds(value: Any) -> float | None:
    """Seconds since the epoch of a timestamp column (UTC where it names no zone)."""
    if not isinstance(value, datetime):
        return None
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def to_record(row: dict[str, Any]) -> Record:
    """One row as a pair. `extra` keeps the example count of the prompt, the picture ids and `are_different`.

    Raises:
        RecordError: "no label" where has_label is false; labels that do not sum to one; what `Record` refuses.
    """
    if not row["has_label"]:
        raise RecordError("no label", f"ranking {row['ranking_id']} carries no judgement")
    labels = row["label_0"], row["label_1"]
    if None in labels or abs(sum(labels) - 1) > 1e-6:
        raise RecordError("label outside its range", f"(label_0, label_1) = {labels}; allowed: sum 1")
    uids = [row["image_0_uid"], row["image_1_uid"]]
    return Record(
        kind="pair",
        prompt=row["caption"],
        images=(hub.encoded(row["jpg_0"]), hub.encoded(row["jpg_1"])),
        preference=labels[0],
        record_id=f"{row['ranking_id']}:{uids[0]}:{uids[1]}",
        annotator=str(row["user_id"]),
        source="pickapic",
        models=(row["model_0"] or "", row["model_1"] or ""),
        time=_seconds(row["created_at"]),
        extra={
            "num_example_per_prompt": row["num_example_per_prompt"],
            "image_uids": uids,
            "best_image_uid": row["best_image_uid"],
            "are_different": row["are_different"],
        },
    )


def load(
    path_or_hub: str | Path = "v1",
    split: str = "train",
    streaming: bool = True,
    limit: int | None = None,
    on_error: str = "skip",
    check_pictures: bool = True,
) -> RecordStream:
    """Pairs of Pick-a-Pic.

    Args:
        path_or_hub: "v1", "v2", another hub id, or a folder or file of its parquet.
        split: one of `SPLITS`.
        limit: at most so many records.

    Returns:
        A stream of pairs; rows without a judgement are counted in `.skipped["no label"]`.

    Raises:
        FileNotFoundError: neither network nor files; says what to download. ValueError: a missing column.
    """
    need_choice("split", split, SPLITS)
    place = HUBS.get(str(path_or_hub), path_or_hub)
    rows = hub.rows(place, split, streaming, COLUMNS, ("jpg_0", "jpg_1"), HOW)
    return RecordStream(rows, lambda row: [to_record(row)], limit, on_error, check_pictures)
