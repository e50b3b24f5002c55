"""`surveylib measure`, `report` and `gaussian`."""

import json

import pytest
from typer.testing import CliRunner

from surveylib.cli import app
from surveylib.evaluation import frontier, gaussian
from surveylib.evaluation.commands import COLUMNS, fitting
from surveylib.evaluation.gaussian.stored import changed

ROW = {"technique": "ddpo", "world": "w", "distance": 0.5, "exact_error": 0.01, "closed": 0.25, "calls": 10, "note": ""}


def test_gaussian_prints_the_rows_of_the_families_asked_for(monkeypatch, tmp_path):
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
    CliRunner().invoke(app, ["gaussian", "--family", "test_time", "--seed", "3", "--out", str(tmp_path / "table.json")])
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["rows"] == [ROW] and stored["seed"] == 3 and set(stored["hashes"]) == {"ddpo", "sampler"}
    assert changed(stored) == []
    assert changed({**stored, "hashes": {"ddpo": "another", "sampler": stored["hashes"]["sampler"]}}) == ["ddpo"]
    del asked[1 + len(gaussian.FAMILIES):]
    assert [name for name, _ in asked[1:]] == list(gaussian.FAMILIES)
    with pytest.raises(ValueError, match="unknown family 'magic'"):
        gaussian.table(["magic"])


def test_a_curve_is_asked_for_with_its_budgets(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(frontier, "stored_curve", lambda plan, stops, folder, say: asked.append((plan, stops, folder)))
    words = ["curve", "draft", "--budgets", "10,20", "--seed", "2", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    ((plan, stops, folder),) = asked
    assert (plan.technique, plan.seed, plan.scale, stops, folder) == ("draft", 2, "toy", [10, 20], tmp_path)
    wrong = CliRunner().invoke(app, ["curve", "--budgets", "10,many"]).exception
    assert "--budgets '10,many' must be whole numbers with commas" in str(wrong)


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
    assert [COLUMNS[n] for n in narrow] == ["technique", "gold", "gain over base"]
    assert [COLUMNS[n] for n in one] == ["technique"]
