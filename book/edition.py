"""An edition for a class: the book's sources and notebooks without the solutions. ``python book/edition.py out/class``.

What goes: everything from ``solution-start`` to ``solution-end``, every ``solution`` block, and in each `check` the
solution and the planted wrong answers. A check then judges only what the reader wrote. Nothing else changes.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import jupytext

ROOT = Path(__file__).resolve().parents[1]
GATED = re.compile(r"^`{3,}\{solution-start\}.*?^`{3,}\{solution-end\}[^\n]*\n`{3,}[ \t]*\n", re.M | re.S)
BLOCK = re.compile(r"^(`{3,})\{solution\}.*?^\1[ \t]*\n", re.M | re.S)
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(?P<options>(?::[^\n]*\n)*)(?P<code>.*?)^```[ \t]*$", re.M | re.S)
UNSOLVED = "..."
FOLDED = " The solution is folded in between."


def without_solutions(text: str) -> str:
    """A chapter's text without its solutions.

    Raises:
        ValueError: a cell outside the solutions needs one of them, other than as the argument of its check.
    """
    text = CELL.sub(lambda found: found.group(0).replace(found["code"], _unsolved(found["code"])),
                    BLOCK.sub("", GATED.sub("", text.replace(FOLDED, ""))))
    for found in CELL.finditer(text):
        names = {n.id for n in ast.walk(_parse(found["code"])) if isinstance(n, ast.Name)}
        if needed := sorted(n for n in names if n.startswith("solution_")):
            raise ValueError(f"a cell that stays in the edition needs {', '.join(needed)}:\n{found['code']}")
    return text


def _parse(code: str) -> ast.Module:
    """Lines with magics are left out."""
    return ast.parse("\n".join("" if line.lstrip()[:1] in ("%", "!") else line for line in code.split("\n")))


def _unsolved(code: str) -> str:
    """Every ``check(name, answer, solution, test, wrong=[...])`` becomes ``check(name, answer, ..., test)``."""
    calls = [n for n in ast.walk(_parse(code)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "check"]
    for call in sorted(calls, key=lambda c: c.lineno, reverse=True):
        name, answer, _, test = (ast.get_source_segment(code, part) for part in call.args)
        whole = ast.get_source_segment(code, call)
        code = code.replace(whole, f"check({name}, {answer}, {UNSOLVED}, {test})")
    return code


def write(out: Path) -> list[Path]:
    """Writes the edition's sources to `out`, which it replaces, and the chapters as notebooks; returns these.

    Raises:
        FileExistsError: `out` exists and is no edition.
    """
    if out.exists() and not (out / "chapters").is_dir():
        raise FileExistsError(f"{out} exists and is no edition; choose another folder")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "book", out / "book", ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    shutil.copy(ROOT / "_config.yml", out)
    shutil.copy(ROOT / "CHANGELOG.md", out)
    notebooks = []
    for chapter in sorted((ROOT / "chapters").glob("*/*.md")):
        place = out / chapter.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(without_solutions(chapter.read_text(encoding="utf-8")), encoding="utf-8")
        notebooks.append(out / "notebooks" / chapter.relative_to(ROOT / "chapters").with_suffix(".ipynb"))
        notebooks[-1].parent.mkdir(parents=True, exist_ok=True)
        jupytext.write(jupytext.read(place), notebooks[-1])
    return notebooks


if __name__ == "__main__":
    made = write(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "out" / "class"))
    print(f"{len(made)} notebooks without solutions under {made[0].parents[1]}")
