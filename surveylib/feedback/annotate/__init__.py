"""Be the annotator: compare, rank, rate and mark pictures in JupyterLab; the answers become feedback records.

    tasks = [Task.pair(prompt, first, second), ...]
    widget = annotate(tasks, "answers.jsonl", annotator="me")   # shown when it ends a cell
    widget.session.export("answers.parquet")

`AnnotationSession` is all of it without the interface; `session.run(annotator)` lets a callable answer.
"""

from surveylib.feedback.annotate.answer_file import LockedError
from surveylib.feedback.annotate.session import AnnotationSession, Progress, Shown
from surveylib.feedback.annotate.tasks import TASK_KINDS, Task
from surveylib.feedback.annotate.widget import AnnotationWidget, annotate

__all__ = [
    "TASK_KINDS",
    "AnnotationSession",
    "AnnotationWidget",
    "LockedError",
    "Progress",
    "Shown",
    "Task",
    "annotate",
]
