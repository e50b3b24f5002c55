"""Chapters run several at a time before the pages are read, and the pages show those runs."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import execute_ahead
import pytest
import survey_book
from notebooks import ONE_CELL
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
# Each chapter ends only when the other has begun: one after the other they would wait in vain.
MEET = """import os, pathlib, time
folder = pathlib.Path({folder!r})
folder.joinpath({own!r}).open("a").write("ran ")
end = time.monotonic() + 90
while not folder.joinpath({other!r}).exists() and time.monotonic() < end:
    time.sleep(0.05)
assert folder.joinpath({other!r}).exists(), "the other chapter never began"
print("met on", os.environ["OMP_NUM_THREADS"], "threads")"""


def build(folder, warnings=None) -> Sphinx:
    """A book of all pages in `folder`, with the cache of each page in a folder of its own."""
    app = Sphinx(folder, None, folder / "_build/html", folder / "_build/doctrees", "html", status=None,
                 warning=warnings, freshenv=True,
                 confoverrides={"extensions": ["myst_nb"], "nb_execution_mode": "cache", "root_doc": "a",
                                "exclude_patterns": ["_build"], "suppress_warnings": ["toc.not_included"]})

    def config_of(name):
        return app.env.mystnb_config.copy(execution_cache_path=str(folder / "cache" / name))

    def before_read(app, name, source):
        app.env.mystnb_config = config_of(name)

    app.connect("env-before-read-docs", lambda app, env, names: execute_ahead.ahead(env, names, config_of))
    app.connect("source-read", before_read)
    app.build()
    return app


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("SURVEYLIB_SCALE", "toy")
    monkeypatch.delenv("SURVEYLIB_JOBS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_two_chapters_run_at_the_same_time_and_once(tmp_path):
    for own, other in ("ab", "ba"):
        code = MEET.format(folder=str(tmp_path), own=f"{own}.ran", other=f"{other}.ran")
        (tmp_path / f"{own}.md").write_text(ONE_CELL.format(title=own, code=code))
    app = build(tmp_path)
    for name in "ab":
        assert "met on 1 threads" in (tmp_path / f"_build/html/{name}.html").read_text()
        assert (tmp_path / f"{name}.ran").read_text() == "ran "
        assert app.env.nb_metadata[name]["exec_data"]["succeeded"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_failing_chapter_is_reported_by_its_page(tmp_path):
    for name, code in (("a", "print('fine')"), ("b", "raise ValueError('broken on purpose')")):
        (tmp_path / f"{name}.md").write_text(ONE_CELL.format(title=name, code=code))
    said = io.StringIO()
    app = build(tmp_path, said)
    assert "b.md: WARNING: Executing notebook failed" in said.getvalue() and "a.md" not in said.getvalue()
    assert "-W" in (ROOT / "Makefile").read_text().partition("jupyter-book build")[2].partition("\n")[0].split()
    assert app.env.nb_metadata["a"]["exec_data"]["succeeded"]
    assert "broken on purpose" in app.env.nb_metadata["b"]["exec_data"]["traceback"]


@pytest.mark.parametrize(("scale", "value", "expected"), [
    ("toy", "", 2), ("toy", "1", 1), ("rehearsal", "16", 2), ("single", "2", 1), ("full", "", 1)])
def test_jobs_by_scale(monkeypatch, scale, value, expected):
    monkeypatch.setenv("SURVEYLIB_JOBS", value)
    assert execute_ahead.jobs(scale) == expected


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_bad_number_of_jobs_is_named(monkeypatch, value):
    monkeypatch.setenv("SURVEYLIB_JOBS", value)
    with pytest.raises(ValueError, match=f"SURVEYLIB_JOBS is '{value}'"):
        execute_ahead.jobs("toy")


@pytest.mark.parametrize("scale, limit", [("toy", 600), ("rehearsal", 600), ("single", -1), ("full", -1)])
def test_cells_may_take_long_where_training_is_at_full_scale(monkeypatch, scale, limit):
    config = SimpleNamespace(nb_execution_timeout=600)
    monkeypatch.setenv("SURVEYLIB_SCALE", scale)
    survey_book.patience(None, config)
    assert config.nb_execution_timeout == limit
