"""Putting a model among the shipped ones: nothing is lost where it stops, and the card says what was measured."""

import json

import pytest

from surveylib.diffusion.zoo import CHECKPOINTS, VOCABULARY_FILE
from surveylib.worlds.shapes.data import FLAWS
from surveylib.worlds.shapes.pretrain import release

FACTS = json.loads((CHECKPOINTS / "shapes-sd" / "scores.json").read_text())


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped models with an old shapes-sd, and the command line of a run that releases a new one."""
    old = tmp_path / "shapes" / "checkpoints" / "shapes-sd"
    for folder, word in ((old, "old"), (tmp_path / "run" / "pipeline", "new")):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text(word)
    for name in ("scores.json", "README.md", "of_the_old_one.json"):
        (old / name).write_text("old")
    monkeypatch.setattr(release, "CHECKPOINTS", old.parent)
    monkeypatch.setattr("sys.argv", ["release", "shapes-sd", "--run", str(tmp_path / "run"), "--hardware", "a desk"])
    return old


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_release_that_stops_while_it_measures_leaves_the_shipped_model(shipped, monkeypatch):
    before = content(shipped)

    def measure(folder, *given):
        assert (folder / "model_index.json").read_text() == "new" and folder.name == "shapes-sd"
        assert list(shipped.parent.glob("*/model_index.json")) == [shipped / "model_index.json"]
        raise RuntimeError("stopped")

    monkeypatch.setattr(release, "measure", measure)
    with pytest.raises(RuntimeError, match="stopped"):
        release.main()
    assert content(shipped) == before


def test_a_release_takes_the_place_of_the_old_one(shipped, monkeypatch):
    monkeypatch.setattr(release, "measure", lambda folder, run, hardware, per_category: FACTS | {"hardware": hardware})
    release.main()
    found = content(shipped)
    assert found["model_index.json"] == "new" and "of_the_old_one.json" not in found
    assert json.loads(found["scores.json"])["hardware"] == "a desk" and "a desk" in found["README.md"]
    assert sorted(path.name for path in shipped.parent.iterdir()) == ["shapes-sd", VOCABULARY_FILE]
    assert [path.name for path in shipped.parent.parent.iterdir()] == ["checkpoints"]


def test_an_unmeasured_folder_is_not_shipped(shipped, tmp_path):
    before = content(shipped)
    with pytest.raises(FileNotFoundError, match=r"scores\.json is missing: measure"):
        release.ship(release.staged(tmp_path / "run", "shapes-sd", "pipeline"))
    assert content(shipped) == before


def test_the_card_says_at_which_rate_a_flaw_is_tried_and_which_share_has_it():
    assert "- wrong caption: 10 %\n" in release.card(FACTS)  # nothing was measured then
    shares = release.flaw_shares(n=600)
    assert release.flaw_shares(n=600) == shares and set(shares) == set(FLAWS)
    assert 0 < shares["incomplete caption"] < FLAWS["incomplete caption"]
    shares |= {"wrong caption": 0.0725}
    assert "- wrong caption: tried on 10 % of the examples, 7.2 % have it\n" in release.card(FACTS | {"flaws": shares})


@pytest.mark.parametrize("name", sorted(release.KINDS))
def test_a_shipped_card_is_the_one_that_its_scores_make(name):
    folder = CHECKPOINTS / name
    assert release.card(json.loads((folder / "scores.json").read_text())) == (folder / "README.md").read_text()
