"""Chapters as notebooks under out/notebooks, where pytest and nbmake find them."""

from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ROOT / "chapters"
NOTEBOOKS = ROOT / "out" / "notebooks"  # never below a folder called _build: nbmake passes over it in silence
# A chapter of one cell, for tests.
ONE_CELL = """---
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
kernelspec: {{display_name: Python 3, name: python3}}
---

# {title}

```{{code-cell}} ipython3
{code}
```
"""


def notebook_name(chapter: Path, chapters: Path = CHAPTERS) -> str:
    """File name of a chapter's notebook, unique across parts: fundamentals__01_why_align.ipynb."""
    return "__".join(chapter.relative_to(chapters).with_suffix("").parts) + ".ipynb"


def chapter_files(chapters: Path = CHAPTERS) -> list[Path]:
    """All chapters; what an editor keeps in hidden folders is none."""
    return [path for path in sorted(chapters.glob("**/*.md"))
            if not any(part.startswith(".") for part in path.relative_to(chapters).parts)]


def code_chapters(chapters: Path = CHAPTERS) -> list[Path]:
    """Chapters with at least one code cell."""
    return [path for path in chapter_files(chapters)
            if any(cell.cell_type == "code" for cell in jupytext.read(path).cells)]


def at_scale(notebook, scale: str):
    """The notebook with a first cell that sets the scale for all that follow."""
    copy = nbformat.v4.new_code_cell(f'import os\n\nos.environ["SURVEYLIB_SCALE"] = "{scale}"')
    return nbformat.from_dict({**notebook, "cells": [copy, *notebook.cells]})


def write_notebooks(chapters: Path = CHAPTERS, target: Path = NOTEBOOKS) -> list[Path]:
    """Write each chapter as .ipynb, at the scale of the run and at rehearsal, where it changed.

    Stale notebooks are removed. Returns all of them.
    """
    target.mkdir(parents=True, exist_ok=True)
    wanted = []
    for source in code_chapters(chapters):
        name = notebook_name(source, chapters)
        for notebook, scale in ((target / name, None), (target / f"rehearsal__{name}", "rehearsal")):
            wanted.append(notebook)
            if not notebook.exists() or notebook.stat().st_mtime < source.stat().st_mtime:
                read = jupytext.read(source)
                text = jupytext.writes(at_scale(read, scale) if scale else read, fmt="ipynb")
                notebook.write_text(text, encoding="utf-8")
    for stale in set(target.glob("*.ipynb")) - set(wanted):
        stale.unlink()
    return wanted
