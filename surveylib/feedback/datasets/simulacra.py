"""Simulacra Aesthetic Captions: users of a drawing bot rate pictures from 1 to 10.

github.com/JD-P/simulacra-aesthetic-captions: one SQLite file (tables generations, images, paths, ratings, survey,
upscales) and tar archives of the pictures. An annotator (`sid`) is a combination of answers to a survey.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from surveylib.feedback.datasets.stream import RecordError, RecordStream, find_picture, need_choice, need_file
from surveylib.feedback.record import Record

FILE = "sac_public_2022_06_29.sqlite"
SPLITS = ("train",)
COLUMNS = {
    "generations": ("id", "sid", "method", "prompt", "verified"),
    "images": ("id", "gid", "idx"),
    "paths": ("iid", "path"),
    "ratings": ("sid", "iid", "rating", "verified"),
}
HOW = (
    "Simulacra Aesthetic Captions was not found. The README of github.com/JD-P/simulacra-aesthetic-captions says where "
    f"{FILE} and the picture archives (sac-000000.tar to sac-000086.tar) lie; unpack them beside the database and "
    "give that folder. Size: over 238,000 pictures."
)
QUERY = """
    SELECT ratings.rowid AS rating_id, ratings.sid, ratings.iid, ratings.rating, ratings.verified,
           images.gid, images.idx, generations.prompt, generations.method, paths.path
    FROM ratings
    LEFT JOIN images ON images.id = ratings.iid
    LEFT JOIN generations ON generations.id = images.gid
    LEFT JOIN paths ON paths.iid = ratings.iid
    ORDER BY ratings.rowid
"""


def database_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rating with its picture and prompt; the database is opened read-only.

    Raises:
        ValueError: no SQLite file, or a table or column is missing.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            for table, columns in COLUMNS.items():
                known = {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}
                missing = [name for name in columns if name not in known]
                if missing:
                    raise ValueError(f"{path}: table {table} lacks {', '.join(missing)}; it has {sorted(known)}")
            for row in database.execute(QUERY):
                yield f"rating {row['rating_id']}", dict(row)
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is not a readable SQLite file ({error}); was the download cut off?") from error


def to_record(row: dict[str, Any], folder: Path) -> Record:
    """One rating, on the scale 1 to 10. Pictures of one generation share `prompt_id`.

    Raises:
        RecordError: "no label" where rating is null; a rating of no known picture; what `Record` refuses.
    """
    if row["rating"] is None:
        raise RecordError("no label", f"picture {row['iid']} has no rating")
    if row["prompt"] is None:
        raise RecordError("missing field", f"picture {row['iid']} belongs to no generation")
    if row["path"] is None:
        raise RecordError("missing picture", f"picture {row['iid']} has no path in the database")
    return Record(
        kind="rating",
        prompt=row["prompt"],
        images=(find_picture(row["path"], [folder, folder / "images"]),),
        rating=row["rating"],
        low=1,
        high=10,
        record_id=str(row["rating_id"]),
        prompt_id=str(row["gid"]),
        annotator=str(row["sid"]),
        source="simulacra",
        models=(f"method {row['method']}",),
        extra={"iid": row["iid"], "idx": row["idx"], "verified": row["verified"]},
    )


def load(
    path_or_hub: str | Path,
    split: str = "train",
    streaming: bool = True,
    limit: int | None = None,
    on_error: str = "skip",
    check_pictures: bool = True,
) -> RecordStream:
    """Ratings of Simulacra Aesthetic Captions.

    Args:
        path_or_hub: the folder with the database and the unpacked pictures, or the database itself.
        split: the set has one, "train".
        streaming: without effect: the database is read row by row.

    Raises:
        FileNotFoundError: says what to download and where it was looked for. ValueError: not the expected database.
    """
    need_choice("split", split, SPLITS)
    file = need_file(path_or_hub, [FILE], HOW)
    return RecordStream(database_rows(file), lambda row: [to_record(row, file.parent)], limit, on_error, check_pictures)
