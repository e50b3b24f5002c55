"""`surveylib measure`, `report` and `gaussian`."""

import json

import pytest
from typer.testing import CliRunner

from surveylib.cli import app
from surveylib.evaluation import gaussian
from surveylib.evaluation.commands import COLUMNS, fitting

ROW = {"technique": "ddpo", "world": "w", "distance": 0.5, "exact_error": 0.01, "closed": 0.25, "calls": 10, "note": ""}


def test_gaussian_prints_the_rows_of_the_families_asked_for(monkeypatch):
    asked = []

    class Family:
        def __init__(self, name):
            self.name = name

        def rows(self, seed):
            asked.append((self.name.rsplit(".", 1)[-1], seed))
            return [ROW]

    monkeypatch.setattr(gaussian, "import_module", Family)
    found = CliRunner().invoke(app, ["gaussian", "--family", "test_time", "--seed", "3", "--json"])
    assert found.exit_code == 0 and json.loads(found.output) == [ROW] and asked == [("test_time", 3)]
    assert "25.0 %" in CliRunner().invoke(app, ["gaussian"]).output
    assert [name for name, _ in asked[1:]] == list(gaussian.FAMILIES)
    with pytest.raises(ValueError, match="unknown family 'magic'"):
        gaussian.table(["magic"])


def test_measure_and_report(tmp_path):
    runner, out = CliRunner(), str(tmp_path / "rows")
    found = runner.invoke(app, ["measure", "--technique", "best_of_n", "--calls", "16", "--settings", "1", "--scale",
                                "rehearsal", "--out", out])
    assert found.exit_code == 0, found.output
    assert "best_of_n" in runner.invoke(app, ["report", "--folder", out]).output
    assert "no row is out of date" in runner.invoke(app, ["measure", "--stale", "--out", out]).output


def test_a_narrow_terminal_gets_the_important_columns():
    cells = [["0.821 [0.793, 0.848]"] * len(COLUMNS)]
    wide, narrow, one = fitting(cells, 1000), fitting(cells, 80), fitting(cells, 5)
    assert wide == list(range(len(COLUMNS)))
    assert [COLUMNS[n] for n in narrow] == ["technique", "proxy", "gold"] and [COLUMNS[n] for n in one] == ["technique"]
