"""Scores of shipped models belong to the judge as it is; `rejudge` makes them so."""

import json
from pathlib import Path

import pytest

from surveylib.diffusion.zoo import CHECKPOINTS
from surveylib.evaluation import rejudge

JUDGED = sorted(path.parent.name for path in Path(CHECKPOINTS).glob("*/model_index.json"))


@pytest.mark.parametrize("name", JUDGED)
def test_shipped_scores_are_of_the_judge_as_it_is(name):
    stated = json.loads((Path(CHECKPOINTS) / name / "scores.json").read_text()).get("judge")
    assert stated == rejudge.judge_version(), f"run: python -m surveylib.evaluation.rejudge {name}"


def test_scores_and_card_are_written_with_the_judges_version_and_the_rest_stays(tmp_path, monkeypatch):
    before = json.loads((Path(CHECKPOINTS) / "shapes-sd" / "scores.json").read_text())
    (tmp_path / "scores.json").write_text(json.dumps({**before, "judge": "old"}))
    asked = []

    def scored(model, per_category):
        asked.append(per_category)
        rate = {"rate": 0.5, "standard error": 0.1, "pictures": 8}
        return {suite: {"quality": 0.9, "table": {"overall": rate}} for suite in ("held-out", "generalisation")}

    monkeypatch.setattr(rejudge, "scored", scored)
    facts = rejudge.rejudge("shapes-sd", tmp_path)
    assert asked == [110] and facts == json.loads((tmp_path / "scores.json").read_text())
    assert facts["judge"] == rejudge.judge_version() and facts["training"] == before["training"]
    card = (tmp_path / "README.md").read_text()
    assert f"Judge's version: {rejudge.judge_version()}" in card and "| overall | 50.0 % | 10.0 | 8 |" in card


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        rejudge.rejudge("shapes-sd", tmp_path)
