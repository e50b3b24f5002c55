"""Every chapter is a notebook, is run by the tests, and keeps the rules of the book."""

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from notebooks import CHAPTERS, NOTEBOOKS, ROOT, chapter_files, code_chapters, notebook_name, write_notebooks

from surveylib import catalog

FILES = chapter_files()
ids = [str(path.relative_to(CHAPTERS)) for path in FILES]


def test_no_chapter_is_passed_over():
    """Each chapter has its notebooks, at toy size and at rehearsal, and pytest with nbmake collects them all."""
    names = {notebook_name(chapter) for chapter in code_chapters()}
    names |= {f"rehearsal__{name}" for name in names}
    assert {p.name for p in NOTEBOOKS.glob("*.ipynb")} == names
    assert "_build" not in NOTEBOOKS.parts
    done = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", str(NOTEBOOKS)],
                          cwd=ROOT, capture_output=True, text=True)
    collected = {line.split("::")[0].rsplit("/", 1)[-1] for line in done.stdout.splitlines() if ".ipynb" in line}
    assert collected == names, done.stdout


def test_rehearsal_sets_the_scale_before_anything_is_imported():
    for path in NOTEBOOKS.glob("rehearsal__*.ipynb"):
        first = next(cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        assert 'os.environ["SURVEYLIB_SCALE"] = "rehearsal"' in first.source


def test_names_stay_unique_across_parts(tmp_path):
    cell = "\n```{code-cell} ipython3\n1\n```\n"
    head = ("---\njupytext: {text_representation: {extension: .md, format_name: myst}}\n"
            "kernelspec: {display_name: Python 3, name: python3}\n---\n")
    for part in "ab":
        (tmp_path / "chapters" / part).mkdir(parents=True)
        (tmp_path / "chapters" / part / "01_x.md").write_text(head + cell)
    (tmp_path / "chapters" / "a" / "02_prose.md").write_text(head + "only words\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "stale.ipynb").write_text("{}")
    written = write_notebooks(tmp_path / "chapters", out)
    names = ["a__01_x.ipynb", "b__01_x.ipynb"]
    assert sorted(p.name for p in out.iterdir()) == [*names, *(f"rehearsal__{name}" for name in names)]
    assert len(written) == 4


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_header_makes_it_a_notebook(path):
    """Without both entries Jupyter Book takes the file for plain text and shows code instead of running it."""
    head = yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1])
    assert head["jupytext"]["text_representation"] | {"extension": ".md", "format_name": "myst"} \
        == head["jupytext"]["text_representation"]
    assert head["kernelspec"]["name"] == "python3"
    assert "execution" not in head, "a chapter's own timeout would overrule the limit"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_chapter_is_in_the_catalog_under_its_title(path):
    key = str(path.relative_to(CHAPTERS).with_suffix(""))
    known = {c.key: c for c in catalog.chapters()}
    assert key in known, f"add {key} to surveylib/catalog/tree.py"
    text = path.read_text(encoding="utf-8")
    title, body = re.search(r"^# (.+?)\n(.*)", text, re.MULTILINE | re.DOTALL).groups()
    assert title.strip() == known[key].title
    assert " ".join(re.search(r"\*\*(.+?)\*\*", body, re.DOTALL)[1].split()) == known[key].question


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_chapter_keeps_the_rules(path):
    code = "\n".join(c.source for c in jupytext.read(path).cells if c.cell_type == "code")
    assert not re.search(r"\binteract(ive)?\(", code), "interact is dead without a kernel"
    assert not re.search(r"open\(\s*[\"'](?![/~])", code), "a chapter runs in two folders: no relative paths"
    assert "skip-execution" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_exercises_are_whole(path):
    """Every exercise has a folded solution and a check."""
    text = path.read_text(encoding="utf-8")
    labels = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n(?::class:[^\n]*\n)?:label: (\S+)", text)
    solved = re.findall(r"\{solution(?:-start)?\} (\S+)", text)
    assert sorted(labels) == sorted(solved)
    folded = re.findall(r"\{solution(?:-start)?\} \S+\n(?::label:[^\n]*\n)?:class: dropdown", text)
    assert len(folded) == len(solved)


MOVABLE = ("Scrubber", "SliderGrid", "BeforeAfter", "LinePlotSlider", "GridSlider", "ScatterChooser", "SortableTable")


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_three_figures_to_move_and_five_exercises_with_checks(path):
    """Figures are counted where they are made; one exercise of a chapter may be an open question, without a check."""
    made = re.findall(rf"\b(?:{'|'.join(MOVABLE)})\(", path.read_text(encoding="utf-8"))
    exercises = re.findall(r"^```\{exercise", path.read_text(encoding="utf-8"), re.M)
    checks = re.findall(r"^check\(", path.read_text(encoding="utf-8"), re.M)
    assert len(made) >= 3 and len(exercises) >= 5 and len(checks) >= len(exercises) - 1


def test_table_of_contents_finds_chapters_of_every_part():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    globs = {entry["glob"] for part in toc["parts"] for entry in part["chapters"] if "glob" in entry}
    assert globs == {f"chapters/{part.key}/[0-9]*" for part in catalog.parts()}
    pages = [entry["file"] for part in toc["parts"] for entry in part["chapters"] if "file" in entry]
    assert all(Path(ROOT, f"{page}.md").exists() for page in [toc["root"], *pages])
