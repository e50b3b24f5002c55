"""Equal-cost curves: what they cost, that the first stop is the base model, that nothing is drawn twice."""

import json
import math

import pytest

from surveylib.evaluation import equal_cost as curves

LADDERS = {curves.MORE_STEPS: ("steps", (10,)), "best_of_n": ("n", (1, 2))}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    found = list(curves.equal_cost(scale="toy", per_category=1, folder=folder, ladders=LADDERS))
    return folder, found


def test_stops_cost_what_was_counted(measured):
    _, (base, best) = measured
    assert [stop["calls"] for stop in base["stops"]] == [20.0]  # ten steps with and without the prompt
    assert [stop["calls"] for stop in best["stops"]] == [20.0, 40.0]
    assert best["stops"][0]["means"]["gold"]["prompts"] == 7


def test_the_best_of_one_is_the_base_model(measured):
    _, (base, best) = measured
    assert best["stops"][0]["means"] == base["stops"][0]["means"]
    assert best["stops"][1]["means"]["proxy"]["value"] >= best["stops"][0]["means"]["proxy"]["value"]


def test_stops_that_hold_are_not_drawn_again(measured, monkeypatch):
    folder, found = measured
    monkeypatch.setattr(curves, "stop_of", lambda *a: pytest.fail("drawn again"))
    assert list(curves.equal_cost(scale="toy", per_category=1, folder=folder, ladders=LADDERS)) == found
    assert set(curves.read_curves(folder)) == {"more_steps", "best_of_n"}


def test_another_rule_or_seed_begins_anew(measured, tmp_path, monkeypatch):
    folder, _ = measured
    kept = json.loads((folder / "best_of_n.json").read_text())
    kept["hashes"]["rule"] = "0" * 16
    (tmp_path / "best_of_n.json").write_text(json.dumps(kept))
    monkeypatch.setattr(curves, "stop_of", lambda bench, name, knob, value, *rest: {"value": value, "calls": 1.0})
    (again,) = curves.equal_cost(["best_of_n"], scale="toy", per_category=1, folder=tmp_path, ladders=LADDERS)
    assert [stop["calls"] for stop in again["stops"]] == [1.0, 1.0] and again["hashes"]["rule"] != "0" * 16


def test_a_stored_curve_says_what_changed(measured):
    _, (base, best) = measured
    assert curves.changes(base) == curves.changes(best) == []
    assert curves.changes({**best, "hashes": {**best["hashes"], "rule": "0" * 16}}) == ["rule"]
    older = {key: value for key, value in base["hashes"].items() if key != "sampler"}  # files before it was kept
    assert curves.changes({**base, "hashes": {**older, "model": None}}) == ["model", "sampler"]


def line(*stops):
    return {"stops": [{"calls": c, "means": {"gold": {"value": v}}} for c, v in stops]}


def test_a_curve_against_the_line_to_beat_is_read_on_a_log_scale():
    found = curves.against(line((5, 9.0), (10 * math.sqrt(10), 1.0), (100, 0.0)), line((10, 0.0), (100, 1.0)))
    assert [round(stop["calls"], 3) for stop in found] == [31.623, 100]  # 5 calls lie outside the line
    assert [stop["difference"] for stop in found] == pytest.approx([0.5, -1.0])


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="no ladder of costs for ddpo; there are: more steps, best_of_n"):
        next(curves.equal_cost(["ddpo"], scale="toy", folder=tmp_path))
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(ValueError, match=r"cut\.json is no equal-cost curve"):
        curves.read_curves(tmp_path)
