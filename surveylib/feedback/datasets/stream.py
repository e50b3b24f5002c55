"""What every loader has in common: streams that count what they leave out, pictures in folders, and clear errors."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from surveylib.feedback.pictures import RecordError, decode_picture, is_url
from surveylib.feedback.record import Record

PROBLEMS_KEPT = 100
Row = dict[str, Any]


class RecordStream(Iterator[Record]):
    """An iterator of records that says what it left out.

    Attributes:
        rows: rows read so far. given: records handed out so far.
        skipped: what was left out, by reason. problems: the first of them, with place and value.
    """

    def __init__(
        self,
        rows: Iterable[tuple[str, Row | RecordError]],
        to_records: Callable[[Row], Iterable[Record | RecordError]],
        limit: int | None = None,
        on_error: str = "skip",
        check_pictures: bool = True,
    ):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ValueError(f"limit = {limit!r}; allowed: None or a whole number >= 0")
        if on_error not in ("skip", "raise"):
            raise ValueError(f"on_error = {on_error!r}; allowed: 'skip', 'raise'")
        self.limit, self.on_error, self.check_pictures = limit, on_error, check_pictures
        self.rows, self.given = 0, 0
        self.skipped: Counter[str] = Counter()
        self.problems: list[str] = []
        self._records = self._read(rows, to_records)

    def __next__(self) -> Record:
        if self.limit is not None and self.given >= self.limit:
            raise StopIteration
        record = next(self._records)
        self.given += 1
        return record

    def _read(self, rows: Iterable, to_records: Callable) -> Iterator[Record]:
        for where, row in rows:
            self.rows += 1
            try:
                if isinstance(row, RecordError):
                    raise row
                made = to_records(row)
                for record in made:
                    yield from self._checked(record, where)
            except RecordError as error:
                self._leave_out(error, where)

    def _checked(self, record: Record | RecordError, where: str) -> Iterator[Record]:
        """The record, or nothing when it (or one of its pictures) cannot be used."""
        try:
            if isinstance(record, RecordError):
                raise record
            if self.check_pictures:
                for picture in record.images:
                    if not is_url(picture):
                        decode_picture(picture)
        except RecordError as error:
            self._leave_out(error, where)
            return
        yield record

    def _leave_out(self, error: RecordError, where: str) -> None:
        # A row that simply carries no label is not an error of the file.
        if self.on_error == "raise" and error.reason != "no label":
            message = str(error).removeprefix(f"{error.reason}: ")
            raise RecordError(error.reason, f"{where}: {message}") from error
        self.skipped[error.reason] += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(f"{where}: {error}")


def need_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}; allowed: {', '.join(allowed)}")


def need_file(path: str | Path, names: Sequence[str], how: str) -> Path:
    """The file itself, or the first of `names` in the folder `path`.

    Raises:
        FileNotFoundError: says what to download and where it was looked for.
    """
    path = Path(path)
    places = [path] if path.is_file() else [path / name for name in names]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(p) for p in places)
    raise FileNotFoundError(f"{how}\nLooked for: {looked}")


def need_fields(row: Any, names: Sequence[str]) -> None:
    """Raise RecordError unless `row` is a dict with these fields, none of them null."""
    if not isinstance(row, dict):
        raise RecordError("malformed record", f"a record is an object, got a {type(row).__name__}")
    missing = [name for name in names if row.get(name) is None]
    if missing:
        raise RecordError("missing field", f"{', '.join(missing)}; the record has {', '.join(map(str, row))}")


def json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON array file.

    Raises:
        ValueError: not JSON (also: cut off), or no array.
    """
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); was the download cut off?") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} should hold a JSON array of records, got a {type(rows).__name__}")
    for number, row in enumerate(rows):
        yield f"{path.name}[{number}]", row


def json_line_rows(path: Path) -> Iterator[tuple[str, Row | RecordError]]:
    """The objects of a JSON Lines file; a line that cannot be read is given as an error."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield f"{path.name} line {number}", json.loads(line.decode("utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                yield f"{path.name} line {number}", RecordError("malformed line", f"not JSON ({error})")


def find_picture(name: Any, folders: Sequence[Path]) -> str | bytes:
    """The path of a picture named in an annotation, looked for in several folders.

    A picture `folder/file` that still lies in `folder.zip` is read from there (bytes).

    Raises:
        RecordError: no such file; names the places.
    """
    if not isinstance(name, str) or not name:
        raise RecordError("missing picture", f"{name!r} is not a file name")
    for folder in folders:
        place = folder / name
        if place.is_file():
            return str(place)
        archive = place.parent.with_name(place.parent.name + ".zip")
        if archive.is_file():
            try:
                with zipfile.ZipFile(archive) as file:
                    members = set(file.namelist())
                    for member in (place.name, f"{place.parent.name}/{place.name}", name):
                        if member in members:
                            return file.read(member)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{archive} is damaged ({error}); download it again") from error
    looked = ", ".join(str(folder / name) for folder in folders)
    raise RecordError("missing picture", f"{name!r} is not there; looked for {looked}")
