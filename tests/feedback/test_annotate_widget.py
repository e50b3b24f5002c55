"""The widget without a browser: messages in, state out; the still."""

import re

import numpy as np
import pytest
import torch

from surveylib.feedback.annotate import AnnotationSession, AnnotationWidget, Task, annotate
from surveylib.feedback.annotate.view import data_address, describe, scale_values
from surveylib.feedback.annotate.widget import STILL
from surveylib.feedback.records import encode_picture, read_records


def picture(value: float) -> bytes:
    return encode_picture(torch.full((3, 8, 8), value))


def tasks() -> list[Task]:
    return [Task.pair(f'a "red" <circle> {n}', picture(0.1), picture(0.2 + n / 10)) for n in range(3)]


@pytest.fixture
def session(tmp_path):
    with AnnotationSession(tasks(), tmp_path / "answers.jsonl") as opened:
        yield opened


def press(widget: AnnotationWidget, **message) -> dict:
    widget._on_message(widget, {"task": widget.view["task"], **message}, [])
    return widget.view


def test_a_press_is_saved_and_the_next_task_shown(session):
    widget = AnnotationWidget(session)
    first = widget.view
    assert first["images"] == [data_address(i) for i in session.current.images] and not first["undo"]
    view = press(widget, do="answer", answer="first", seconds=1.25)
    assert (view["answered"], view["number"], view["undo"]) == (1, 2, True) and "Saved number 1" in view["saved"]
    assert read_records(session.path)[0].extra["seconds"] == 1.25
    assert press(widget, do="undo")["task"] == first["task"] and len(read_records(session.path)) == 0
    assert press(widget, do="answer", answer="skip")["skipped"] == 1
    session.run(lambda shown: "tie")
    assert widget.view["task"] != "" and widget.refresh() is None and widget.view["task"] == ""


def test_a_press_for_a_task_that_is_gone_changes_nothing(session):
    widget = AnnotationWidget(session)
    old = widget.view["task"]
    press(widget, do="answer", answer="first")
    view = press(widget, do="answer", answer="first", task=old)
    assert view["answered"] == 1 and "before" in view["saved"]


def test_what_goes_wrong_is_shown_and_the_task_stays(session):
    widget = AnnotationWidget(session)
    view = press(widget, do="answer", answer="maybe")
    assert view["error"].startswith("Not saved: ") and view["answered"] == 0 and view["number"] == 1
    session.close()
    assert "closed" in press(widget, do="answer", answer="first")["error"]


def test_painted_cells_arrive_as_maps(tmp_path):
    with AnnotationSession([Task.rich("red circle", picture(0.5), cells=4)], tmp_path / "a.jsonl") as session:
        widget = AnnotationWidget(session)
        assert "Not saved" in press(widget, do="answer", answer={"artifact": [99]})["error"]
        press(widget, do="answer", answer={"artifact": [6], "misalignment": [0, 15], "misaligned": [False, True]})
        (record,) = session.records
    assert np.argwhere(record.heatmaps["artifact"]).tolist() == [[1, 2]]
    assert np.argwhere(record.heatmaps["misalignment"]).tolist() == [[0, 0], [3, 3]]
    assert record.misaligned == (False, True)


@pytest.mark.parametrize("scale, values", [((1, 5, 1), [1, 2, 3, 4, 5]), ((0, 1, 0.25), [0, 0.25, 0.5, 0.75, 1]),
                                           ((0, 1, 0.4), [0, 0.4, 0.8, 1])])
def test_scale(scale, values):
    assert scale_values(*scale) == values


def test_a_long_scale_gets_a_slider(tmp_path):
    with AnnotationSession([Task.rating("p", picture(0.1), 0, 100)], tmp_path / "a.jsonl") as session:
        assert describe(session)["values"] == []


def test_the_still_shows_the_first_task_escaped_and_without_scripts(session):
    page = AnnotationWidget(session)._repr_mimebundle_()[0]["text/html"]
    assert page.count("<img ") == 2 and page.count('src="data:image/png;base64,') == 2
    assert "a &quot;red&quot; &lt;circle&gt; 0" in page and "<circle>" not in page
    assert not re.search(r"<script|<button|https?:", page) and "Run this cell in JupyterLab" in page
    session.run(lambda shown: "tie")
    assert "All tasks are done" in AnnotationWidget(session)._repr_mimebundle_()[0]["text/html"]


def test_annotate_again_takes_over_and_shows_a_still_where_asked(tmp_path, monkeypatch):
    first = annotate(tasks(), tmp_path / "a.jsonl")
    press(first, do="answer", answer="tie")
    again = annotate(tasks(), tmp_path / "a.jsonl")
    assert first.session.closed and again.view["answered"] == 1
    monkeypatch.setenv(STILL, "1")
    shown = annotate(tasks(), tmp_path / "a.jsonl")
    assert not isinstance(shown, AnnotationWidget) and set(shown._repr_mimebundle_()) == {"text/html", "text/plain"}
    shown.session.close()
