"""Exercises with a check.

The reader's cell is a stub under its own name (its body is ``...``); the folded solution has another name; `check`
takes the reader's answer where there is one, else the solution:

>>> def answer_double(x):
...     ...
>>> def solution_double(x):
...     return 2 * x
>>> check("double a number", answer_double, solution_double, lambda double: double(3) == 6)
double a number: not attempted yet; the solution passes.
"""

import dis
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class WrongAnswer(AssertionError):
    """The answer that was checked is wrong; the message says what was tried."""


@dataclass(frozen=True)
class Verdict:
    """What `check` found: whose answer was judged ("reader" or "solution")."""

    name: str
    judged: str

    def __repr__(self) -> str:
        if self.judged == "reader":
            return f"{self.name}: your answer passes."
        return f"{self.name}: not attempted yet; the solution passes."


def attempted(answer: Any) -> bool:
    """Whether there is an answer: not None, not ``...``, no function with only a docstring, ``...`` or pass in it."""
    if answer is None or answer is Ellipsis:
        return False
    if not inspect.isfunction(answer):
        return True
    steps = list(dis.get_instructions(answer))  # a stub compiles to "return None"
    plain = {"RESUME", "NOP", "CACHE", "COPY_FREE_VARS", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}
    return any(s.opname not in plain or (s.opname.endswith("_CONST") and s.argval is not None) for s in steps)


def check(name: str, reader: Any, solution: Any, test: Callable[[Any], Any]) -> Verdict:
    """Judge the reader's answer if there is one, else the solution.

    name: what the exercise asks. reader: the stub of the reader's cell, or what the reader made of it. solution: the
    folded answer. test: takes an answer; it fails by raising (assert) or by returning something false.
    Raises WrongAnswer with what the test said; TypeError if ``test`` cannot be called or there is no solution.
    """
    if not callable(test):
        raise TypeError(f"check({name!r}): test must be callable, not {type(test).__name__}")
    if not attempted(solution):
        raise TypeError(f"check({name!r}): there is no solution to fall back on")
    judged, answer = ("reader", reader) if attempted(reader) else ("solution", solution)
    whose = "your answer" if judged == "reader" else "the solution"
    try:
        outcome = test(answer)
        passed = outcome is None or bool(outcome)
    except Exception as error:
        raise WrongAnswer(f"{name}: {whose} fails: {type(error).__name__}: {error}") from error
    if not passed:
        raise WrongAnswer(f"{name}: {whose} does not pass the check.")
    return Verdict(name, judged)
