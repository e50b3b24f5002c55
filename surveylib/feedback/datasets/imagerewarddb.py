"""ImageRewardDB (arXiv 2304.05977): experts rank the pictures of a prompt and rate each on three scales of 1 to 7.

Hub: THUDM/ImageRewardDB. Its loading script no longer runs under datasets >= 4; here metadata-<split>.parquet (one row
a picture) and the picture archives images/<split>/<split>_<n>.zip are read, unpacked or as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from surveylib.feedback.datasets.stream import RecordError, RecordStream, find_picture, need_choice, need_file
from surveylib.feedback.record import Record

SPLITS = ("train", "validation", "test")
JUDGEMENTS = ("ranking", "ratings")
DIMENSIONS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating")
COLUMNS = ("image_path", "prompt_id", "prompt", "classification", "image_amount_in_total", "rank", *DIMENSIONS)
HOW = (
    "ImageRewardDB was not found. Run `hf download THUDM/ImageRewardDB --repo-type dataset --local-dir FOLDER` and "
    "give FOLDER; the zip archives may stay packed. Size: validation 1.10 GB, test 1.16 GB; train not verified."
)


def prompt_groups(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, {"rows": all rows of one prompt}), in the order of the file.

    Raises:
        ValueError: no parquet, or a column is missing.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({error}); was the download cut off?") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.select(COLUMNS).to_pylist():
        groups[str(row["prompt_id"])].append(row)
    for prompt_id, rows in groups.items():
        yield f"{path.name} prompt {prompt_id}", {"rows": rows}


def _common(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["prompt"], "prompt_id": str(row["prompt_id"]), "source": "imagerewarddb"}


def ranking_of(group: dict[str, Any], folder: Path) -> Iterator[Record]:
    """The ranking of a prompt's pictures; 1 is best and pictures may share a rank."""
    rows = group["rows"]
    extra = {
        "classification": rows[0]["classification"],
        "image_amount_in_total": rows[0]["image_amount_in_total"],
        "ratings": [{name: row[name] for name in DIMENSIONS} for row in rows],
    }
    images = tuple(find_picture(row["image_path"], [folder]) for row in rows)
    yield Record("ranking", images=images, ranks=tuple(row["rank"] for row in rows), extra=extra, **_common(rows[0]))


def ratings_of(group: dict[str, Any], folder: Path) -> Iterator[Record | RecordError]:
    """The three ratings of each picture, on the scale 1 to 7."""
    for row in group["rows"]:
        try:
            yield Record(
                "ratings",
                images=(find_picture(row["image_path"], [folder]),),
                ratings={name: row[name] for name in DIMENSIONS},
                low=1,
                high=7,
                record_id=Path(row["image_path"]).stem,
                extra={"rank": row["rank"], "classification": row["classification"]},
                **_common(row),
            )
        except RecordError as error:
            yield error


def load(
    path_or_hub: str | Path,
    split: str = "train",
    streaming: bool = True,
    limit: int | None = None,
    judgement: str = "ranking",
    on_error: str = "skip",
    check_pictures: bool = True,
) -> RecordStream:
    """Rankings (one a prompt) or ratings (one a picture) from the raw files.

    Args:
        path_or_hub: the folder that holds metadata-<split>.parquet and images/.
        streaming: without effect: the metadata is read at once, pictures when their record comes.
        judgement: "ranking" or "ratings".

    Raises:
        FileNotFoundError: says what to download and where it was looked for. ValueError: a missing column.
    """
    need_choice("split", split, SPLITS)
    need_choice("judgement", judgement, JUDGEMENTS)
    file = need_file(path_or_hub, [f"metadata-{split}.parquet"], HOW)
    mapping = partial(ranking_of if judgement == "ranking" else ratings_of, folder=file.parent)
    return RecordStream(prompt_groups(file), mapping, limit, on_error, check_pictures)
