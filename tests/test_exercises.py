"""Checks take the reader's answer where there is one, and can fail."""

import numpy as np
import pytest

from surveylib.exercises import UselessCheck, WrongAnswer, attempted, check, spoil


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("SURVEYLIB_PROVE_CHECKS", raising=False)


def stub(x):
    ...


def documented_stub(x):
    """Return twice x."""
    ...


def passing_stub(x):
    pass


def right(x):
    return 2 * x


def wrong(x):
    return 3 * x


def doubles(answer):
    assert answer(3) == 6, f"double(3) gave {answer(3)}, not 6"


@pytest.mark.parametrize("answer", [None, ..., stub, documented_stub, passing_stub])
def test_stubs_are_not_answers(answer):
    assert not attempted(answer)


@pytest.mark.parametrize("answer", [0, False, "", right, wrong, lambda x: 0, lambda x: x, np.zeros(2), sum])
def test_answers_are_answers(answer):
    assert attempted(answer)


def test_solution_is_checked_when_nothing_was_tried():
    verdict = check("double", stub, right, doubles)
    assert verdict.judged == "solution" and "not attempted" in repr(verdict)


def test_readers_answer_wins():
    assert check("double", right, wrong, doubles).judged == "reader"


def test_wrong_answer_is_refused_with_what_was_tried():
    with pytest.raises(WrongAnswer, match=r"your answer fails.*gave 9, not 6"):
        check("double", wrong, right, doubles)


def test_wrong_solution_is_refused_too():
    with pytest.raises(WrongAnswer, match="the solution fails"):
        check("double", stub, wrong, doubles)


@pytest.mark.parametrize("no", [False, np.bool_(False), np.array(0.0)])
def test_a_test_may_return_false(no):
    with pytest.raises(WrongAnswer, match="does not pass"):
        check("x", 1, 2, lambda answer: no)


@pytest.mark.parametrize("yes", [True, None, np.bool_(True)])
def test_a_test_may_return_true_or_nothing(yes):
    assert check("x", 1, 2, lambda answer: yes).judged == "reader"


def test_errors_in_the_answer_are_named():
    with pytest.raises(WrongAnswer, match="ZeroDivisionError"):
        check("x", lambda: 1 / 0, 2, lambda answer: answer())


def test_bad_input():
    with pytest.raises(TypeError, match="callable"):
        check("x", 1, 2, "not a test")
    with pytest.raises(TypeError, match="the solution is a stub"):
        check("x", 1, stub, doubles)


def test_an_edition_without_solutions_judges_the_reader_alone(monkeypatch):
    monkeypatch.delenv("SURVEYLIB_PROVE_CHECKS", raising=False)
    assert repr(check("double", stub, ..., doubles)) == "double: not attempted yet."
    assert check("double", right, ..., doubles).judged == "reader"
    with pytest.raises(WrongAnswer):
        check("double", lambda x: x, ..., doubles)
    monkeypatch.setenv("SURVEYLIB_PROVE_CHECKS", "1")  # the book's own chapters have solutions
    with pytest.raises(UselessCheck, match="no solution"):
        check("double", stub, ..., doubles)


@pytest.mark.parametrize("value", [1, 2.5, True, "a", [1, 2], (1.0, "b"), {"a": 1}, np.ones(3), np.array([True]), None])
def test_spoilt_answers_differ(value):
    assert not np.array_equal(np.asarray(spoil(value), dtype=object), np.asarray(value, dtype=object))


def test_spoilt_function_answers_wrongly():
    assert spoil(right)(3) != right(3)


def test_proof_accepts_a_check_that_can_fail(monkeypatch):
    monkeypatch.setenv("SURVEYLIB_PROVE_CHECKS", "1")
    assert check("double", stub, right, doubles, wrong=[wrong]).judged == "solution"


@pytest.mark.parametrize("useless, wrong_answers, what", [
    (lambda answer: True, [], "empty stub"),
    (lambda answer: answer(1) is not None, [], "spoilt solution"),
    (lambda answer: answer(0) == 0, [wrong], "wrong answer 0"),
])
def test_proof_finds_a_check_that_cannot_fail(monkeypatch, useless, wrong_answers, what):
    monkeypatch.setenv("SURVEYLIB_PROVE_CHECKS", "1")
    with pytest.raises(UselessCheck, match=what):
        check("double", stub, right, useless, wrong=wrong_answers)
