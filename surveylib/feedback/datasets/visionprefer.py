"""VisionPrefer (arXiv 2404.15100): GPT-4 Vision rates four pictures of a prompt on four aspects, with reasons.

JSON Lines as published descriptions give it: prompt_id, prompt, images: [{image_id, model, guidance, scores,
rationale}], scores from 1 to 5. A hub id could not be verified, nor the names of the picture files: they are looked for
as `image_path` where an entry has one, else as images/<image_id> with a usual suffix.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surveylib.feedback.datasets.stream import (
    RecordError,
    RecordStream,
    find_picture,
    json_line_rows,
    need_choice,
    need_fields,
    need_file,
)
from surveylib.feedback.record import Record

SPLITS = ("train",)
ASPECTS = ("prompt-following", "aesthetic", "fidelity", "harmlessness")
SUFFIXES = (".png", ".jpg", ".webp")
NAMES = ("visionprefer.jsonl", "train.jsonl")
HOW = (
    "VisionPrefer was not found. No public hub id could be verified (paper: arXiv 2404.15100); ask its authors, then "
    "give the JSON Lines file, with the pictures in a folder `images` beside it. Size: 716k pictures of 179k prompts."
)


def _picture(entry: dict[str, Any], folders: list[Path]) -> str | bytes:
    if entry.get("image_path"):
        return find_picture(entry["image_path"], folders)
    error = RecordError("missing picture", "the entry has neither image_path nor image_id")
    for suffix in SUFFIXES:
        try:
            return find_picture(f"{entry['image_id']}{suffix}", folders)
        except KeyError:
            break
        except RecordError as missing:
            error = missing
    raise error


def to_records(row: dict[str, Any], folders: list[Path]) -> Iterator[Record | RecordError]:
    """One record of ratings for each picture of a prompt, scale 1 to 5; the reasons stand in `extra["rationale"]`."""
    need_fields(row, ("prompt", "images"))
    for index, entry in enumerate(row["images"]):
        try:
            need_fields(entry, ("scores",))
            yield Record(
                kind="ratings",
                prompt=row["prompt"],
                images=(_picture(entry, folders),),
                ratings=dict(entry["scores"]),
                low=1,
                high=5,
                record_id=f"{row.get('prompt_id', '')}:{entry.get('image_id', index)}",
                prompt_id=str(row.get("prompt_id", "")),
                annotator="GPT-4V",
                source="visionprefer",
                models=(str(entry.get("model") or ""),),
                extra={"guidance": entry.get("guidance"), "rationale": entry.get("rationale")},
            )
        except RecordError as error:
            yield error


def load(
    path_or_hub: str | Path,
    split: str = "train",
    streaming: bool = True,
    limit: int | None = None,
    on_error: str = "skip",
    check_pictures: bool = True,
) -> RecordStream:
    """Ratings of VisionPrefer, one record a picture; `to_pairs(records, dimension=...)` makes the pairs.

    Args:
        path_or_hub: the JSON Lines file, or the folder with one of `NAMES`.
        split: the set has one, "train".
        streaming: without effect: the file is read line by line.

    Raises:
        FileNotFoundError: says what is needed and where it was looked for.
    """
    need_choice("split", split, SPLITS)
    file = need_file(path_or_hub, NAMES, HOW)
    folders = [file.parent / "images", file.parent]
    return RecordStream(json_line_rows(file), lambda row: to_records(row, folders), limit, on_error, check_pictures)
