"""What is printed of a run: by the main process alone, and on lines of its own."""

import gc
import io
import weakref

import pytest
import torch
from rich.console import Console

from surveylib.alignment import show as shown
from surveylib.alignment.engine import Progress
from surveylib.alignment.run import Recipe
from surveylib.alignment.show import ROWS, parse_settings, show
from surveylib.runs.ledger import Ledger
from surveylib.techniques.contract import TechniqueError

RECIPE = Recipe("ddpo", "rehearsal", training={"epochs": 12})


def epochs(n: int, kept: list):
    """n epochs; `kept` gets references to them that keep nothing alive."""
    for epoch in range(1, n + 1):
        pictures, ledger = torch.zeros(1, 3, 8, 8), Ledger(wall=epoch)
        progress = Progress(epoch, {"reward": 0.5 * epoch}, ["a cat"], pictures, ledger, epoch, epoch * 2**20)
        kept.append(weakref.ref(progress))
        yield progress
        del progress


def printed(steps, tmp_path) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    show(steps, RECIPE, tmp_path, console, tensorboard=False)
    return console.file.getvalue()


def test_the_next_text_is_on_a_line_of_its_own(tmp_path):
    text = printed(epochs(3, []), tmp_path)
    assert any(line.startswith("cost: ") for line in text.splitlines())
    assert "Expected: 48 pictures drawn" in text and "1.5" in text
    assert "an epoch's batch took 3.0 MiB" in " ".join(text.split())


def test_only_what_is_printed_is_kept(tmp_path):
    found, alive = [], []

    def steps():
        for progress in epochs(12, found):
            yield progress
            del progress
            gc.collect()
            alive.append(sum(ref() is not None for ref in found))

    text = printed(steps(), tmp_path)
    assert max(alive) <= 1, "epochs are kept with their pictures"
    assert all(f" {epoch} " in text for epoch in range(13 - ROWS, 13))


def test_other_processes_are_silent_and_consume_the_run(monkeypatch, tmp_path):
    class Second:
        main = False

    monkeypatch.setattr(shown, "Processes", Second)
    found = []
    assert printed(epochs(3, found), tmp_path) == "" and len(found) == 3


@pytest.mark.parametrize("text", ["clip_norm=-1", "samples=1.5", "steps=abc", "steps=0", "clip_advantage=0", "lr=-1",
                                  "lora_rank=0", "eps=0", "weight_decay=-1"])
def test_settings_are_checked_where_they_are_read(text):
    name, value = text.split("=")
    with pytest.raises(TechniqueError, match=f"--set {name} = '?{value}.*allowed"):
        parse_settings("ddpo", [text])
