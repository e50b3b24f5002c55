"""What the interface shows at one moment, as plain values; and the same as a still picture in HTML."""

from __future__ import annotations

import base64
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from surveylib.feedback.annotate.session import AnnotationSession
from surveylib.feedback.pictures import picture_format

KIND_NAMES = {"pair": "Pair", "ranking": "Ranking", "rating": "Rating", "binary": "Picture", "rich": "Picture to mark"}
MOST_BUTTONS = 11  # of a rating scale; longer ones get a slider
FOLDER = Path(__file__).parent


@lru_cache(maxsize=32)
def data_address(picture: bytes) -> str:
    """Encoded picture bytes as a data: address."""
    return f"data:image/{picture_format(picture).lower()};base64,{base64.b64encode(picture).decode()}"


def scale_values(low: float, high: float, step: float) -> list[float]:
    """The ratings that can be given: low, low + step, ..., and high."""
    values = [round(float(v), 9) for v in np.arange(low, high + step * 1e-6, step)]
    return values if abs(values[-1] - high) < step * 1e-6 else [*values, float(high)]


def describe(session: AnnotationSession, saved: str = "", error: str = "") -> dict[str, Any]:
    """The state of a session for the interface. saved: what was just done. error: what went wrong."""
    shown, progress = session.current, session.progress
    state: dict[str, Any] = {
        "answered": progress.answered, "skipped": progress.skipped, "total": progress.total, "left": progress.left,
        "expect": session.expectation(), "file": session.path.name, "saved": saved, "error": error,
        "undo": session.last is not None and not session.closed, "closed": session.closed, "task": "",
    }
    if shown is not None:
        task = shown.task
        values = scale_values(task.low, task.high, task.step) if task.kind == "rating" else []
        state |= {
            "task": task.task_id, "number": shown.number, "kind": task.kind, "name": KIND_NAMES[task.kind],
            "prompt": task.prompt, "question": task.question, "images": [data_address(i) for i in shown.images],
            "words": task.prompt.split(), "cells": task.cells, "low": task.low, "high": task.high, "step": task.step,
            "values": values if len(values) <= MOST_BUTTONS else [],
        }
    return state


def still(session: AnnotationSession) -> str:
    """The current task as HTML without any script: what a page without a kernel shows."""
    state = describe(session)
    style = (FOLDER / "annotate.css").read_text(encoding="utf-8")
    head = (f'<div class="sv-ann-head"><progress max="{state["total"]}" '
            f'value="{state["answered"] + state["skipped"]}" aria-label="progress"></progress>'
            f'<span>{state["answered"]} of {state["total"]} answered</span></div>')
    if not state["task"]:
        body = '<p class="sv-ann-prompt">All tasks are done.</p>'
    else:
        count, prompt = len(state["images"]), escape(state["prompt"])
        pictures = "".join(
            f'<figure class="sv-ann-pic"><img class="sv-ann-pix" src="{address}" '
            f'alt="picture {place} of {count} for the prompt: {prompt}"><figcaption>{place}</figcaption></figure>'
            for place, address in enumerate(state["images"], start=1))
        body = (f'<p class="sv-ann-question">{escape(state["question"])}</p>'
                f'<p class="sv-ann-prompt">{prompt}</p>'
                f'<div class="sv-ann-pics sv-ann-n{min(count, 4)}">{pictures}</div>')
    foot = '<p class="sv-ann-foot">A still of the widget. Run this cell in JupyterLab to answer.</p>'
    return f'<style>{style}</style><div class="sv-ann sv-ann-still">{head}{body}{foot}</div>'
