"""Records of every kind to pairs, checked pair by pair."""

from __future__ import annotations

import pytest
import torch

from surveylib.feedback.pairs import to_pairs
from surveylib.feedback.records import Record, decode_picture, encode_picture

PICTURES = [encode_picture(torch.full((3, 4, 4), v / 10)) for v in range(6)]


def compared(data) -> set[tuple[float, float, str, float, float]]:
    """(first, second, prompt, preference, weight), a picture by ten times its value."""
    value = (data.images[:, 0, 0, 0] * 10).round().int().tolist()
    rows = zip(data.first.tolist(), data.second.tolist(), data.prompts, data.preference.tolist(), data.weight.tolist())
    return {(value[f], value[s], prompt, p, w) for f, s, prompt, p, w in rows}


@pytest.mark.truth
def test_pairs_and_rankings():
    a, b, c, *_ = PICTURES
    records = [
        Record("pair", "p", (a, b), preference=0.75, weight=2.0),
        Record("pair", "q", (b, c), preference=0.5),
        Record("ranking", "p", (c, a, b), ranks=(3, 1, 1)),
    ]
    data = to_pairs(records)
    assert compared(data) == {
        (0, 1, "p", 0.75, 2), (1, 2, "q", 0.5, 1), (2, 0, "p", 0, 1), (2, 1, "p", 0, 1), (0, 1, "p", 0.5, 1),
    }  # fmt: skip
    assert data.images.shape == (3, 3, 4, 4)  # each picture once
    assert torch.equal(data.images[data.first[0]], decode_picture(a))
    assert data.prompt_ids.tolist() == [0, 1, 0, 0, 0] and not data.skipped
    dropped = to_pairs(records, ties="drop")
    assert len(dropped) == 3 and dropped.skipped == {"tie": 2}


@pytest.mark.truth
def test_ratings_of_one_prompt():
    a, b, c, d, *_ = PICTURES
    records = [
        Record("rating", "p", (a,), annotator="x", rating=3, low=1, high=5),
        Record("rating", "p", (b,), annotator="x", rating=5, low=1, high=5, weight=3.0),
        Record("rating", "p", (b,), annotator="y", rating=1, low=1, high=5),
        Record("rating", "p", (c,), annotator="y", rating=1, low=1, high=5),
        Record("rating", "q", (d,), rating=1.0),
    ]
    data = to_pairs(records)  # b is rated (3 * 1 + 1 * 0) / 4 = 0.75, above a's 0.5
    assert compared(data) == {(0, 1, "p", 0, 1.5), (0, 2, "p", 1, 1), (1, 2, "p", 1, 1.5)}
    assert data.skipped == {"only one picture of its prompt": 1}
    own = to_pairs(records, within="annotator")
    assert compared(own) == {(0, 1, "p", 0, 2), (1, 2, "p", 0.5, 1)}


@pytest.mark.truth
def test_dimensions_and_likes():
    a, b, c, d, *_ = PICTURES
    rated = [
        Record("ratings", "p", (a,), ratings={"detail": 0.9, "overall": 0.1}),
        Record("rich", "p", (b,), ratings={"detail": 0.2, "overall": 0.4}),
        Record("ratings", "p", (c,), ratings={"overall": 0.2}),
    ]
    assert compared(to_pairs(rated, dimension="overall")) == {(0, 1, "p", 0, 1), (0, 2, "p", 0, 1), (1, 2, "p", 1, 1)}
    detail = to_pairs(rated, dimension="detail")
    assert compared(detail) == {(0, 1, "p", 1, 1)} and detail.skipped == {"dimension not rated": 1}
    with pytest.raises(ValueError, match="choose dimension= one of detail, overall"):
        to_pairs(rated)
    liked = [Record("binary", "p", (i,), liked=good) for i, good in ((a, True), (b, False), (c, True), (d, False))]
    data = to_pairs(liked)
    assert compared(data) == {(0, 1, "p", 1, 1), (0, 3, "p", 1, 1), (1, 2, "p", 0, 1), (2, 3, "p", 1, 1)}
    assert data.skipped == {"both liked or both disliked": 2}
    with pytest.raises(ValueError, match="no comparison"):
        to_pairs(liked[:1])


def test_sizes_and_damaged_pictures(tmp_path):
    wide = encode_picture(torch.rand(3, 6, 12))
    records = [Record("pair", "p", (PICTURES[0], wide), preference=1), Record("pair", "p", PICTURES[:2], preference=0)]
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(6, 12\)"):
        to_pairs(records)
    data = to_pairs(records, size=3)
    assert data.images.shape == (3, 3, 3, 3) and data.images.min() >= 0 and data.images.max() <= 1
    records.append(Record("pair", "p", (PICTURES[0], str(tmp_path / "no.png")), preference=1))
    with pytest.raises(ValueError, match=r"no\.png"):
        to_pairs(records, size=3)
    assert to_pairs(records, size=3, on_error="skip").skipped == {"missing picture": 1}
    for bad in ({"ties": "keep"}, {"within": "group"}, {"on_error": "ignore"}):
        with pytest.raises(ValueError, match="allowed"):
            to_pairs(records, **bad)


def test_split_keeps_prompts_apart():
    records = [Record("pair", f"p{i % 5}", PICTURES[:2], preference=1, record_id=str(i)) for i in range(20)]
    train, held = to_pairs(records).split(0.4, seed=1)
    assert len(train) == 12 and len(held) == 8 and not set(train.prompts) & set(held.prompts)
    assert to_pairs(records).split(0.4, seed=1)[1].prompts == held.prompts
    with pytest.raises(ValueError):
        to_pairs(records[:1]).split(0.5)
