"""Sessions of annotation: what is asked, what is saved, undone, resumed, locked and exported."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from surveylib.feedback.annotate import AnnotationSession, LockedError, Task
from surveylib.feedback.annotate.answers import fields_of
from surveylib.feedback.annotate.session import shown_order
from surveylib.feedback.records import encode_picture, read_records


def picture(value: float) -> bytes:
    """A flat 8 x 8 picture of one grey."""
    return encode_picture(torch.full((3, 8, 8), value))


def pairs(count: int) -> list[Task]:
    """Pairs in which the task's second picture is the brighter one."""
    return [Task.pair(f"prompt {n}", picture(n / 100), picture(0.5 + n / 100)) for n in range(count)]


def brighter(shown) -> str:
    """Prefers the brighter picture, wherever it is shown."""
    from surveylib.feedback.records import decode_picture
    values = [float(decode_picture(image).mean()) for image in shown.images]
    return "first" if values[0] > values[1] else "second"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


@pytest.mark.truth
def test_the_drawn_order_is_undone_in_the_saved_preference(path):
    with AnnotationSession(pairs(40), path, seed=3) as session:
        session.run(brighter)
    records = read_records(path)
    assert [record.preference for record in records] == [0.0] * 40  # the second is brighter in every task
    sides = [record.extra["order"][0] for record in records]
    assert 10 < sum(sides) < 30  # both sides were shown
    assert {record.extra["answer"] for record in records} == {"first", "second"}


@pytest.mark.truth
def test_the_drawn_order_is_undone_in_ranks(path):
    task = Task.ranking("four greys", [picture(v) for v in (0.4, 0.1, 0.9, 0.6)])
    with AnnotationSession([task], path, seed=5) as session:
        def rank(shown):
            values = [np.frombuffer(i, dtype=np.uint8).size and i for i in shown.images]
            worth = [{picture(0.9): 1, picture(0.6): 2, picture(0.4): 3, picture(0.1): 4}[v] for v in values]
            return tuple(worth)
        assert shown_order(task, 5) != (0, 1, 2, 3)
        (record,) = session.run(rank)
    assert record.ranks == (3, 4, 1, 2)


def test_orders_are_uniform_and_a_function_of_seed_and_task():
    tasks = [Task.pair(f"p{n}", picture(0.1), picture(0.2)) for n in range(400)]
    first = [shown_order(task, 0)[0] for task in tasks]
    assert first == [shown_order(task, 0)[0] for task in reversed(tasks)][::-1]
    assert abs(sum(first) - 200) < 4 * 10  # four standard deviations of a fair coin
    assert first != [shown_order(task, 1)[0] for task in tasks]


def test_each_kind_is_saved_as_its_record(path):
    marks = np.zeros((4, 4), dtype=bool)
    marks[1, 2] = True
    one = picture(0.3)
    tasks = [Task.pair("a", one, picture(0.4)), Task.ranking("b", [one, picture(0.4), picture(0.5)]),
             Task.rating("c", one, low=1, high=5), Task.binary("d", one), Task.rich("two red circles", one, cells=4)]
    with AnnotationSession(tasks, path, annotator="ada") as session:
        for answer in ("tie", (2, 1, 2), 4, False, {"artifact": marks, "misaligned": [True, False, False]}):
            session.answer(answer, seconds=1.5)
        assert session.current is None and session.progress.left == 0
    pair, ranking, rating, binary, rich = read_records(path)
    assert pair.preference == 0.5 and sorted(ranking.ranks) == [1, 2, 2]
    assert (rating.rating, rating.low, rating.high, binary.liked) == (4.0, 1.0, 5.0, False)
    assert rich.misaligned == (True, False, False)
    np.testing.assert_array_equal(rich.heatmaps["artifact"], marks)
    assert rich.heatmaps["misalignment"].sum() == 0
    assert all(r.annotator == "ada" and r.extra["seconds"] == 1.5 for r in (pair, ranking, rating, binary, rich))


@pytest.mark.parametrize("kind, answer", [
    ("pair", "left"), ("pair", True), ("pair", None), ("pair", 1), ("ranking", (1, 2)), ("ranking", (2, 3, 2)),
    ("ranking", (1, 2, 4)), ("ranking", (1, 1.5, 2)), ("ranking", 3), ("rating", 6), ("rating", float("nan")),
    ("rating", True), ("rating", "3"), ("binary", 1), ("binary", "yes"), ("rich", {"misaligned": [True]}),
    ("rich", {"artifact": np.ones((3, 3))}), ("rich", {"artifact": np.full((16, 16), 2.0)}), ("rich", {"x": 1}),
    ("rich", "first"),
])
def test_an_answer_that_does_not_fit_is_refused_and_nothing_is_saved(path, kind, answer):
    greys = [picture(v) for v in (0.1, 0.2, 0.3)]
    task = {"pair": lambda: Task.pair("p q", *greys[:2]), "ranking": lambda: Task.ranking("p q", greys),
            "rating": lambda: Task.rating("p q", greys[0]), "binary": lambda: Task.binary("p q", greys[0]),
            "rich": lambda: Task.rich("p q", greys[0])}[kind]()
    with AnnotationSession([task], path) as session:
        with pytest.raises(ValueError, match=task.task_id):
            session.answer(answer)
        assert session.progress.answered == 0 and session.current.task.task_id == task.task_id
    assert not path.exists()


def test_a_wrong_order_is_refused():
    with pytest.raises(ValueError, match="no order"):
        fields_of(Task.pair("p", picture(0.1), picture(0.2)), "first", (0, 0))


@pytest.mark.parametrize("make, message", [
    (lambda: Task.pair("p", picture(0.1), picture(0.1)), "same picture twice"),
    (lambda: Task("pair", "p", (picture(0.1),)), "shows 2 pictures, not 1"),
    (lambda: Task("vote", "p", (picture(0.1),)), "pair, ranking, rating, binary, rich"),
    (lambda: Task.pair("p", picture(0.1), picture(0.2)[:40]), "picture"),
    (lambda: Task.pair("p", picture(0.1), "nowhere.png"), "nowhere.png"),
    (lambda: Task.rating("p", picture(0.1), low=5, high=1), "scale"),
    (lambda: Task.rich("p", picture(0.1), cells=1), "cells"),
    (lambda: Task.pair("p", picture(0.1), picture(0.2), models=("one",)), "1 models for 2"),
])
def test_a_task_that_cannot_be_asked_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_same_question_again_counts_as_another_task(path):
    with AnnotationSession(pairs(1) * 3, path) as session:
        assert len(session.run(brighter)) == 3
    assert len({record.record_id for record in read_records(path)}) == 3
    twice = [Task.pair("p", picture(0.1), picture(0.2), task_id=name) for name in ("a", "a", "a-2")]
    with pytest.raises(ValueError, match="a-2"):
        AnnotationSession(twice, path)


def test_undo_takes_any_number_back_on_the_disk_too(path):
    with AnnotationSession(pairs(5), path) as session:
        assert session.undo() is None
        session.answer("first")
        before = path.read_bytes()
        for answer in ("skip", "tie", "skip"):
            session.answer(answer)
        assert session.progress.skipped == 2
        asked = [session.undo().prompt for _ in range(3)]
        assert asked == ["prompt 3", "prompt 2", "prompt 1"] and path.read_bytes() == before
        assert session.current.prompt == "prompt 1" and session.progress.skipped == 0
        assert session.undo().prompt == "prompt 0" and len(read_records(path)) == 0 and session.undo() is None
        session.run(brighter)
    assert [record.preference for record in read_records(path)] == [0.0] * 5


def test_undo_reaches_back_into_an_earlier_session(path):
    with AnnotationSession(pairs(4), path) as session:
        for answer in ("first", "skip", "second"):
            session.answer(answer)
    with AnnotationSession(pairs(4), path) as session:
        assert session.progress.left == 1 and session.current.prompt == "prompt 3"
        assert [session.undo().prompt for _ in range(3)] == ["prompt 2", "prompt 1", "prompt 0"]
        assert session.progress.left == 4


def test_a_longer_list_keeps_earlier_answers_and_other_tasks_are_counted(path):
    with AnnotationSession(pairs(2), path) as session:
        session.run(brighter)
    with AnnotationSession(pairs(4)[1:], path) as session:
        progress = session.progress
        assert (progress.answered, progress.left, progress.other) == (1, 2, 1)
        assert session.undo().prompt == "prompt 1"
        assert session.undo() is None  # the answer before belongs to no task of this list
        assert len(session.records) == 1


def test_saved_at_once_and_readable_while_the_session_runs(path):
    with AnnotationSession(pairs(3), path) as session:
        for count in range(1, 4):
            session.answer("first")
            assert len(read_records(path)) == count


def test_time_starts_when_the_task_is_first_read(path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("surveylib.feedback.annotate.session.time.monotonic", lambda: now[0])
    with AnnotationSession(pairs(2), path) as session:
        assert session.current is not None
        now[0] += 7.25
        assert session.current is not None
        assert session.answer("first").extra["seconds"] == 7.25
        now[0] += 60
        assert session.answer("first").extra["seconds"] == 0.0  # not read before
        with pytest.raises(RuntimeError, match="all 2 tasks are done"):
            session.answer("first")
        session.undo()
        with pytest.raises(ValueError, match="seconds"):
            session.answer("first", seconds=-1)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_export_writes_what_stands(path, tmp_path, suffix):
    with AnnotationSession(pairs(4), path) as session:
        session.run(brighter)
        session.undo()
        session.answer("skip")
        target = tmp_path / f"export{suffix}"
        assert session.export(target) == 3
        assert list(read_records(target)) == session.records
        with pytest.raises(ValueError, match="own file"):
            session.export(path)


def test_an_answer_cut_short_is_dropped_counted_and_asked_again(path):
    with AnnotationSession(pairs(3), path) as session:
        session.run(brighter, limit=2)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, last + 200, len(whole) - 2):
        path.write_bytes(whole[:cut])
        with AnnotationSession(pairs(3), path) as session:
            assert session.torn == cut - last and session.current.prompt == "prompt 1"
            session.run(brighter)
            assert path.read_bytes()[:last] == whole[:last] and len(read_records(path)) == 3
            session.undo()
    path.write_bytes(whole[:-1])  # only the line's end is missing: the answer is whole
    with AnnotationSession(pairs(3), path) as session:
        assert session.torn == 0 and session.progress.answered == 2
        session.undo()
        assert len(read_records(path)) == 1


def test_a_file_cut_in_its_header_or_its_skips_is_mended(path):
    with AnnotationSession(pairs(3), path) as session:
        session.answer("first")
        session.answer("skip")
        session.answer("skip")
    skips = path.with_suffix(".skipped.jsonl")
    skips.write_bytes(skips.read_bytes()[:-5])
    path.write_bytes(path.read_bytes()[:20])
    with AnnotationSession(pairs(3), path) as session:
        assert session.torn > 20 and (session.progress.answered, session.progress.skipped) == (0, 1)
        session.run(brighter)
    assert len(read_records(path)) == 2


@pytest.mark.parametrize("content", [b"my notes, not answers", b'{"a": 1}\n{"b": 2}', b"\x00\x01\n\x02", b'{"a": 1}'])
def test_a_file_of_something_else_is_refused_and_left_as_it_was(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"answers\.jsonl"):
        AnnotationSession(pairs(1), path)
    assert path.read_bytes() == content and not path.with_name("answers.jsonl.lock").exists()


def test_broken_skips_and_wrong_suffixes_are_named(path, tmp_path):
    path.with_suffix(".skipped.jsonl").write_text('{"task": "x"}\n')
    with pytest.raises(ValueError, match=r"skipped\.jsonl, line 1"):
        AnnotationSession(pairs(1), path)
    with pytest.raises(ValueError, match="parquet"):
        AnnotationSession(pairs(1), tmp_path / "answers.parquet")
    with pytest.raises(ValueError, match="at least one task"):
        AnnotationSession([], path)


def test_a_file_belongs_to_one_annotator_and_its_tasks(path):
    task = Task.pair("p", picture(0.1), picture(0.2), task_id="t")
    with AnnotationSession([task], path, annotator="ada") as session:
        session.answer("first")
    with pytest.raises(ValueError, match="'ada'; 'bob'"):
        AnnotationSession([task], path, annotator="bob")
    with pytest.raises(ValueError, match="another task with the id t"):
        AnnotationSession([Task.pair("p", picture(0.1), picture(0.3), task_id="t")], path, annotator="ada")
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(ValueError, match="twice"):
        AnnotationSession([task], path, annotator="ada")


def test_two_sessions_of_one_process(path):
    first = AnnotationSession(pairs(2), path)
    with pytest.raises(LockedError, match="take_over"):
        AnnotationSession(pairs(2), path)
    first.answer("first")  # still the owner
    second = AnnotationSession(pairs(2), path, take_over=True)
    assert first.closed and second.progress.answered == 1
    with pytest.raises(RuntimeError, match="closed"):
        first.answer("first")
    with pytest.raises(RuntimeError, match="closed"):
        first.undo()
    second.close()
    second.close()
    AnnotationSession(pairs(2), path).close()


OTHER = """
import sys, torch
from surveylib.feedback.annotate.session import AnnotationSession
from surveylib.feedback.annotate.tasks import Task
from surveylib.feedback.records import encode_picture
grey = lambda v: encode_picture(torch.full((3, 8, 8), v))
tasks = [Task.pair(f"prompt {n}", grey(n / 100), grey(0.5 + n / 100)) for n in range(50)]
session = AnnotationSession(tasks, sys.argv[1])
while True:  # until it is killed
    for n in range(45):
        session.answer("first")
        print("one more", flush=True)
    for n in range(40):
        session.undo()
        print("one less", flush=True)
"""


@pytest.fixture
def other(path):
    """A process that answers and takes back without end, killed at the latest with the test."""
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(path)], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_process_is_named_and_nothing_confirmed_is_lost_when_it_is_killed(path, other):
    lines = [other.stdout.readline() for _ in range(12)]
    assert lines == ["one more\n"] * 12
    with pytest.raises(LockedError, match=f"process {other.pid}"):
        AnnotationSession(pairs(50), path, take_over=True)
    other.send_signal(signal.SIGKILL)
    lines += other.stdout.readlines()
    other.wait()
    assert path.with_name("answers.jsonl.lock").exists()
    standing = lines.count("one more\n") - lines.count("one less\n")
    with AnnotationSession(pairs(50), path) as session:
        assert abs(session.progress.answered - standing) <= 1  # the last act may be done and not yet said
        session.run(brighter)
    assert [record.prompt for record in read_records(path)] == [f"prompt {n}" for n in range(50)]
    assert not path.with_name("answers.jsonl.lock").exists()


def test_a_failed_write_leaves_the_file_as_it_was(path, monkeypatch):
    with AnnotationSession(pairs(2), path) as session:
        session.answer("first")
        before = path.read_bytes()

        def full(target, record):
            with open(target, "ab") as file:
                file.write(b'{"kind": "pa')
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("surveylib.feedback.annotate.answer_file.append_record", full)
            with pytest.raises(OSError, match="No space"):
                session.answer("second")
        assert path.read_bytes() == before and session.current.prompt == "prompt 1"
        session.answer("second")
    assert len(read_records(path)) == 2


def test_a_file_changed_by_something_else_is_not_written_to(path):
    with AnnotationSession(pairs(3), path) as session:
        session.answer("first")
        changed = path.read_bytes() + b"\n"
        path.write_bytes(changed)
        for act in (lambda: session.answer("first"), session.undo):
            with pytest.raises(RuntimeError, match="changed by something else"):
                act()
        assert path.read_bytes() == changed


def test_expectation_says_the_callers_numbers(path):
    with AnnotationSession(pairs(12), path, expect={10: 0.625, 2: 0.55}, expect_note="simulated annotators") as session:
        assert session.expectation() == ("What to expect: a reward trained on your answers predicts new choices "
                                         "right, 55% after 2 answers (simulated annotators).")
        session.run(brighter, limit=2)
        assert "55% after 2 answers, 62% after 10 answers (" in session.expectation()
        session.run(brighter)
        assert "62% after 10 answers (" in session.expectation() and "55%" not in session.expectation()
    with AnnotationSession(pairs(1), path.with_name("b.jsonl")) as session:
        assert session.expectation() == ""
    for expect in ({0: 0.5}, {10: 1.5}):
        with pytest.raises(ValueError, match="expect"):
            AnnotationSession(pairs(1), path.with_name("c.jsonl"), expect=expect)


def test_skipped_tasks_are_noted_beside_the_answers(path):
    with AnnotationSession(pairs(2), path) as session:
        assert session.run(lambda shown: "skip") == []
    (row, _) = map(json.loads, path.with_suffix(".skipped.jsonl").read_text().splitlines())
    assert row["task"] == pairs(1)[0].task_id and not path.exists()
