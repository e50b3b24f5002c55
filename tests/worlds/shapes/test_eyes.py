"""The judge beside labels by eye of generated pictures: two sets of 200."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch

from surveylib.diffusion.zoo import CHECKPOINTS, load_model
from surveylib.worlds.shapes import eyes
from surveylib.worlds.shapes.judge import Verdict, judge
from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, is_held_out, parse
from surveylib.worlds.shapes.suites import drawer

LABELS = Path(__file__).parent / "eyes.json"
LATER = Path(__file__).parent / "eyes_later.json"


def with_verdicts(path):
    pictures, rows, facts = eyes.load(path)
    return pictures, rows, facts, judge(pictures, [row.prompt for row in rows])


@pytest.fixture(scope="module")
def labelled():
    return with_verdicts(LABELS)


@pytest.fixture(scope="module")
def later():
    return with_verdicts(LATER)


@pytest.mark.truth
def test_the_judge_agrees_with_the_eye(labelled):
    """95 of 100 on the half it was not tuned on, 187 of 200 on all."""
    _, rows, _, verdicts = labelled
    table = eyes.agreement_with_eyes(rows, verdicts)
    confusions = "\n".join(eyes.confusions_with_eyes(rows, verdicts))
    assert table["report"]["agree"] >= 0.95 * table["report"]["pictures"], confusions
    assert table["all"]["agree"] >= 0.93 * table["all"]["pictures"], confusions
    assert table["all"]["only the judge passes"] <= 5, confusions


@pytest.mark.truth
def test_the_judge_agrees_with_the_eye_on_later_pictures(later):
    """193 of 200 pictures that came after the judge."""
    _, rows, _, verdicts = later
    confusions = "\n".join(eyes.confusions_with_eyes(rows, verdicts))
    assert eyes.agreement_with_eyes(rows, verdicts)["all"]["agree"] >= 0.95 * len(rows), confusions


@pytest.mark.parametrize("name", ["labelled", "later"])
def test_the_labels_cover_all_categories_of_held_out_prompts(name, request):
    pictures, rows, facts, _ = request.getfixturevalue(name)
    assert pictures.shape == (200, 3, 64, 64) and pictures.min() >= 0 and pictures.max() <= 1
    assert all(is_held_out(parse(row.prompt)) for row in rows)
    count = Counter(row.category for row in rows)
    assert set(count) == set(ALL_CATEGORIES) and min(count.values()) >= 13
    assert len({(row.prompt, row.seed) for row in rows}) == 200
    assert 0.4 < sum(row.shows for row in rows) / 200 < 0.6  # a judge that always says yes or no fails
    files = [LABELS.with_name(facts["sheet"]).with_suffix(suffix) for suffix in (".json", ".png")]
    assert sum(path.stat().st_size for path in files) < 600_000


def test_the_two_sets_are_apart(labelled, later):
    assert Counter(row.half for row in labelled[1]) == {"tune": 100, "report": 100}
    assert {row.half for row in later[1]} == {"report"}
    assert not {row.prompt for row in labelled[1]} & {row.prompt for row in later[1]}


@pytest.mark.truth
@pytest.mark.parametrize("name", ["labelled", "later"])
def test_the_stored_pictures_are_the_model_s(name, request):
    pictures, rows, facts, _ = request.getfixturevalue(name)
    folder = Path(CHECKPOINTS) / facts["model"]
    for name, digest in facts["checksums"].items():
        if not (folder / name).exists() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            pytest.skip("the model was trained again; the labels hold for the stored pictures")
    draw = drawer(load_model(facts["model"]), facts["steps"], facts["guidance"])
    seeds = [torch.Generator().manual_seed(row.seed) for row in rows[:3]]
    again = draw([row.prompt for row in rows[:3]], seeds).detach().float().clamp(0, 1)
    assert (again - pictures[:3]).abs().mean() < 0.01  # six bits a channel


def test_agreement_and_confusions_count():
    rows = [eyes.Labelled("a red circle", "colours", k, half, shows)
            for k, (half, shows) in enumerate([("tune", True), ("tune", False), ("report", True), ("report", False)])]
    verdicts = [Verdict(passed, {}, 0.0, True, reason)
                for passed, reason in ((True, ""), (True, ""), (False, "unreadable: x"), (False, "y"))]
    table = eyes.agreement_with_eyes(rows, verdicts)
    assert table["tune"] == {"pictures": 2, "agree": 1, "only the eye passes": 0, "only the judge passes": 1}
    assert table["report"] == {"pictures": 2, "agree": 1, "only the eye passes": 1, "only the judge passes": 0}
    assert table["all"]["agree"] == 2
    lines = eyes.confusions_with_eyes(rows, verdicts)
    assert len(lines) == 2 and "unreadable: x" in lines[1]
    with pytest.raises(ValueError, match="3 verdicts for 4 labels"):
        eyes.agreement_with_eyes(rows, verdicts[:3])


def test_a_sheet_that_does_not_fit_its_labels_is_refused(tmp_path):
    from PIL import Image

    Image.new("RGB", (128, 64)).save(tmp_path / "few.png")
    text = LABELS.read_text().replace('"sheet": "eyes.png"', '"sheet": "few.png"')
    (tmp_path / "eyes.json").write_text(text)
    with pytest.raises(ValueError, match="200 labels"):
        eyes.load(tmp_path / "eyes.json")


def test_the_command_prints_agreement_and_confusions(labelled, capsys):
    _, rows, _, verdicts = labelled
    assert eyes.main([str(LABELS)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tune") and "report" in printed
    assert all(line in printed for line in eyes.confusions_with_eyes(rows, verdicts))
    assert eyes.main([]) == 2
