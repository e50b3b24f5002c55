"""Timing: what is measured is done, and nothing stays changed. Seconds are never asserted."""

import pytest
import torch

from surveylib.diffusion.zoo import load_model
from surveylib.worlds import speed


def test_the_fastest_of_several_calls(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    done = []
    assert speed.best_of(lambda: done.append(1), 3) == 1.0
    assert len(done) == 3


def test_threads_are_given_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), speed.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_what_is_timed_is_done(monkeypatch):
    seen = []
    monkeypatch.setattr(speed, "judge", lambda pictures, specs: seen.append((len(pictures), torch.get_num_threads())))
    assert speed.judged_in_a_second(1) > 0
    assert seen == [(7, 1)] * 3  # seven categories
    model, drawn = load_model("tiny-sd"), []
    monkeypatch.setattr(model, "decode", lambda latents: drawn.append(len(latents)))
    assert speed.seconds_for_64(model) > 0 and drawn == [64, 64]
