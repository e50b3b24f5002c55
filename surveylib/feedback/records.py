"""Feedback records and the files they stand in: parquet and JSON Lines, the same content in both.

A file carries the name and version of its schema (`SCHEMA`, `VERSION`). Pictures stand in it as bytes, or as paths
relative to the file's folder. Files are written beside their place and moved there in one rename; `append_record` adds
one answer and is safe against a kill at any moment.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field, replace
from dataclasses import fields as named_fields
from hashlib import sha256
from pathlib import Path

from surveylib.feedback import json_lines, parquet
from surveylib.feedback.json_lines import SCHEMA, VERSION, append_line
from surveylib.feedback.pictures import (
    SUFFIX,
    RecordError,
    decode_picture,
    encode_picture,
    is_url,
    picture_bytes,
    picture_format,
)
from surveylib.feedback.record import KINDS, LABELS, Record

__all__ = [
    "KINDS",
    "LABELS",
    "SCHEMA",
    "VERSION",
    "Record",
    "RecordError",
    "RecordList",
    "Report",
    "append_record",
    "decode_picture",
    "encode_picture",
    "iter_records",
    "read_records",
    "validate",
    "write_records",
]

PICTURES = ("as given", "embedded", "files")


class RecordList(list):
    """A list of records. `skipped` counts by reason what was left out; `problems` says where each stood and why."""

    def __init__(self, records: Iterable[Record] = ()):
        super().__init__(records)
        self.skipped: Counter[str] = Counter()
        self.problems: list[str] = []


def _format(path: str | Path):
    """The module that reads and writes files of this suffix."""
    formats = {".parquet": parquet, ".jsonl": json_lines}
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise ValueError(f"{path}: records are stored as {' or '.join(formats)}, not {suffix!r}")
    return formats[suffix]


def _placed(picture: bytes | str, folder: Path, pictures: str, store: Path) -> bytes | str:
    """A picture as it goes into a file in `folder`: bytes, a path relative to the folder, or a web address."""
    if pictures == "embedded":
        return picture_bytes(picture)
    if isinstance(picture, bytes):
        if pictures == "as given":
            return picture
        place = store / (sha256(picture).hexdigest()[:32] + SUFFIX[picture_format(picture)])
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            beside = place.with_name(place.name + f".{os.getpid()}.tmp")
            beside.write_bytes(picture)
            os.replace(beside, place)
        return place.relative_to(folder).as_posix()
    if is_url(picture):
        return picture
    absolute = Path(picture).absolute()
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else absolute.as_posix()


def _for_file(record: Record, path: Path, pictures: str) -> Record:
    folder = path.absolute().parent
    store = folder / f"{path.stem}_pictures"
    return replace(record, images=tuple(_placed(i, folder, pictures, store) for i in record.images))


def write_records(records: Iterable[Record], path: str | Path, pictures: str = "as given") -> int:
    """Write records to `path` (.parquet or .jsonl) atomically; returns how many.

    Args:
        records: any iterable; it is consumed once, in small batches.
        pictures: "as given" (bytes stay bytes, paths stay paths), "embedded" (files are read, the file stands alone) or
            "files" (bytes go to the folder `<stem>_pictures` beside the file).

    Raises:
        ValueError: another suffix or another value of `pictures`; RecordError: a picture to embed is missing.
        TypeError: something that is not a Record.
    """
    path, form = Path(path), _format(path)
    if pictures not in PICTURES:
        raise ValueError(f"pictures = {pictures!r}; allowed: {', '.join(PICTURES)}")
    count = 0

    def prepared() -> Iterator[Record]:
        nonlocal count
        for record in records:
            if not isinstance(record, Record):
                raise TypeError(f"item {count} is a {type(record).__name__}, not a Record")
            count += 1
            yield _for_file(record, path, pictures)

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + f".{os.getpid()}.tmp")
    try:
        form.write(prepared(), beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return count


def _resolved(fields: dict, folder: Path) -> dict:
    """Paths of a stored record, which are relative to its file's folder, as paths that can be opened."""
    images = fields.get("images")
    if isinstance(images, tuple):
        fields["images"] = tuple(str(folder / i) if isinstance(i, str) and i and not is_url(i) else i for i in images)
    return fields


def _checked(fields: dict, folder: Path, check_pictures: bool) -> Record:
    try:
        record = Record(**_resolved(fields, folder))
    except TypeError as error:  # a field that is missing or unknown
        required = [f.name for f in named_fields(Record) if f.default is MISSING and f.default_factory is MISSING]
        known = [f.name for f in named_fields(Record) if f.name not in required]
        raise RecordError("malformed record", f"{error}. Its fields are {', '.join(required)}, and where they apply "
                          f"{', '.join(known)}") from error
    if check_pictures:
        for picture in record.images:
            if not is_url(picture):
                decode_picture(picture)
    return record


def iter_records(
    path: str | Path, on_error: str = "raise", check_pictures: bool = True, found: RecordList | None = None
) -> Iterator[Record]:
    """Records of a file one after the other; what is left out is noted in `found.skipped` and `found.problems`.

    See `read_records` for the arguments and errors.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error = {on_error!r}; allowed: 'raise', 'skip'")
    path, form = Path(path), _format(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    found = RecordList() if found is None else found
    folder = path.absolute().parent
    for where, fields in form.read(path):
        try:
            if isinstance(fields, RecordError):
                raise fields
            yield _checked(fields, folder, check_pictures)
        except RecordError as error:
            # A torn last line is what a kill leaves behind: never an error, always counted.
            if on_error == "raise" and error.reason != json_lines.TORN:
                message = str(error).removeprefix(f"{error.reason}: ")
                raise RecordError(error.reason, f"{path}, {where}: {message}") from error
            found.skipped[error.reason] += 1
            found.problems.append(f"{where}: {error}")


def read_records(path: str | Path, on_error: str = "raise", check_pictures: bool = True) -> RecordList:
    """All records of a .parquet or .jsonl file.

    Args:
        on_error: "raise" stops at the first bad record; "skip" leaves bad records out and counts them by reason.
        check_pictures: decode each picture once (web addresses excepted), so that a missing, truncated or corrupt one
            is found here and not in the middle of a training run.

    Returns:
        A `RecordList`; its `.skipped` counts what was left out. A last line torn by a kill is left out and counted in
        both modes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of this schema, or of a version this library does not know.
        RecordError (a ValueError): with "raise", the first bad record; names file, place, field and value.
    """
    found = RecordList()
    found.extend(iter_records(path, on_error, check_pictures, found))
    return found


def append_record(path: str | Path, record: Record) -> int:
    """Add one record to a JSON Lines file: one line, one write, on the disk when this returns.

    A last line torn by a kill is removed first (an unfinished line is an answer that was never confirmed).

    Returns:
        How many bytes of a torn last line were removed; 0 normally.

    Raises:
        ValueError: the file is not .jsonl, or its schema or version is another.
    """
    path = Path(path)
    if _format(path) is not json_lines:
        raise ValueError(f"{path}: records are appended to .jsonl files only; write_records rewrites a parquet file")
    if not isinstance(record, Record):
        raise TypeError(f"append_record takes a Record, got a {type(record).__name__}")
    return append_line(path, _for_file(record, path, "as given"))


@dataclass
class Report:
    """What `validate` found in a file of records."""

    path: str
    records: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    prompts: int = 0
    annotators: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every record can be used and no name stands twice."""
        return not self.problems

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kinds.items())) or "none"
        head = f"{self.path}: {self.records} records ({kinds}), {self.prompts} prompts, {self.annotators} annotators"
        return "\n".join([head, *(f"  problem: {p}" for p in self.problems)])


def validate(path: str | Path, check_pictures: bool = True) -> Report:
    """Read a whole file and report what is in it and what is wrong with it; also record ids that stand twice.

    Raises what `read_records` raises for a file that is not of this schema.
    """
    report, found = Report(str(path)), RecordList()
    ids: Counter[str] = Counter()
    prompts, annotators = set(), set()
    for record in iter_records(path, "skip", check_pictures, found):
        report.records += 1
        report.kinds[record.kind] += 1
        prompts.add(record.prompt_id or record.prompt)
        annotators.add(record.annotator)
        ids[record.record_id] += bool(record.record_id)
    report.prompts, report.annotators = len(prompts), len(annotators - {""})
    report.skipped, report.problems = found.skipped, list(found.problems)
    for name, times in ids.items():
        if times > 1:
            report.problems.append(f"record_id {name!r} stands {times} times")
    return report
