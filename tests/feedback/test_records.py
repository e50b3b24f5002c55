"""Records: what is refused, and that files give back exactly what was written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from surveylib.feedback import json_lines
from surveylib.feedback.records import (
    KINDS,
    Record,
    RecordError,
    append_record,
    decode_picture,
    encode_picture,
    read_records,
    validate,
    write_records,
)

RNG = np.random.default_rng(0)
PICTURES = [encode_picture(RNG.random((3, 9, 7))) for _ in range(4)]
HEATMAP = RNG.random((5, 6))


def one_of_each() -> list[Record]:
    a, b, c, d = PICTURES
    return [
        Record(
            "pair", "a red square", (a, b), record_id="p1", prompt_id="7", annotator="kim", source="test",
            models=("m0", "m1"), weight=1 / 3, time=1e9 / 7, extra={"ä": [1, None, {"b": 2.5}]}, preference=0.1,
        ),
        Record("ranking", "a \"quoted\"\nprompt", (a, b, c, d), ranks=(2, 1, 1, 3)),
        Record("rating", "", (a,), rating=3.3, low=1, high=10),
        Record("ratings", "two words", (b,), ratings={"z": 0.25, "a": 1 / 3}),
        Record(
            "rich", "no green dog", (c,), ratings={"overall": 0.5}, rating=0.25, misaligned=(False, True, True),
            heatmaps={"artifact": HEATMAP, "misalignment": np.zeros((2, 3))},
        ),
        Record("binary", "日本", (d,), liked=False),
    ]  # fmt: skip


@pytest.fixture(params=[".jsonl", ".parquet"])
def suffix(request):
    return request.param


@pytest.mark.truth
def test_round_trip_is_exact_for_every_kind(tmp_path, suffix):
    records = one_of_each()
    assert [r.kind for r in records] == list(KINDS)
    path = tmp_path / f"records{suffix}"
    assert write_records(iter(records), path) == len(records)
    read = read_records(path)
    assert read == records and not read.skipped
    assert [os.path.basename(f) for f in os.listdir(tmp_path)] == [path.name]  # nothing left beside it
    rich = read[4]
    for name, heatmap in records[4].heatmaps.items():
        assert rich.heatmaps[name].dtype == np.float32 and np.array_equal(rich.heatmaps[name], heatmap)
    assert list(read[3].ratings) == ["z", "a"]  # the order too


def test_more_records_than_one_batch(tmp_path, suffix):
    records = [Record("binary", f"p{i}", (PICTURES[i % 4],), liked=i % 3 == 0) for i in range(150)]
    write_records(records, tmp_path / f"r{suffix}")
    assert read_records(tmp_path / f"r{suffix}") == records


def test_pictures_as_files_and_embedded(tmp_path, suffix):
    record = one_of_each()[0]
    path = tmp_path / f"set{suffix}"
    write_records([record], path, pictures="files")
    (read,) = read_records(path)
    assert all(isinstance(i, str) for i in read.images)
    assert torch.equal(decode_picture(read.images[1]), decode_picture(record.images[1]))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in (path.name, "set_pictures"):
        os.rename(tmp_path / name, moved / name)
    (again,) = read_records(moved / path.name)  # paths are relative to the file
    write_records([again], tmp_path / f"alone{suffix}", pictures="embedded")
    assert read_records(tmp_path / f"alone{suffix}")[0].images == record.images
    web = Record("binary", "x", ("https://example.org/a.png",), liked=True)
    write_records([web], path)
    assert read_records(path)[0].images == web.images


def test_a_failed_write_keeps_the_old_file(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    write_records(one_of_each()[:1], path)

    def broken():
        yield one_of_each()[1]
        raise KeyError("stop")

    with pytest.raises(KeyError):
        write_records(broken(), path)
    assert read_records(path) == one_of_each()[:1] and len(os.listdir(tmp_path)) == 1


PAIR = {"kind": "pair", "prompt": "a b", "images": PICTURES[:2], "preference": 1.0}
ONE = {"prompt": "a b", "images": PICTURES[:1]}
TWO = {"kind": "ranking", "prompt": "", "images": PICTURES[:2]}
BAD = [
    (PAIR | {"kind": "triple"}, "unknown kind", "pair, ranking"),
    (PAIR | {"images": [PICTURES[0]] * 2}, "self-comparison", "twice"),
    (PAIR | {"images": ["a.png", "a.png"]}, "self-comparison", "a.png"),
    (PAIR | {"images": PICTURES[:3]}, "wrong number of pictures", "3 pictures"),
    (PAIR | {"images": [PICTURES[0], b""]}, "missing picture", r"images\[1\]"),
    (PAIR | {"images": [PICTURES[0], None]}, "missing picture", "None"),
    (PAIR | {"images": [PICTURES[0], b"GIF89a"]}, "corrupt picture", "PNG, JPEG or WebP"),
    (PAIR | {"preference": 1.5}, "label outside its range", r"1.5; allowed: a number in \[0, 1\]"),
    (PAIR | {"preference": float("nan")}, "label outside its range", "nan"),
    (PAIR | {"preference": "1"}, "wrong type", "'1'"),
    (PAIR | {"preference": None}, "missing label", "preference"),
    (PAIR | {"liked": True}, "label of another kind", "liked"),
    (PAIR | {"weight": -1}, "weight outside its range", "-1"),
    (PAIR | {"weight": float("inf")}, "weight outside its range", "inf"),
    (PAIR | {"models": ("one",)}, "wrong number of models", "none or 2"),
    (PAIR | {"extra": {"x": object()}}, "extra is not JSON", "JSON"),
    (PAIR | {"prompt": None}, "wrong type", "prompt"),
    (PAIR | {"time": float("nan")}, "time is not a number", "nan"),
    (TWO | {"ranks": (0, 1)}, "label outside its range", "1 is best"),
    (TWO | {"ranks": (1, 2, 3)}, "wrong number of ranks", "2 numbers"),
    (TWO | {"ranks": (1, 1.5)}, "wrong type", "whole"),
    (TWO | {"ranks": 1}, "wrong type", "tuple or list"),
    (ONE | {"kind": "rating", "rating": 11, "low": 1, "high": 10}, "label outside its range", r"\[1, 10\]"),
    (ONE | {"kind": "rating", "rating": 1, "low": 5, "high": 5}, "wrong scale", "low < high"),
    (ONE | {"kind": "ratings", "ratings": {}}, "wrong type", "at least one"),
    (ONE | {"kind": "ratings", "ratings": {"x": 2}}, "label outside its range", "ratings"),
    (ONE | {"kind": "rich", "heatmaps": {"artifact": np.ones((2, 2)) * 255}}, "label outside its range", "255"),
    (ONE | {"kind": "rich", "heatmaps": {"artifact": np.ones(4)}}, "wrong heatmap", "H, W"),
    (ONE | {"kind": "rich", "misaligned": (True,)}, "wrong number of words", "2 flags"),
    (ONE | {"kind": "rich", "misaligned": (1, 0)}, "wrong type", "True or False"),
    (ONE | {"kind": "rich"}, "missing label", "heatmaps"),
    (ONE | {"kind": "binary", "liked": 1}, "wrong type", "True or False"),
]


@pytest.mark.parametrize("values, reason, says", BAD, ids=[f"{r}-{i}" for i, (_, r, _) in enumerate(BAD)])
def test_bad_records_are_refused(values, reason, says):
    with pytest.raises(RecordError, match=says) as caught:
        Record(record_id="r9", **values)
    assert caught.value.reason == reason
    assert "r9" in str(caught.value)


def test_pictures_encode_and_decode():
    picture = torch.rand(3, 5, 8)
    assert (decode_picture(encode_picture(picture)) - picture).abs().max() <= 0.5 / 255 + 1e-6
    nan = torch.full((3, 2, 2), float("nan"))
    for bad in (torch.rand(5, 8, 3), torch.rand(3, 4, 4) + 0.5, nan, np.ones((3, 2, 2), int)):
        with pytest.raises(ValueError):
            encode_picture(bad)


@pytest.mark.parametrize("make", [
    lambda data, folder: data[: len(data) // 2],
    lambda data, folder: data[:8] + b"\x00" * 40,
    lambda data, folder: str(folder / "nowhere.png"),
])  # fmt: skip
def test_bad_pictures_are_found_when_a_file_is_read(tmp_path, suffix, make):
    good = one_of_each()[0]
    large = encode_picture(RNG.random((3, 40, 40)))
    bad = Record("binary", "x", (make(large, tmp_path),), record_id="bad", liked=True)
    with pytest.raises(RecordError) as caught:
        decode_picture(bad.images[0])
    write_records([good, bad, good], tmp_path / f"r{suffix}")
    with pytest.raises(RecordError, match=r"(row 1|line 3)"):
        read_records(tmp_path / f"r{suffix}")
    read = read_records(tmp_path / f"r{suffix}", on_error="skip")
    assert read == [good, good] and read.skipped == {caught.value.reason: 1} and len(read.problems) == 1


def test_bad_rows_are_counted_by_reason(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(one_of_each(), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    pair, binary = json.loads(lines[1]), json.loads(lines[6])
    lines += [
        json.dumps(pair | {"preference": 7}), json.dumps(pair | {"kind": "poll"}), "{not json", "[1]",
        json.dumps(binary | {"colour": "red"}), json.dumps({"kind": "binary"}),
        json.dumps(pair | {"images": [pair["images"][0]] * 2}), json.dumps(binary | {"images": [{"base64": "%%"}]}),
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = read_records(path, on_error="skip")
    assert read == one_of_each()
    assert read.skipped == {
        "label outside its range": 1, "unknown kind": 1, "malformed line": 2, "malformed record": 2,
        "self-comparison": 1, "corrupt picture": 1,
    }  # fmt: skip
    report = validate(path)
    assert report.records == 6 and not report.ok and report.skipped == read.skipped and "line 10" in str(report)
    assert "argument 'colour'. Its fields are kind, prompt, images, and where they apply record_id" in str(report)


def test_validate_names_double_ids_and_counts(tmp_path, suffix):
    write_records([*one_of_each(), one_of_each()[0]], tmp_path / f"r{suffix}")
    report = validate(tmp_path / f"r{suffix}")
    assert (report.records, report.prompts, report.annotators) == (7, 6, 1)
    assert report.kinds["pair"] == 2 and report.problems == ["record_id 'p1' stands 2 times"]


def test_files_of_another_schema_or_version_are_refused(tmp_path):
    jsonl, parquet = tmp_path / "r.jsonl", tmp_path / "r.parquet"
    jsonl.write_text('{"kind": "pair"}\n')
    pq.write_table(pa.table({"kind": ["pair"]}), parquet)
    for path in (jsonl, parquet):
        with pytest.raises(ValueError, match="not a file of feedback records"):
            read_records(path, on_error="skip")
    with pytest.raises(ValueError, match="not a file of feedback records"):
        append_record(jsonl, one_of_each()[0])
    assert jsonl.read_text() == '{"kind": "pair"}\n'
    header = json.dumps({"schema": json_lines.SCHEMA, "version": 99})
    jsonl.write_text(header + "\n")
    pq.write_table(pa.table({"kind": ["pair"]}).replace_schema_metadata({"surveylib": header}), parquet)
    for path in (jsonl, parquet):
        with pytest.raises(ValueError, match="version 99"):
            read_records(path)
    pq.write_table(
        pa.table({"kind": ["pair"]}).replace_schema_metadata({"surveylib": json_lines.header_line().decode()}), parquet
    )
    with pytest.raises(ValueError, match="lacks the columns prompt"):
        read_records(parquet)
    write_records(one_of_each(), parquet)
    parquet.write_bytes(parquet.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a readable parquet file"):
        read_records(parquet)
    with pytest.raises(ValueError, match=r"\.csv"):
        write_records([], tmp_path / "r.csv")
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "none.jsonl")


def test_appending_gives_the_same_file_as_writing(tmp_path):
    for record in one_of_each():
        assert append_record(tmp_path / "a" / "r.jsonl", record) == 0
    write_records(one_of_each(), tmp_path / "b.jsonl")
    assert (tmp_path / "a" / "r.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    with pytest.raises(ValueError, match="jsonl"):
        append_record(tmp_path / "r.parquet", one_of_each()[0])


@pytest.mark.truth
def test_a_file_cut_at_any_byte_loses_at_most_its_last_record(tmp_path):
    path, records = tmp_path / "r.jsonl", [Record("binary", f"p{i}", (f"/x/{i}.png",), liked=True) for i in range(3)]
    for record in records:
        append_record(path, record)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(cut >= end - 1 for end in ends[1:])  # only the newline may be missing
        read = read_records(path, check_pictures=False)
        assert list(read) == records[:complete]
        torn = cut < ends[0] - 1 or cut not in (*ends, *(e - 1 for e in ends))
        assert read.skipped == ({"torn last line": 1} if torn else {})
        removed = append_record(path, records[2])
        assert (removed > 0) == (torn and cut > 0)
        assert list(read_records(path, check_pictures=False)) == [*records[:complete], records[2]]
        assert not read_records(path, check_pictures=False).skipped


def test_a_killed_writer_leaves_a_readable_file(tmp_path):
    path = tmp_path / "r.jsonl"
    code = (
        "import sys\nfrom surveylib.feedback.records import Record, append_record\n"
        "for i in range(10**6):\n    append_record(sys.argv[1], Record('binary', f'p{i}', ('/x.png',), liked=True))\n"
        "    print(i, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    confirmed = -1
    while confirmed < 25:
        confirmed = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0].split()
    confirmed = int(rest[-1]) if rest else confirmed
    read = read_records(path, check_pictures=False)
    assert len(read) >= confirmed + 1 and [r.prompt for r in read] == [f"p{i}" for i in range(len(read))]
