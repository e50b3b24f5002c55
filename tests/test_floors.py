"""The architecture: who may import whom, and how long a function may be."""

import ast
from pathlib import Path

import import_graph
import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"catalog": 0, "runs": 0, "diffusion": 1, "feedback": 1, "worlds": 2, "rewards": 3, "techniques": 4,
          "alignment": 5, "evaluation": 6, "cli": 7}
LEAVES = {"figures", "exercises"}  # import nothing of the library; anyone may import them
LONGEST = 60


def package(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def offences(module: str, source: str, is_package: bool = False) -> list[str]:
    """Imports of one module that its floor does not allow, relative dots resolved."""
    imported, _ = import_graph.names_used(ast.parse(source), module, is_package)
    here, found = package(module), []
    if here and here not in FLOORS and here not in LEAVES:
        return [f"{module}: {here!r} has no floor; give it one in tests/test_floors.py"]
    for name in sorted(imported):
        there = package(name) if name.split(".")[0] == import_graph.PACKAGE else ""
        if not there or there == here or there not in FLOORS.keys() | LEAVES:
            continue  # outside, own package, or a name such as surveylib.__version__
        if here in LEAVES:
            found.append(f"{module} is of a leaf and imports {name}")
        elif there in FLOORS and FLOORS.get(here, 99) <= FLOORS[there]:
            found.append(f"{module} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
    return found


def long_functions(source: str) -> list[tuple[str, int]]:
    """Functions of more than LONGEST lines, decorators and docstring included."""
    return [(node.name, node.end_lineno - node.lineno + 1) for node in ast.walk(ast.parse(source))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= LONGEST]


MODULES = import_graph.module_files(ROOT)


def test_there_are_modules():
    assert len(MODULES) > 10


@pytest.mark.parametrize("module", MODULES)
def test_lower_floors_do_not_import_higher(module):
    path = MODULES[module]
    assert offences(module, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


@pytest.mark.parametrize("module, source, allowed", [
    ("surveylib.diffusion.x", "from surveylib.worlds.shapes import data", False),
    ("surveylib.diffusion.x", "from ..worlds import shapes", False),
    ("surveylib.diffusion.x", "from . import model", True),
    ("surveylib.diffusion.x", "def f():\n    import surveylib.techniques.ddpo", False),
    ("surveylib.worlds.shapes.x", "from ...diffusion.zoo import load_model", True),
    ("surveylib.worlds.shapes.x", "from ...rewards import jpeg", False),
    ("surveylib.figures.x", "from ..runs import scale", False),
    ("surveylib.figures.x", "import numpy", True),
    ("surveylib.runs.x", "from surveylib import catalog", False),
    ("surveylib.new.x", "import numpy", False),
])
def test_the_rule_sees_planted_imports(module, source, allowed):
    assert (offences(module, source) == []) is allowed


def test_no_function_is_long():
    folders = ("surveylib", "book", "tests")
    found = [f"{path.relative_to(ROOT)}: {name} has {lines} lines" for folder in folders
             for path in sorted((ROOT / folder).rglob("*.py"))
             for name, lines in long_functions(path.read_text(encoding="utf-8"))]
    assert found == []


def test_the_length_rule_sees_a_long_function():
    assert long_functions("def f():\n" + "    x = 1\n" * LONGEST) == [("f", LONGEST + 1)]
    assert long_functions("def f():\n" + "    x = 1\n" * (LONGEST - 1)) == []
