"""The edition for a class: no solution is left, and the notebooks run as they are handed out."""

import jupytext
import pytest
from edition import ROOT, without_solutions, write

CHAPTERS = sorted((ROOT / "chapters").glob("*/*.md"))
EXERCISE = """
```{exercise} Double
:label: ex-double
Double a number.
```

```{code-cell} ipython3
def answer_double(x):
    ...
```

```{solution-start} ex-double
:class: dropdown
```

Twice.

```{code-cell} ipython3
def solution_double(x):
    return 2 * x
```

```{solution-end}
```

```{code-cell} ipython3
from surveylib.exercises import check

verdict = check("double", answer_double, solution_double,
                lambda f: f(3) == 6, wrong=[lambda x: x + 4])
```

```{solution} ex-open
:class: dropdown
An opinion.
```
"""


def run(text, answer=None):
    """The names after running the cells of a chapter's text, the stub replaced by `answer`."""
    names = {}
    for cell in jupytext.reads(text, fmt="md:myst").cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if answer is not None and "answer_double" in cell.source.split("(")[0]:
                names["answer_double"] = answer
    return names


def test_an_exercise_without_its_solution(monkeypatch):
    monkeypatch.delenv("SURVEYLIB_PROVE_CHECKS", raising=False)
    text = without_solutions(EXERCISE)
    assert "solution" not in text and "Twice" not in text and "opinion" not in text and "x + 4" not in text
    assert "{exercise} Double" in text and run(text)["verdict"].judged == "nobody"
    assert run(text, lambda x: 2 * x)["verdict"].judged == "reader"
    with pytest.raises(AssertionError):
        run(text, lambda x: x + 4)


def test_a_cell_that_needs_a_solution_is_named():
    with pytest.raises(ValueError, match="solution_double"):
        without_solutions(EXERCISE + "\n```{code-cell} ipython3\nprint(solution_double(4))\n```\n")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_keeps_its_exercises_and_loses_their_solutions(chapter):
    before = chapter.read_text(encoding="utf-8")
    after = without_solutions(before)
    for word in ("{exercise}", "def answer_", "check("):
        assert after.count(word) == before.count(word)
    assert before.count("solution-start") >= 3 and "{solution" not in after and "solution_" not in after
    assert "wrong=[" not in after


def test_writing_it(tmp_path):
    made = write(tmp_path / "class")
    assert len(made) == len(CHAPTERS) and all(path.is_file() for path in made)
    written = [*made, *(tmp_path / "class" / "chapters").glob("*/*.md")]
    assert len(written) == 2 * len(CHAPTERS)
    assert not [path for path in written if "solution_" in path.read_text(encoding="utf-8")]
    assert write(tmp_path / "class") == made
    with pytest.raises(FileExistsError, match="no edition"):
        write(ROOT / "tests")
