"""The source that a page shows is the library's own."""

import pytest

from surveylib.figures import colours
from surveylib.figures.lines import LinePlotSlider
from surveylib.figures.source import Source


def documented(x):
    """Says what it does."""

    # why
    return x + 1


def test_shows_the_code_without_docstrings():
    code = Source(documented).code
    head = f"# {__name__.replace('.', '/')}.py"
    assert code.splitlines() == [head, "def documented(x):", "    # why", "    return x + 1"]
    assert '"""Says what it does."""' in Source(documented, docstrings=True).code


def test_names_file_and_class_once():
    code = Source(colours.role, LinePlotSlider._svg_curve).code
    assert code.count("# surveylib/figures/colours.py") == 1
    assert "# surveylib/figures/lines.py\n# class LinePlotSlider\n@staticmethod\ndef _svg_curve(" in code


def test_is_a_python_block_on_a_page():
    bundle = Source(colours.role)._repr_mimebundle_()
    assert bundle["text/markdown"].startswith("```python\n") and bundle["text/markdown"].endswith("\n```")
    assert "text/html" not in bundle


def test_refuses_nothing_and_too_much():
    with pytest.raises(ValueError, match="at least one"):
        Source()
    with pytest.raises(ValueError, match="show at most 3"):
        Source(colours.role, limit=3)
    with pytest.raises(TypeError):
        Source(len)
