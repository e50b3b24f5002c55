"""Exercises with a check.

The reader's cell is a stub under its own name (its body is ``...``); the folded solution has another name; `check`
takes the reader's answer where there is one, else the solution:

>>> def answer_double(x):
...     ...
>>> def solution_double(x):
...     return 2 * x
>>> check("double a number", answer_double, solution_double, lambda double: double(3) == 6)
double a number: not attempted yet; the solution passes.

A check must be able to fail. With the environment variable SURVEYLIB_PROVE_CHECKS set, as in the tests of the chapters,
`check` also runs its test on an empty stub and on spoilt answers and raises UselessCheck if one passes.
"""

import dis
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class WrongAnswer(AssertionError):
    """The answer that was checked is wrong; the message says what was tried."""


class UselessCheck(AssertionError):
    """A check that passes on an empty stub or on a wrong answer."""


@dataclass(frozen=True)
class Verdict:
    """What `check` found: whose answer was judged, "reader", "solution" or (no solution in this edition) "nobody"."""

    name: str
    judged: str

    def __repr__(self) -> str:
        if self.judged == "reader":
            return f"{self.name}: your answer passes."
        if self.judged == "nobody":
            return f"{self.name}: not attempted yet."
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


def spoil(value: Any) -> Any:
    """A wrong version of an answer: numbers and tensors shifted and scaled, truth values turned, functions likewise."""
    if callable(value) and not inspect.isclass(value):
        @functools.wraps(value)
        def spoilt(*args: Any, **kwargs: Any) -> Any:
            return spoil(value(*args, **kwargs))

        return spoilt
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return value ^ True
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, Mapping):
        return {key: spoil(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(spoil, value)) if type(value) in (list, tuple) else [spoil(v) for v in value]
    if isinstance(value, (int, float, complex)) or hasattr(value, "dtype"):
        return value * 2 + 1
    return object()


def _passes(test: Callable[[Any], Any], answer: Any) -> bool:
    outcome = test(answer)
    return outcome is None or bool(outcome)


def prove(name: str, solution: Any, test: Callable[[Any], Any], wrong: Sequence[Any] = ()) -> None:
    """Run the test on an empty stub, on a spoilt solution and on ``wrong``. Raises UselessCheck if one passes, or if
    there is no solution."""
    if not attempted(solution):
        raise UselessCheck(f"{name}: there is no solution")
    stub = (lambda *args, **kwargs: None) if callable(solution) else None
    for what, answer in (("an empty stub", stub), ("a spoilt solution", spoil(solution)),
                         *((f"the wrong answer {n}", w) for n, w in enumerate(wrong))):
        try:
            passed = _passes(test, answer)
        except Exception:
            continue
        if passed:
            raise UselessCheck(f"{name}: the check passes on {what}; it cannot tell a wrong answer")


def check(name: str, reader: Any, solution: Any, test: Callable[[Any], Any], wrong: Sequence[Any] = ()) -> Verdict:
    """Judge the reader's answer if there is one, else the solution, else nothing.

    name: what the exercise asks. reader: the stub of the reader's cell, or what the reader made of it. solution: the
    folded answer; ``...`` in an edition without solutions. test: takes an answer; it fails by raising (assert) or by
    returning something false. wrong: answers with typical mistakes; the project's tests see the check refuse them.
    Raises WrongAnswer with what the test said; TypeError if ``test`` cannot be called or the solution is a stub.
    """
    if not callable(test):
        raise TypeError(f"check({name!r}): test must be callable, not {type(test).__name__}")
    if os.environ.get("SURVEYLIB_PROVE_CHECKS"):
        prove(name, solution, test, wrong)
    if solution is Ellipsis and not attempted(reader):
        return Verdict(name, "nobody")
    if solution is not Ellipsis and not attempted(solution):
        raise TypeError(f"check({name!r}): the solution is a stub; `...` itself stands for one that is left out")
    judged, answer = ("reader", reader) if attempted(reader) else ("solution", solution)
    whose = "your answer" if judged == "reader" else "the solution"
    try:
        passed = _passes(test, answer)
    except Exception as error:
        raise WrongAnswer(f"{name}: {whose} fails: {type(error).__name__}: {error}") from error
    if not passed:
        raise WrongAnswer(f"{name}: {whose} does not pass the check.")
    return Verdict(name, judged)
