"""The session as a widget: pictures, keys, buttons. All that counts happens in `AnnotationSession`.

Keys need a front end of their own: ipywidgets passes no key presses on, and JupyterLab binds arrows, digits, u and s to
cells. anywidget carries the small script in widget.js, which keeps the keys of a focused widget for itself.

Where nobody can answer (a rendered book), the environment variable SURVEYLIB_STILL=1 makes `annotate` show a still.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from surveylib.feedback.annotate.session import AnnotationSession
from surveylib.feedback.annotate.tasks import MAPS, Task
from surveylib.feedback.annotate.view import FOLDER, describe, still

STILL = "SURVEYLIB_STILL"


class Still:
    """The current task of a session as HTML, in the place of the widget. `session` is the same."""

    def __init__(self, session: AnnotationSession):
        self.session = session

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": still(self.session), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Still({self.session.progress.answered} of {self.session.progress.total} answered)"


def spoken(task: Task, answer: Any) -> Any:
    """An answer as the front end sends it, as the session takes it: painted cells arrive as lists of indices."""
    if task.kind != "rich" or not isinstance(answer, dict):
        return answer
    marks: dict[str, Any] = {"misaligned": [bool(word) for word in answer.get("misaligned", [])]}
    for name in MAPS:
        cells = np.zeros(task.cells * task.cells, dtype=np.float32)
        cells[[int(index) for index in answer.get(name, [])]] = 1.0
        marks[name] = cells.reshape(task.cells, task.cells)
    return marks


class AnnotationWidget(anywidget.AnyWidget):
    """Shows the current task of a session, takes answers by keys, mouse and touch, saves each at once.

    Keys: left and right (or 1 and 2), down or 0 for a tie, u undo, s skip; the buttons show theirs.
    session: an `AnnotationSession`; it stays open until `session.close()`.
    """

    _esm = FOLDER / "widget.js"
    _css = FOLDER / "annotate.css"
    view = traitlets.Dict().tag(sync=True)

    def __init__(self, session: AnnotationSession):
        super().__init__(view=describe(session))
        self.session = session
        self.on_msg(self._on_message)

    def _on_message(self, _: Any, content: dict[str, Any], buffers: Any = None) -> None:
        """One press: {"do": "answer" | "undo", "task", "answer", "seconds"}; none for a task that is gone."""
        said, error = "", ""
        try:
            if content.get("do") == "undo":
                said = self._undo()
            elif content.get("do") == "answer":
                said = self._answer(content)
        except (ValueError, RuntimeError, OSError, IndexError) as problem:
            error = f"Not saved: {problem}"
        self.view = describe(self.session, said, error)
        self.send({"done": True})

    def _answer(self, content: dict[str, Any]) -> str:
        shown = self.session.current
        if shown is None or content.get("task") != shown.task.task_id:
            return "That task was answered before."
        answer = spoken(shown.task, content.get("answer"))
        record = self.session.answer(answer, seconds=content.get("seconds"))
        return f"Skipped number {shown.number}." if record is None else f"Saved number {shown.number}."

    def _undo(self) -> str:
        task = self.session.undo()
        return "Nothing to undo." if task is None else "Taken back. Answer again."

    def refresh(self) -> None:
        """Show the session as it is now, after `session.answer` or `session.undo` from code."""
        self.view = describe(self.session)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and for front ends without widgets the still."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        plain = Still(self.session)._repr_mimebundle_()
        return {**data, **plain}, metadata


def annotate(tasks: Sequence[Task], path: str | Path, **options: Any) -> AnnotationWidget | Still:
    """A session on `tasks` with its widget; end a cell with it to see it. `.session` is the `AnnotationSession`.

    path, options: as of `AnnotationSession`. A session that an earlier run of the cell opened on the file is closed.
    """
    session = AnnotationSession(tasks, path, **{"take_over": True, **options})
    return Still(session) if os.environ.get(STILL) == "1" else AnnotationWidget(session)
