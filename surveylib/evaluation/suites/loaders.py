"""Loaders of public prompt suites, each for the files as they are published."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from surveylib.evaluation.suites.cards import CARDS, COMPBENCH, DRAWBENCH, STYLES, SuiteCard


@dataclass(frozen=True)
class PublicPrompt:
    """text; category: the suite's own name for it, "" where there is none; metadata: all else that its row holds."""

    text: str
    category: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def load_suite(
    key: str, path: str | Path, *, split: str = "val", category: str | None = None, whole: bool = False
) -> list[PublicPrompt]:
    """The prompts of a suite.

    Args:
        key: one of `CARDS`. path: the file, or a folder that holds it, at any depth.
        split: "val" or "train"; T2I-CompBench alone has two.
        category: only these prompts. whole: check that as many are there as the suite has (`SuiteCard.prompts`).

    Raises:
        FileNotFoundError: no such file; says what to download. ValueError: an unknown suite, split or category, a row
            that cannot be read (names file and line), or a number that `whole` does not allow.
    """
    if key not in CARDS:
        raise ValueError(f"unknown prompt suite {key!r}; known: {', '.join(CARDS)}")
    card = CARDS[key]
    if split not in ("val", "train") or (split == "train" and key != "t2i_compbench"):
        raise ValueError(f"{card.name} has no split {split!r}; " + ("choose 'val' or 'train'" if key == "t2i_compbench"
                                                                    else "leave it out"))
    prompts = list(_LOADERS[key](Path(path), card, split))
    if whole and card.prompts is not None and len(prompts) != card.prompts:
        raise ValueError(f"{card.name} has {card.prompts} prompts; {len(prompts)} were found in {path}. "
                         "Was the download cut off?")
    if category is None:
        return prompts
    known = sorted({prompt.category for prompt in prompts})
    if category not in known:
        raise ValueError(f"{card.name} has no category {category!r} in {path}; there are {', '.join(known)}")
    return [prompt for prompt in prompts if prompt.category == category]


def find(path: Path, pattern: str, card: SuiteCard) -> Path:
    """`path` itself where it is a file, else the first file below it that fits the pattern.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [path] if path.is_file() else sorted(path.rglob(pattern)) if path.is_dir() else []
    if not found:
        raise FileNotFoundError(f"{card.how}\nLooked for: {path}/**/{pattern}")
    return found[0]


def text_of(value: Any, where: str) -> str:
    """A prompt's text.

    Raises:
        ValueError: no text; names the place.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: a prompt is a text, not {value!r}")
    return value.strip()


def geneval(path: Path, card: SuiteCard, split: str) -> Iterator[PublicPrompt]:
    """One JSON object a line."""
    file = find(path, card.files[0], card)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file.name} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON ({error})") from error
        missing = [name for name in ("tag", "include", "prompt") if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}: it is no line of GenEval's metadata")
        yield PublicPrompt(text_of(row["prompt"], where), row["tag"],
                           {k: v for k, v in row.items() if k not in ("prompt", "tag")})


def t2i_compbench(path: Path, card: SuiteCard, split: str) -> Iterator[PublicPrompt]:
    """One prompt a line, one file a category; a single file is one category."""
    if path.is_file():
        files = {path.stem.removesuffix(f"_{split}"): path}
    else:
        found = {name: sorted(path.rglob(f"{name}_{split}.txt")) for name in COMPBENCH} if path.is_dir() else {}
        files = {name: places[0] for name, places in found.items() if places}
    if not files:
        raise FileNotFoundError(f"{card.how}\nLooked for: {path}/**/<category>_{split}.txt")
    for name, file in files.items():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield PublicPrompt(line.strip(), name)


def partiprompts(path: Path, card: SuiteCard, split: str) -> Iterator[PublicPrompt]:
    """Tab-separated, no quoting: quotation marks belong to the prompts."""
    file = find(path, card.files[0], card)
    with open(file, encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        check_columns(file, rows.fieldnames, ("Prompt", "Category", "Challenge", "Note"))
        for row in rows:
            yield PublicPrompt(text_of(row["Prompt"], f"{file.name} line {rows.line_num}"), row["Category"],
                               {"challenge": row["Challenge"], "note": row["Note"] or ""})


def drawbench(path: Path, card: SuiteCard, split: str) -> Iterator[PublicPrompt]:
    """A CSV or parquet table; the category is a name or a class number."""
    file = path if path.is_file() else None
    for pattern in card.files if file is None else ():
        found = sorted(path.rglob(pattern)) if path.is_dir() else []
        file = file or (found[0] if found else None)
    if file is None:
        raise FileNotFoundError(f"{card.how}\nLooked for: {path}/**/*.csv, {path}/**/*.parquet")
    for number, row in enumerate(table_rows(file), start=1):
        row = {str(name).lower(): value for name, value in row.items()}
        text = row.get("prompts", row.get("prompt"))
        kind = row.get("category", "")
        if isinstance(kind, int):
            if not 0 <= kind < len(DRAWBENCH):
                raise ValueError(f"{file.name} row {number}: class {kind} is none of the {len(DRAWBENCH)} categories")
            kind = DRAWBENCH[kind]
        yield PublicPrompt(text_of(text, f"{file.name} row {number}, column Prompts"), kind or "")


def table_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a CSV or parquet file.

    Raises:
        ValueError: damaged.
    """
    if file.suffix == ".csv":
        with open(file, encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines))
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is no readable parquet ({error}); was the download cut off?") from error


def hpdv2(path: Path, card: SuiteCard, split: str) -> Iterator[PublicPrompt]:
    """One JSON array a style; a single file is one style."""
    if path.is_file():
        files = {path.stem: path}
    else:
        found = {style: sorted(path.rglob(f"{style}.json")) for style in STYLES} if path.is_dir() else {}
        files = {style: places[0] for style, places in found.items() if places}
    if not files:
        raise FileNotFoundError(f"{card.how}\nLooked for: {path}/**/{{{','.join(STYLES)}}}.json")
    for style, file in files.items():
        try:
            texts = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is no readable JSON ({error}); was the download cut off?") from error
        if not isinstance(texts, list):
            raise ValueError(f"{file} should hold an array of prompts, not a {type(texts).__name__}")
        for number, text in enumerate(texts):
            yield PublicPrompt(text_of(text, f"{file.name}[{number}]"), style, {"number": number})


def check_columns(file: Path, found: Any, wanted: tuple[str, ...]) -> None:
    """Raises ValueError where a table lacks a column."""
    missing = [name for name in wanted if name not in (found or ())]
    if missing:
        raise ValueError(f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(found or ()) or 'none'}")


_LOADERS: dict[str, Callable[[Path, SuiteCard, str], Iterator[PublicPrompt]]] = {
    "geneval": geneval, "t2i_compbench": t2i_compbench, "drawbench": drawbench, "partiprompts": partiprompts,
    "hpdv2": hpdv2,
}
