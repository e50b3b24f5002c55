"""Source shown by `Source` in a page: no line scrolls sideways, and what is copied is the source."""

from pathlib import Path

import pytest
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from surveylib.diffusion.rollout import rollout
from surveylib.figures.source import Source

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"
STYLE = "<style>pre { font: 14px monospace; margin: 0; }</style>"


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1366])
def test_long_lines_of_shown_source_wrap_and_keep_their_text(visit, tmp_path, width):
    code = Source(rollout).code + "\n"
    shown = highlight(code, PythonLexer(), HtmlFormatter())
    page_file = tmp_path / "page.html"
    page_file.write_text(f"<!doctype html>{STYLE}<link rel='stylesheet' href='{(STATIC / 'survey.css').as_uri()}'>"
                         f"<script src='{(STATIC / 'survey.js').as_uri()}'></script>"
                         f"<div style='max-width: 757px'><div class='cell_output'><div class='highlight-python'>{shown}"
                         "</div></div></div>", encoding="utf-8")
    page, problems = visit(page_file.as_uri(), viewport={"width": width, "height": 800})
    found = page.eval_on_selector("pre", "e => [e.textContent, e.scrollWidth - e.clientWidth]")
    assert found == [code, 0] and problems == []
    lines = page.locator(".sv-line")
    assert lines.count() == sum(bool(line) for line in code.splitlines())
