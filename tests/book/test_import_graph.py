"""The execution cache: a chapter runs again when, and only when, something it uses changed."""

import ast
from pathlib import Path

import import_graph
import pytest
from notebooks import ONE_CELL

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def tree(tmp_path):
    """A small library: low <- middle (relative) <- top (inside a function); apart; a checkpoint; package data."""
    lib = tmp_path / "surveylib"
    write(lib / "__init__.py", "")
    write(lib / "low" / "__init__.py", "")
    write(lib / "low" / "a.py", "import json\nA = 1\n")
    write(lib / "low" / "unused.py", "")
    write(lib / "low" / "data.json", "{}")
    write(lib / "middle.py", "from .low import a\n")
    write(lib / "top.py", "def f():\n    from surveylib import middle\n    return load('shapes-x')\n")
    write(lib / "apart.py", "LAZY = 'surveylib.low.a'\n")
    write(lib / "alone.py", "import numpy\n")
    write(lib / "registry.py", "HOME = 'surveylib'\nT = {'a': f'{HOME}.low.a:A', 'other': 'surveylib.alone:B'}\n")
    write(lib / "asks.py", "from surveylib.registry import T\nx = T['a']\n")
    write(lib / "rewards" / "learned" / "checkpoints" / "shapes-r" / "head.safetensors", "weights")
    write(lib / "worlds" / "shapes" / "checkpoints" / "shapes-x" / "model.safetensors", "weights")
    write(lib / "worlds" / "shapes" / "checkpoints" / "shapes-y" / "model.safetensors", "weights")
    write(tmp_path / "book" / "measurements" / "rows.json", "[]")
    return tmp_path


def chapter(tree: Path, code: str) -> Path:
    return write(tree / "chapters" / "part" / "01_x.md", ONE_CELL.format(title="x", code=code))


def used(tree: Path, code: str) -> set[str]:
    files, _ = import_graph.uses(chapter(tree, code), tree)
    return {str(f.relative_to(tree)) for f in files}


def test_imports_are_followed_through(tree):
    found = used(tree, "from surveylib.top import f")
    assert {"surveylib/top.py", "surveylib/middle.py", "surveylib/low/a.py", "surveylib/__init__.py"} <= found
    assert not {"surveylib/low/unused.py", "surveylib/apart.py", "surveylib/alone.py"} & found


@pytest.mark.parametrize("code, file", [
    ("import surveylib.middle as m", "surveylib/low/a.py"),
    ("from surveylib import middle", "surveylib/low/a.py"),
    ("from surveylib import apart", "surveylib/low/a.py"),  # named by a string
    ("from surveylib import middle", "surveylib/low/data.json"),  # package data
    ("x = load('shapes-x')", "surveylib/worlds/shapes/checkpoints/shapes-x/model.safetensors"),
    ("from surveylib import top", "surveylib/worlds/shapes/checkpoints/shapes-x/model.safetensors"),
    ("from surveylib.registry import get\nget('a')", "surveylib/low/a.py"),  # by its name in a table
    ("from surveylib import asks", "surveylib/low/a.py"),
    ("x = load('shapes-r')", "surveylib/rewards/learned/checkpoints/shapes-r/head.safetensors"),
    ("open(root / 'book/measurements/rows.json')", "book/measurements/rows.json"),
    ("rows(root / 'book/measurements')", "book/measurements/rows.json"),  # a whole folder
    ("%matplotlib inline\nimport surveylib.middle", "surveylib/low/a.py"),
    ("if x:\n    !ls\nimport surveylib.middle", "surveylib/low/a.py"),
])
def test_what_counts(tree, code, file):
    assert file in used(tree, code)


def test_another_model_does_not_count(tree):
    assert not any("shapes-y" in name for name in used(tree, "from surveylib import top"))


def test_what_a_table_lists_does_not_count_until_it_is_asked_for(tree):
    assert not {"surveylib/low/a.py", "surveylib/alone.py"} & used(tree, "from surveylib import registry")
    assert "surveylib/alone.py" not in used(tree, "from surveylib.registry import get\nget('a')")


CHAPTERS = sorted((ROOT / "chapters").rglob("*.md"))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_what_a_chapter_asks_for_by_name_counts(path):
    """Every technique and reward that a chapter names in a call is among the files it uses, with its weights."""
    files = {str(f.relative_to(ROOT)) for f in import_graph.uses(path, ROOT)[0]}
    asked = {(node.func.id, node.args[0].value) for node in ast.walk(import_graph.chapter_tree(path))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
             and node.func.id in ("load_reward", "preset", "technique_class")
             and node.args and isinstance(node.args[0], ast.Constant)}
    known = import_graph.tables(ast.parse((ROOT / "surveylib/rewards/registry.py").read_text())) | import_graph.tables(
        ast.parse((ROOT / "surveylib/techniques/registry.py").read_text()))
    assert len(known) > 30
    for _, name in asked:
        if name in known:
            assert known[name].replace(".", "/") + ".py" in files
        elif name.startswith("shapes-"):
            assert any(f.startswith(f"surveylib/rewards/learned/checkpoints/{name}/") for f in files)


def test_fingerprint_changes_only_with_what_is_used(tree):
    path = chapter(tree, "from surveylib.top import f")
    before = import_graph.fingerprint(path, tree)
    assert import_graph.fingerprint(path, tree) == before
    write(tree / "surveylib" / "alone.py", "import numpy  # changed\n")
    write(tree / "surveylib" / "low" / "unused.py", "x = 1\n")
    assert import_graph.fingerprint(path, tree) == before
    write(tree / "surveylib" / "low" / "a.py", "import json\nA = 22\n")
    after = import_graph.fingerprint(path, tree)
    assert after != before
    write(tree / "surveylib" / "worlds" / "shapes" / "checkpoints" / "shapes-x" / "model.safetensors", "new weights")
    assert import_graph.fingerprint(path, tree) != after


def test_fingerprint_knows_package_versions(tree, monkeypatch):
    path = chapter(tree, "from surveylib import alone")
    before = import_graph.fingerprint(path, tree)
    monkeypatch.setattr(import_graph, "_version", lambda package: "99")
    assert import_graph.fingerprint(path, tree) != before


def test_relative_imports_resolve():
    def names(code, module, is_package=False):
        return import_graph.names_used(ast.parse(code), module, is_package)[0]

    assert names("from . import b", "p.q.a") == {"p.q", "p.q.b"}
    assert names("from ..r import b", "p.q.a") == {"p.r", "p.r.b"}
    assert names("from . import b", "p.q", is_package=True) == {"p.q", "p.q.b"}


def test_the_real_figures_do_not_reach_the_models():
    files = import_graph.module_files(ROOT)
    reached, _, _ = import_graph.closure({"surveylib.figures"}, files)
    assert "surveylib.figures.movable" in reached and not any(m.startswith("surveylib.diffusion") for m in reached)
