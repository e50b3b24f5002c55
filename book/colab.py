"""The chapters as notebooks for Colab: ``python book/colab.py out/colab``, or `make colab`.

Colab opens .ipynb files of a GitHub repository, and this one keeps its chapters as text. What is written here is the
branch "notebooks" that the book's Colab buttons point to: each chapter, under its own path, with a first cell that
clones the repository, installs it and goes to the chapter's folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import jupytext
import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
SETUP = """\
# On a fresh machine, such as Colab's: gets the book and its library. Elsewhere it does nothing.
import importlib.util, os, sys
if importlib.util.find_spec("surveylib") is None:
    !git clone --quiet --depth 1 {url} survey
    %pip install --quiet -e "survey[book]"
    sys.path.insert(0, os.path.abspath("survey"))
    os.chdir("survey/{folder}")"""


def repository(config: Path = ROOT / "_config.yml") -> str:
    """The address in the book's configuration.

    Raises:
        ValueError: there is none.
    """
    url = yaml.safe_load(config.read_text(encoding="utf-8"))["repository"]["url"]
    if not url:
        raise ValueError("repository.url in _config.yml is empty: set it to the address that Colab is to clone from, "
                         "such as https://github.com/NAME/REPOSITORY")
    return url


def write(out: Path, url: str) -> list[Path]:
    """Writes the notebooks to `out`, whose chapters it replaces; returns them.

    Raises:
        FileExistsError: `out` holds something else.
    """
    if out.exists() and any(path.name not in ("chapters", ".git") for path in out.iterdir()):
        raise FileExistsError(f"{out} holds more than notebooks; choose another folder")
    shutil.rmtree(out / "chapters", ignore_errors=True)
    written = []
    for chapter in sorted((ROOT / "chapters").glob("*/*.md")):
        place = chapter.relative_to(ROOT)
        notebook = jupytext.read(chapter)
        setup = SETUP.format(url=url, folder=place.parent.as_posix())
        notebook.cells.insert(0, nbformat.v4.new_code_cell(setup, id="setup"))
        written.append(out / place.with_suffix(".ipynb"))
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, written[-1])
    return written


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "out" / "colab")
    try:
        address = repository()
        made = write(where, address)
    except (ValueError, FileExistsError) as error:
        sys.exit(str(error))
    print(f"{len(made)} notebooks in {where}. To publish them:\n  cd {where} && git init -q -b notebooks && git add -A "
          f'&& git commit -qm Notebooks && git push --force "{address}" notebooks')
