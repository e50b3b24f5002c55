"""The dial: argument before environment before toy."""

import pytest

from surveylib.runs.scale import current_scale


def test_argument_wins_over_environment_over_toy(monkeypatch):
    monkeypatch.delenv("SURVEYLIB_SCALE", raising=False)
    assert current_scale() == "toy"
    monkeypatch.setenv("SURVEYLIB_SCALE", "single")
    assert current_scale() == "single"
    assert current_scale("full") == "full"


def test_unknown_scale_lists_the_known(monkeypatch):
    monkeypatch.setenv("SURVEYLIB_SCALE", "huge")
    with pytest.raises(ValueError, match=r"unknown scale 'huge'.*toy.*single.*full.*rehearsal"):
        current_scale()
