"""Each loader on a small set in exactly the on-disk format: every value, every loss counted."""

from __future__ import annotations

import importlib
from pathlib import Path

import datasets as hf
import numpy as np
import pytest
from feedback import dataset_fixtures as make

from surveylib.feedback import datasets
from surveylib.feedback.datasets import (
    CARDS,
    cards,
    hpd,
    imagerewarddb,
    mhp,
    open_image_preferences,
    pickapic,
    richhf18k,
    simulacra,
    tfrecord,
    visionprefer,
)
from surveylib.feedback.pairs import to_pairs
from surveylib.feedback.records import KINDS, Record, RecordError, decode_picture, read_records, write_records

# The cards with a loader, and what writes their fixture.
FIXTURES = {
    "pickapic_v1": (make.write_pickapic, {"split": "validation_unique"}),
    "pickapic_v2": (make.write_pickapic, {"split": "validation_unique"}),
    "hpd_v1": (make.write_hpd_v1, {}),
    "hpd_v2": (make.write_hpd_v2, {"split": "test"}),
    "hpd_v3": (make.write_hpd_v3, {}),
    "imagerewarddb": (make.write_imagerewarddb, {"split": "validation"}),
    "richhf18k": (make.write_richhf, {"split": "dev"}),
    "simulacra": (make.write_simulacra, {}),
    "visionprefer": (make.write_visionprefer, {}),
    "open_image_preferences": (make.write_open_image_preferences, {}),
}


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))


def level(image) -> int:
    """The grey value of a one-colour picture."""
    return round(float(decode_picture(image)[0, 0, 0]) * 255)


@pytest.mark.truth
@pytest.mark.parametrize("streaming", [True, False])
def test_pickapic(tmp_path, streaming):
    make.write_pickapic(tmp_path)
    stream = pickapic.load(tmp_path, split="validation_unique", streaming=streaming)
    records = list(stream)
    assert [r.preference for r in records] == [1.0, 0.5, 0.0]
    assert stream.skipped == {"no label": 1, "self-comparison": 1, "label outside its range": 1}
    assert stream.rows == 6 and len(stream.problems) == 3
    first = records[0]
    assert (first.kind, first.prompt, first.annotator, first.source) == ("pair", "a cat", "5", "pickapic")
    assert first.models == ("model A", "model B") and first.record_id == "11:uid10:uid20"
    assert first.images == (make.picture(10, "JPEG"), make.picture(20, "JPEG"))
    assert first.time == 1672628645.0  # 2023-01-02T03:04:05Z
    assert first.extra == {
        "num_example_per_prompt": 2, "image_uids": ["uid10", "uid20"], "best_image_uid": "uid10", "are_different": True,
    }  # fmt: skip
    write_records(records, tmp_path / "r.parquet")
    assert read_records(tmp_path / "r.parquet") == records
    assert len(list(pickapic.load(tmp_path, split="validation_unique", limit=2))) == 2
    with pytest.raises(RecordError, match="validation_unique row 4"):
        list(pickapic.load(tmp_path, split="validation_unique", on_error="raise"))


def test_pickapic_without_pictures_or_network(tmp_path, monkeypatch):
    make.write_pickapic(tmp_path, drop=("jpg_0", "jpg_1"))
    with pytest.raises(ValueError, match="lacks the columns jpg_0, jpg_1"):
        pickapic.load(tmp_path, split="validation_unique")
    with pytest.raises(ValueError, match="validation_unique, test_unique"):
        pickapic.load(tmp_path, split="val")
    with pytest.raises(FileNotFoundError, match=r"hf download yuvalkirstain/pickapic_v1(.|\n)*193 GB(.|\n)*Looked for"):
        pickapic.load(tmp_path, split="test")

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(hf, "load_dataset", offline)
    for module in (pickapic, open_image_preferences):
        with pytest.raises(FileNotFoundError, match=r"hf download(.|\n)*no route"):
            module.load()


@pytest.mark.truth
def test_open_image_preferences(tmp_path):
    make.write_open_image_preferences(tmp_path)
    first, second = open_image_preferences.load(tmp_path)
    assert (first.prompt, first.preference) == ("prompt 1", 1.0)
    assert [level(i) for i in second.images] == [2, 102]


@pytest.mark.truth
def test_hpd_v1_compares_the_chosen_picture_only(tmp_path):
    make.write_hpd_v1(tmp_path)
    stream = hpd.load(tmp_path, version="v1")
    records = list(stream)
    assert [([level(i) for i in r.images], r.preference, r.weight) for r in records] == [
        ([1, 2], 0.0, 0.5), ([2, 3], 1.0, 0.5), ([4, 5], 1.0, 1.0),
    ]  # fmt: skip
    assert {r.prompt_id for r in records} == {"7", "8"} and records[0].annotator == "u1"
    assert records[0].extra == {"pictures_shown": 3, "contain_name": False}
    assert stream.skipped == {"label outside its range": 1}


@pytest.mark.truth
def test_hpd_v2(tmp_path):
    make.write_hpd_v2(tmp_path)
    stream = hpd.load(tmp_path, split="train")
    assert [(r.prompt, r.preference) for r in stream] == [("one", 0.0), ("two", 1.0)]
    assert stream.skipped == {
        "label outside its range": 1, "missing picture": 1, "corrupt picture": 1, "missing field": 1,
    }  # fmt: skip
    (averaged,) = hpd.load(tmp_path, split="test")
    assert averaged.ranks == (3, 1, 2, 3) and averaged.extra == {"rank": [2, 0, 1, 2], "annotators": 2}
    assert [level(i) for i in averaged.images] == [100, 120, 140, 160]
    raw = list(hpd.load(tmp_path, split="test", annotations="raw"))
    assert [(r.annotator, r.ranks) for r in raw] == [("u", (4, 1, 2, 3)), ("v", (1, 1, 3, 4))]


@pytest.mark.truth
def test_hpd_v3(tmp_path):
    make.write_hpd_v3(tmp_path)
    first, second = hpd.load(tmp_path, version="v3")
    assert [level(i) for i in first.images] == [1, 2] and [level(i) for i in second.images] == [2, 1]
    assert first.preference == second.preference == 1.0 and first.models == ("flux", "real")
    assert first.extra == {"choice_dist": [12, 7], "confidence": 0.99}
    sure = hpd.load(tmp_path, version="v3", min_confidence=0.95)
    assert list(sure) == [first] and sure.skipped == {"confidence too low": 1}


@pytest.mark.truth
def test_imagerewarddb(tmp_path):
    make.write_imagerewarddb(tmp_path)
    first, second = imagerewarddb.load(tmp_path, split="validation")
    assert first.ranks == (1, 1, 2) and second.ranks == (2, 1) and second.prompt_id == "002-2"
    assert [level(i) for i in first.images] == [10, 11, 12] and [level(i) for i in second.images] == [20, 21]
    assert first.extra["ratings"][2] == {
        "overall_rating": 1, "image_text_alignment_rating": 2, "fidelity_rating": 3,
    }  # fmt: skip
    stream = imagerewarddb.load(tmp_path, split="validation", judgement="ratings")
    rated = list(stream)
    assert len(rated) == 4 and stream.skipped == {"label outside its range": 1}  # an overall rating of 9
    assert rated[0].ratings["overall_rating"] == 7 and (rated[0].low, rated[0].high) == (1, 7)
    assert to_pairs(rated, dimension="fidelity_rating").preference.tolist() == [0, 1, 1]


@pytest.mark.truth
def test_simulacra(tmp_path):
    make.write_simulacra(tmp_path)
    stream = simulacra.load(tmp_path)
    records = list(stream)
    assert [(r.annotator, r.rating, r.prompt, r.prompt_id) for r in records] == [
        ("50", 9, "a tower", "1"), ("51", 1, "a tower", "1"),
    ]  # fmt: skip
    assert records[0].models == ("method 2",) and level(records[0].images[0]) == 10 and records[0].high == 10
    assert stream.skipped == {"no label": 1, "missing picture": 1, "label outside its range": 1}
    (tmp_path / "other.sqlite").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ValueError, match="not a readable SQLite file"):
        list(simulacra.load(tmp_path / "other.sqlite"))
    (tmp_path / "empty.sqlite").write_bytes(b"")
    with pytest.raises(ValueError, match="table generations lacks id"):
        list(simulacra.load(tmp_path / "empty.sqlite"))


@pytest.mark.truth
def test_visionprefer(tmp_path):
    make.write_visionprefer(tmp_path)
    stream = visionprefer.load(tmp_path)
    (record,) = stream
    assert record.ratings == {"prompt-following": 4, "aesthetic": 3, "fidelity": 5, "harmlessness": 5}
    assert (record.prompt_id, record.record_id, record.models, record.high) == ("3", "3:3_0", ("SD1.5",), 5)
    assert record.extra == {"guidance": 7.5, "rationale": {"fidelity": "sharp"}}
    assert stream.skipped == {"label outside its range": 1, "missing picture": 1, "malformed line": 1}


@pytest.mark.truth
def test_richhf_joined_with_pickapic(tmp_path):
    make.write_richhf(tmp_path / "rich")
    make.write_pickapic(tmp_path / "pick")
    with pytest.raises(FileNotFoundError, match="gather_pictures"):
        richhf18k.load(tmp_path / "rich", split="dev")
    source = pickapic.load(tmp_path / "pick", split="validation_unique")
    counts = richhf18k.gather_pictures(tmp_path / "rich", "dev", source, tmp_path / "rich" / "pictures")
    assert counts == {"wanted": 4, "found": 3, "missing": 1}
    stream = richhf18k.load(tmp_path / "rich", split="dev")
    first, second = stream
    assert (first.prompt, second.prompt) == ("a cat", "a dog")
    assert first.misaligned == (False, True) and second.misaligned == (True, False)  # 0 marks a misaligned word
    assert first.ratings == {
        "aesthetics_score": 0.25, "artifact_score": 0.5, "misalignment_score": 0.75, "overall_score": 1.0,
    }  # fmt: skip
    assert np.array_equal(first.heatmaps["artifact"], np.float32(make.RICH_MAP) / np.float32(255))
    assert np.array_equal(first.heatmaps["misalignment"], np.float32(make.RICH_MAP.T) / np.float32(255))
    assert Path(first.images[0]).read_bytes() == make.picture(10, "JPEG")
    assert stream.skipped == {"labels do not match the prompt": 1, "missing prompt": 1}


@pytest.mark.truth
@pytest.mark.parametrize("prompt, label, wrong", [
    ("a red, round ball", "1 0 1 1", (False, True, False, False)),
    ("it's a U.S. car!", "1 1 1 0 0", (False, False, True, True)),  # "U" and "S" are two pieces of one word
    ("one -- : two", "1 0 1", (False, True, False, False)),  # ":" has no piece
])  # fmt: skip
def test_words_of_richhf(prompt, label, wrong):
    assert richhf18k.misaligned_words(prompt, label) == wrong


@pytest.mark.truth
@pytest.mark.parametrize("packed", [True, False])
def test_tfrecord_reader(tmp_path, packed):
    # RFC 3720, B.4: CRC-32C of 32 zero bytes is 0x8A9136AA; of "123456789" it is 0xE3069283.
    assert make.crc32c(bytes(32)) == 0x8A9136AA and make.crc32c(b"123456789") == 0xE3069283
    crc = 0xE3069283
    assert tfrecord.masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
    features = {"b": b"\x00\xff" * 300, "f": [0.5, -2.0], "i": [3, -1, 2**40]}
    path = tmp_path / "x.tfrecord"
    path.write_bytes(make.framed(make.example(features, packed)) + make.framed(b""))
    one, two = tfrecord.read_tfrecords(path)
    assert tfrecord.parse_example(one) == features | {"b": [features["b"]]} and two == b""


def test_damaged_tfrecords(tmp_path):
    make.write_richhf(tmp_path)
    path = tmp_path / "dev.tfrecord"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    read = list(tfrecord.read_tfrecords(path))
    assert len(read) == 4 and isinstance(read[0], RecordError) and read[0].reason == "corrupt record"
    bad = ((whole[:-3], "cut off in record 3"), (whole[:5], "cut off in the head"), (b"x" * 99, "checksum"))
    for data, says in bad:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=says):
            list(tfrecord.read_tfrecords(path))
    with pytest.raises(RecordError, match=r"tf\.train\.Example"):
        tfrecord.parse_example(b"\x0a\x50abc")


@pytest.mark.parametrize("load, says", [
    (lambda f: hpd.load(f, version="v1"), "tgxs002/align_sd"),
    (lambda f: hpd.load(f), "hf download ymhao/HPDv2"),
    (lambda f: hpd.load(f, version="v3"), "hf download MizzenAI/HPDv3"),
    (lambda f: imagerewarddb.load(f), "hf download THUDM/ImageRewardDB"),
    (lambda f: richhf18k.load(f), "google-research-datasets/richhf-18k"),
    (lambda f: simulacra.load(f), "JD-P/simulacra-aesthetic-captions"),
    (lambda f: visionprefer.load(f), "2404.15100"),
])  # fmt: skip
def test_without_files_the_error_says_what_to_download(tmp_path, load, says):
    with pytest.raises(FileNotFoundError, match=rf"{says}(.|\n)*Looked for: {tmp_path}"):
        load(tmp_path)


def test_cut_off_files(tmp_path):
    make.write_hpd_v2(tmp_path)
    (tmp_path / "train.json").write_text((tmp_path / "train.json").read_text()[:50])
    with pytest.raises(ValueError, match="cut off"):
        list(hpd.load(tmp_path))
    (tmp_path / "metadata-train.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cut off"):
        list(imagerewarddb.load(tmp_path))
    with pytest.raises(ValueError, match="limit"):
        hpd.load(tmp_path, limit=-1)


@pytest.mark.truth
def test_the_two_countings_of_mhp_differ_only_in_ties():
    clear = [((1, 2, 3), (0.9, 0.1, 0.5))]
    assert mhp.accuracy_as_on_imagereward(clear) == pytest.approx(2 / 3) == mhp.accuracy_as_on_hpdv2(clear)
    tied = [((1, 2, 2), (0.5, 0.5, 0.1))]
    assert mhp.accuracy_as_on_imagereward(tied) == 1 / 2 and mhp.accuracy_as_on_hpdv2(tied) == 1
    with pytest.raises(ValueError, match="tie in rank"):
        mhp.accuracy_as_on_imagereward([((1, 1), (0, 1))])
    with pytest.raises(ValueError, match="2 ranks and 3 scores"):
        mhp.accuracy_as_on_hpdv2([((1, 2), (0, 1, 2))])


def test_every_card_with_a_loader_has_a_fixture():
    assert set(FIXTURES) == {key for key, card in CARDS.items() if card.module}


@pytest.mark.parametrize("key", FIXTURES)
def test_card_and_loader_agree(tmp_path, key):
    write, options = FIXTURES[key]
    card = CARDS[key]
    write(tmp_path)
    if key == "richhf18k":
        make.write_pickapic(tmp_path / "pick")
        source = pickapic.load(tmp_path / "pick", split="validation_unique")
        richhf18k.gather_pictures(tmp_path, "dev", source, tmp_path / "pictures")
    module = importlib.import_module(card.module)
    given = {**card.options, **options, "path_or_hub": tmp_path}
    records = list(module.load(**given))
    assert records and all(isinstance(r, Record) and r.kind in card.kinds for r in records)
    assert list(datasets.load(key, **(options | {"path_or_hub": tmp_path}))) == records


def test_cards_claim_nothing_unread():
    for card in CARDS.values():
        assert set(card.kinds) <= set(KINDS) and card.labelled_by in cards.LABELLERS and card.note
        assert all(source in cards.SOURCES for _, source in card.size)
        assert card.module is None or (card.columns and card.hub)
    assert set(CARDS["pickapic_v1"].columns) == set(pickapic.COLUMNS)
    assert set(CARDS["imagerewarddb"].columns) == set(imagerewarddb.COLUMNS)
    assert set(CARDS["richhf18k"].columns) == set(richhf18k.FEATURES)
    with pytest.raises(ValueError, match=r"MHP .* no loader: The choices are not in the public repository"):
        datasets.load("mhp")
    with pytest.raises(ValueError, match="unknown data set 'laion'; with a loader: hpd_v1"):
        datasets.load("laion")


def test_a_folder_by_name(monkeypatch):
    """It goes before the hub's id; without one, raw files are looked for in a folder of the key's name."""
    found = []
    for module in (pickapic, hpd):
        monkeypatch.setattr(module, "load", lambda path_or_hub, version=None: found.append((path_or_hub, version)))
    datasets.load("pickapic_v2", "my_folder")
    datasets.load("hpd_v3")
    assert found == [("my_folder", None), ("hpd_v3", "v3")]


@pytest.mark.parametrize("key", [key for key, card in CARDS.items() if card.module and datasets.from_files(key)])
def test_raw_files_that_are_not_there(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"was not found(.|\n)*Looked for: {key}/(.|\n)*{key}:FOLDER"):
        datasets.load(key)
