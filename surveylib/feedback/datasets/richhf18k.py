"""RichHF-18K (arXiv 2312.10240): for pictures of Pick-a-Pic v1, where they are wrong and which words they do not show.

github.com/google-research-datasets/richhf-18k: train.tfrecord, dev.tfrecord, test.tfrecord with the features filename;
aesthetics_score, artifact_score, misalignment_score, overall_score (all: higher is better, in [0, 1]); artifact_map and
misalignment_map (encoded grey pictures, 512 x 512, 0 to 255); prompt_misalignment_label ("0" or "1" for each word, 0:
misaligned). Pictures and prompts are not in it; `gather_pictures` takes them from a stream of Pick-a-Pic records.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from surveylib.feedback.datasets.stream import RecordError, RecordStream, need_choice, need_fields, need_file
from surveylib.feedback.datasets.tfrecord import parse_example, read_tfrecords
from surveylib.feedback.pictures import SUFFIX, picture_bytes, picture_format
from surveylib.feedback.record import Record
from surveylib.runs.checkpoint import write_atomically

SPLITS = ("train", "dev", "test")
SCORES = ("aesthetics_score", "artifact_score", "misalignment_score", "overall_score")
MAPS = {"artifact": "artifact_map", "misalignment": "misalignment_map"}
FEATURES = ("filename", *SCORES, *MAPS.values(), "prompt_misalignment_label")
PROMPT_FILE = "prompts.json"
# The label has one entry for each piece between these characters (the set's matching script).
TOKEN = re.compile(r"[^,.?!\":; ]+")
HOW = (
    "RichHF-18K was not found. Clone github.com/google-research-datasets/richhf-18k with Git LFS and give the folder "
    "with train.tfrecord, dev.tfrecord and test.tfrecord. Size: 17,760 examples (15,810, 995, 955)."
)
HOW_PICTURES = (
    "RichHF-18K holds no pictures and no prompts: they are those of Pick-a-Pic v1 with the same file name. Give "
    f"pictures=FOLDER with <uid>.png (or .jpg, .webp) and {PROMPT_FILE} (uid -> prompt), as "
    "`richhf18k.gather_pictures(path, split, pickapic.load('v1', split='train'), FOLDER)` writes it."
)


def misaligned_words(prompt: str, label: str) -> tuple[bool, ...]:
    """For each word of prompt.split(), whether one of its labelled pieces is misaligned ("0").

    Raises:
        RecordError: the number of labels is not the number of pieces, or a label is neither 0 nor 1.
    """
    labels, pieces = label.split(), list(TOKEN.finditer(prompt))
    if len(labels) != len(pieces) or not set(labels) <= {"0", "1"}:
        raise RecordError("labels do not match the prompt", f"{len(labels)} labels {label!r} for {len(pieces)} words")
    wrong = [piece.span() for piece, mark in zip(pieces, labels) if mark == "0"]
    words = [word.span() for word in re.finditer(r"\S+", prompt)]
    return tuple(any(start < end_w and start_w < end for start, end in wrong) for start_w, end_w in words)


def heatmap(data: bytes) -> np.ndarray:
    """(H, W) float32 in [0, 1] of an encoded grey picture.

    Raises:
        RecordError: the bytes cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("L"), np.float32) / 255
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordError("wrong heatmap", f"{len(data)} bytes cannot be decoded ({error})") from error


def example_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
    """Yield (place, feature name -> value) for each example of a TFRecord file."""
    for number, data in enumerate(read_tfrecords(path)):
        where = f"{path.name} example {number}"
        try:
            if isinstance(data, RecordError):
                raise data
            yield where, {name: values[0] for name, values in parse_example(data).items() if values}
        except RecordError as error:
            yield where, error


def uid_of(filename: bytes | str) -> str:
    """The picture's id in Pick-a-Pic: the file name without folders and suffix."""
    return Path(filename.decode("utf-8") if isinstance(filename, bytes) else filename).stem


def _picture(uid: str, folder: Path) -> str:
    for suffix in SUFFIX.values():
        if (folder / f"{uid}{suffix}").is_file():
            return str(folder / f"{uid}{suffix}")
    raise RecordError("missing picture", f"{uid} is not in {folder} (as {', '.join(SUFFIX.values())})")


def to_record(row: dict[str, Any], folder: Path, prompts: Mapping[str, str]) -> Record:
    """One example as rich feedback: four ratings in [0, 1], two heatmaps, the misaligned words."""
    need_fields(row, FEATURES)
    uid = uid_of(row["filename"])
    if uid not in prompts:
        raise RecordError("missing prompt", f"{uid} is not in {folder / PROMPT_FILE}")
    prompt = prompts[uid]
    return Record(
        kind="rich",
        prompt=prompt,
        images=(_picture(uid, folder),),
        ratings={name: row[name] for name in SCORES},
        heatmaps={name: heatmap(row[feature]) for name, feature in MAPS.items()},
        misaligned=misaligned_words(prompt, row["prompt_misalignment_label"].decode("utf-8")),
        record_id=uid,
        source="richhf18k",
        extra={"filename": row["filename"].decode("utf-8")},
    )


def gather_pictures(path: str | Path, split: str, records: Iterable[Record], folder: str | Path) -> Counter[str]:
    """Write the pictures and prompts that a split needs from Pick-a-Pic records into a folder.

    Args:
        path: the folder of the TFRecord files. records: a stream of `pickapic.load("v1", ...)`, read
            until all are found.
        folder: receives <uid>.<suffix> and prompts.json; what is there already is kept, so this can be resumed.

    Returns:
        Counts: "wanted", "found", "missing".
    """
    need_choice("split", split, SPLITS)
    file, folder = need_file(path, [f"{split}.tfrecord"], HOW), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / PROMPT_FILE
    prompts = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    wanted = {uid_of(row["filename"]) for _, row in example_rows(file) if not isinstance(row, RecordError)}
    open_uids = wanted - prompts.keys()
    for record in records if open_uids else ():
        for uid, picture in zip(record.extra.get("image_uids", ()), record.images):
            if uid in open_uids:
                data = picture_bytes(picture)
                (folder / f"{uid}{SUFFIX[picture_format(data)]}").write_bytes(data)
                prompts[uid] = record.prompt
                open_uids.discard(uid)
        if not open_uids:
            break
    write_atomically(index, json.dumps(prompts, ensure_ascii=False, indent=0))
    return Counter(wanted=len(wanted), found=len(wanted) - len(open_uids), missing=len(open_uids))


def load(
    path_or_hub: str | Path,
    split: str = "train",
    streaming: bool = True,
    limit: int | None = None,
    pictures: str | Path | None = None,
    on_error: str = "skip",
    check_pictures: bool = True,
) -> RecordStream:
    """Rich feedback of RichHF-18K, joined with its pictures and prompts.

    Args:
        path_or_hub: the folder with the TFRecord files, or one of them.
        streaming: without effect: the file is read example by example.
        pictures: the folder that `gather_pictures` writes; None looks in `pictures` beside the TFRecord files.

    Raises:
        FileNotFoundError: says what is needed and where it was looked for. ValueError: a TFRecord file that is cut off.
    """
    need_choice("split", split, SPLITS)
    file = need_file(path_or_hub, [f"{split}.tfrecord"], HOW)
    folder = Path(pictures) if pictures is not None else file.parent / "pictures"
    index = need_file(folder, [PROMPT_FILE], HOW_PICTURES)
    prompts = json.loads(index.read_text(encoding="utf-8"))
    mapping = partial(to_record, folder=folder, prompts=prompts)
    return RecordStream(example_rows(file), lambda row: [mapping(row)], limit, on_error, check_pictures)
