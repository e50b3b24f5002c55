"""HPD v1 (arXiv 2303.14420), v2 (2306.09341) and v3 (2508.03789): JSON files beside folders of pictures.

    version  files                            one entry
    v1       preference_{train,test}.json     prompt, file_path (2 to 4), human_preference (index), id, user_hash,
                                              contain_name; pictures in preference_images/
    v2       train.json                       prompt, file_path (2), human_preference (2 of 0 and 1)
             test.json                        prompt, image_path (9), rank, raw_annotations (rank, user_hash)
    v3       train.json, test.json            prompt, path1 (preferred), path2, choice_dist, confidence, model1, model2

v2 stands on the hub with a loading script, which datasets >= 4 no longer runs; here the raw files are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from surveylib.feedback.datasets.stream import (
    RecordError,
    RecordStream,
    find_picture,
    json_rows,
    need_choice,
    need_fields,
    need_file,
)
from surveylib.feedback.record import Record

VERSIONS = ("v1", "v2", "v3")
SPLITS = ("train", "test")
FILES = {"v1": "preference_{}.json", "v2": "{}.json", "v3": "{}.json"}
HOW = {
    "v1": "HPD v1 was not found. The README of github.com/tgxs002/align_sd links the archive; unpack it (the folder "
    "`dataset` with preference_images/ and preference_train.json) and give that folder. Size: not verified.",
    "v2": "HPD v2 was not found. Run `hf download ymhao/HPDv2 --repo-type dataset --local-dir FOLDER`, unpack "
    "train.tar.gz and test.tar.gz there and give FOLDER. Size: about 798k pairs of 430k pictures.",
    "v3": "HPD v3 was not found. Run `hf download MizzenAI/HPDv3 --repo-type dataset --local-dir FOLDER`, then there "
    "`cat images.tar.gz.* | gunzip | tar -x`, and give FOLDER. Size: about 1.17M pairs of 1.08M pictures.",
}  # fmt: skip
ANNOTATIONS = ("averaged", "raw")


def ranks_from_one(values: list[int]) -> tuple[int, ...]:
    """Ranks shifted so that the best is 1 (the files do not say whether they count from 0); order and ties stay."""
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise RecordError("label outside its range", f"rank = {values}; allowed: whole numbers, smallest is best")
    return tuple(v - min(values) + 1 for v in values)


def v1_records(row: dict[str, Any], folders: list[Path]) -> Iterator[Record]:
    """One choice among 2 to 4 pictures as pairs of the chosen one with each other one.

    Nothing is known about the order of those that were not chosen, so they are not compared. The pairs of one choice
    share `prompt_id`; their weights sum to one.
    """
    need_fields(row, ("human_preference", "prompt", "file_path"))
    paths, chosen = row["file_path"], row["human_preference"]
    if not isinstance(chosen, int) or not 0 <= chosen < len(paths):
        allowed = f"an index of {len(paths)} pictures"
        raise RecordError("label outside its range", f"human_preference = {chosen!r}; allowed: {allowed}")
    images = [find_picture(p, [folders[0] / "preference_images", *folders]) for p in paths]
    for other in range(len(paths)):
        if other == chosen:
            continue
        first, second = sorted((chosen, other))
        yield Record(
            kind="pair",
            prompt=row["prompt"],
            images=(images[first], images[second]),
            preference=float(first == chosen),
            record_id=f"{row.get('id', '')}:{first}:{second}",
            prompt_id=str(row.get("id", "")),
            annotator=str(row.get("user_hash") or ""),
            source="hpd_v1",
            weight=1 / (len(paths) - 1),
            extra={"pictures_shown": len(paths), "contain_name": row.get("contain_name")},
        )


def v2_train_records(row: dict[str, Any], folders: list[Path]) -> Iterator[Record]:
    """One pair: human_preference is (1, 0) or (0, 1)."""
    need_fields(row, ("prompt", "file_path", "human_preference"))
    label = list(row["human_preference"])
    if sorted(label) != [0, 1]:
        raise RecordError("label outside its range", f"human_preference = {label}; allowed: [1, 0] or [0, 1]")
    images = tuple(find_picture(p, folders) for p in row["file_path"])
    yield Record(kind="pair", prompt=row["prompt"], images=images, preference=float(label[0]), source="hpd_v2")


def v2_test_records(row: dict[str, Any], folders: list[Path], annotations: str) -> Iterator[Record]:
    """The averaged ranking of a prompt's pictures, or the ranking of each annotator.

    The card says of `rank` that it belongs to the picture at the same index; the same is taken for raw_annotations.
    """
    need_fields(row, ("prompt", "image_path", "rank"))
    images = tuple(find_picture(p, folders) for p in row["image_path"])
    judged = [("", row["rank"])]
    if annotations == "raw":
        need_fields(row, ("raw_annotations",))
        judged = [(str(a.get("user_hash") or ""), a.get("rank") or []) for a in row["raw_annotations"]]
    for annotator, ranks in judged:
        yield Record(
            kind="ranking",
            prompt=row["prompt"],
            images=images,
            ranks=ranks_from_one(ranks),
            annotator=annotator,
            source="hpd_v2",
            extra={"rank": ranks, "annotators": len(row.get("raw_annotations") or [])},
        )


def v3_records(row: dict[str, Any], folders: list[Path], min_confidence: float) -> Iterator[Record]:
    """One pair; path1 is the preferred picture and stands first. choice_dist and confidence are kept in `extra`."""
    need_fields(row, ("prompt", "path1", "path2"))
    confidence = row.get("confidence")
    if min_confidence > 0 and (confidence is None or confidence < min_confidence):
        raise RecordError("confidence too low", f"confidence = {confidence}; asked for at least {min_confidence}")
    images = tuple(find_picture(row[name], folders) for name in ("path1", "path2"))
    models = tuple(str(row.get(name) or "") for name in ("model1", "model2"))
    extra = {name: row.get(name) for name in ("choice_dist", "confidence")}
    yield Record("pair", row["prompt"], images, preference=1.0, source="hpd_v3", models=models, extra=extra)


def _mapping(version: str, split: str, annotations: str, min_confidence: float, folders: list[Path]) -> Callable:
    if version == "v1":
        return lambda row: v1_records(row, folders)
    if version == "v3":
        return lambda row: v3_records(row, folders, min_confidence)
    if split == "test":
        return lambda row: v2_test_records(row, folders, annotations)
    return lambda row: v2_train_records(row, folders)


def load(
    path_or_hub: str | Path,
    split: str = "train",
    streaming: bool = True,
    limit: int | None = None,
    version: str = "v2",
    annotations: str = "averaged",
    min_confidence: float = 0.0,
    on_error: str = "skip",
    check_pictures: bool = True,
) -> RecordStream:
    """Pairs (v1, v2 train, v3) or rankings (v2 test) from the unpacked raw files.

    Args:
        path_or_hub: the folder with the JSON files (or the JSON file itself); pictures are looked for in it, in
            `<split>/` and in `images/`.
        streaming: without effect: the JSON file is read at once, pictures when their record comes.
        annotations: v2 test: "averaged", one ranking a prompt, or "raw", one for each annotator.
        min_confidence: v3: leave out (and count) pairs below it.

    Raises:
        FileNotFoundError: says what to download and where it was looked for. ValueError: JSON that is cut off.
    """
    need_choice("version", version, VERSIONS)
    need_choice("split", split, SPLITS)
    need_choice("annotations", annotations, ANNOTATIONS)
    file = need_file(path_or_hub, [FILES[version].format(split)], HOW[version])
    folders = [file.parent, file.parent / split, file.parent / "images"]
    to_records = _mapping(version, split, annotations, min_confidence, folders)
    return RecordStream(json_rows(file), to_records, limit, on_error, check_pictures)
