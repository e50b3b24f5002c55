"""When checkpoints are written, and the reference beside them; a killed run goes on from the last, bit for bit."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from alignment.small import PROMPTS, TRAINING, brightness, weights_after

from surveylib.alignment import checkpoints
from surveylib.alignment.checkpoints import CheckpointFolder, Saving, usual_pause
from surveylib.alignment.engine import align
from surveylib.alignment.processes import Processes
from surveylib.diffusion.zoo import load_model
from surveylib.runs.checkpoint import load_checkpoint
from surveylib.techniques.policy_gradient.ddpo import DDPO, DDPOConfig


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(seconds):
        now[0] += seconds

    return wait


def run_of(out, epochs=4, each=None, **options):
    model = load_model("tiny-sd")
    changed = {"epochs": epochs, "updates": 1, "samples": 4} | options.pop("training", {})
    technique = DDPO(DDPOConfig(steps=2, guidance=1.0, tracker_least=2))
    return model, align(model, technique, brightness(), PROMPTS, dataclasses.replace(TRAINING, **changed), seed=3,
                        out=out, each=each, **options)


def written(out):
    """The epoch of the checkpoint; 0 where there is none."""
    state = load_checkpoint(out / "checkpoint")
    return 0 if state is None else state["epoch"]


class Folder:
    """Notes what is written."""

    def __init__(self, processes):
        self.processes, self.found = processes, []

    def save(self, state):
        self.found.append(state)

    write = save


@pytest.mark.parametrize("pause, expected", [(0, [1, 2, 3, 4, 5, 6, 7]), (250, [3, 6, 7]), (1e9, [7])])
def test_checkpoints_are_at_least_so_many_seconds_apart_and_one_is_at_the_end(clock, pause, expected):
    epoch = 0
    folder = Folder(Processes(cpu=True))
    saving = Saving(folder, lambda: epoch, pause)
    for epoch in range(1, 8):
        clock(100)
        saving.after_epoch(epoch == 7)
    assert folder.found == expected
    saving.stopped()
    assert folder.found == expected, "written twice"


def test_the_clock_of_the_first_process_counts(clock):
    """The others ask it, so that all write together."""
    processes = Processes(cpu=True)
    processes.rank = 1
    folder = Folder(processes)
    saving = Saving(folder, lambda: 1, 250)
    clock(1000)
    saving.after_epoch(False)
    assert folder.found == []
    processes.sum_numbers = lambda numbers: {name: value + 1 for name, value in numbers.items()}
    saving.after_epoch(False)
    assert folder.found == [1]


def test_small_weights_are_written_after_every_epoch_and_large_ones_every_few_minutes():
    small = torch.empty(16 * 2**20, device="meta")  # 64 MB
    assert usual_pause([small]) == 0 and usual_pause([small, torch.empty(1, device="meta")]) == 300


def test_small_runs_leave_a_checkpoint_after_every_epoch(tmp_path):
    _, steps = run_of(tmp_path)
    for progress in steps:
        assert written(tmp_path) == progress.epoch


def test_who_stops_between_two_epochs_loses_nothing(tmp_path):
    _, steps = run_of(tmp_path, checkpoint_seconds=1e9)
    next(steps), next(steps)
    assert written(tmp_path) == 0
    steps.close()
    assert written(tmp_path) == 2
    assert [progress.epoch for progress in run_of(tmp_path, checkpoint_seconds=1e9)[1]] == [3, 4]
    assert written(tmp_path) == 4


def test_a_killed_run_goes_on_from_an_older_checkpoint_with_the_same_weights(clock, tmp_path):
    model, steps = run_of(None)
    straight = weights_after(steps, model)

    def each(progress):
        if progress.epoch == 1:
            clock(300)
        if progress.epoch == 3:
            raise OSError("killed")

    _, steps = run_of(tmp_path, each=each, checkpoint_seconds=300)
    with pytest.raises(OSError, match="killed"):
        list(steps)
    assert written(tmp_path) == 1
    model, steps = run_of(tmp_path, checkpoint_seconds=300)
    assert next(steps).epoch == 2
    resumed = weights_after(steps, model)
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_seconds_below_zero_are_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_seconds=-1 must be 0 or more"):
        next(run_of(tmp_path, checkpoint_seconds=-1)[1])


# -- the reference
ALL = {"lora_rank": None, "ema": 0.0, "lr": 1e-3}


def test_the_reference_is_written_once_and_a_resumed_run_ends_with_the_same_weights(tmp_path):
    model, steps = run_of(None, 3, training=ALL)
    straight, start = weights_after(steps, model), model.snapshots["reference"]
    out = tmp_path / "x"
    _, steps = run_of(out, 3, training=ALL)
    next(steps)
    file = out / "reference-1" / "tensors.safetensors"
    first = file.stat()
    next(steps)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert load_checkpoint(out / "checkpoint")["snapshots"] == {}
    steps.close()
    model, steps = run_of(out, 3, training=ALL)
    resumed = weights_after(steps, model)
    for found, expected in ((resumed, straight), (model.snapshots["reference"], start)):
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def opened(path):
    return CheckpointFolder(path, {"run": 1}, Processes(cpu=True))


def state_of(epoch, reference):
    return {"epoch": epoch, "snapshots": {"reference": reference, "ema": {"w": torch.tensor([0.5])}}}


def test_a_reference_that_moved_is_written_anew_and_the_checkpoint_names_its_own(monkeypatch, tmp_path):
    (tmp_path / "reference-pictures").mkdir()
    weights = {"w": torch.tensor([1.0])}
    with opened(tmp_path) as folder:
        folder.save(state_of(1, weights))
        weights["w"].add_(1)  # in place
        save = checkpoints.save_checkpoint

        def killed(path, state):
            if path.name == "checkpoint":
                raise OSError("killed")
            save(path, state)

        monkeypatch.setattr(checkpoints, "save_checkpoint", killed)
        with pytest.raises(OSError):
            folder.save(state_of(2, weights))
        monkeypatch.setattr(checkpoints, "save_checkpoint", save)
        found = opened(tmp_path).load()
        assert (found["epoch"], found["snapshots"]["reference"]["w"]) == (1, 1.0)
        folder.save(state_of(2, weights))
        folder.save(state_of(3, {"w": torch.tensor([7.0])}))  # another copy
        found = folder.load()
    assert (found["epoch"], found["snapshots"]["reference"]["w"], found["snapshots"]["ema"]["w"]) == (3, 7.0, 0.5)
    assert sorted(path.name for path in tmp_path.glob("reference-*")) == ["reference-3", "reference-pictures"]


def test_a_checkpoint_with_the_reference_in_it_is_read(tmp_path):
    checkpoints.save_checkpoint(tmp_path / "checkpoint", state_of(1, {"w": torch.tensor([1.0])}))
    assert opened(tmp_path).load()["snapshots"]["reference"]["w"] == 1.0


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_damaged_reference_is_named(tmp_path, damage):
    with opened(tmp_path) as folder:
        folder.save(state_of(1, {"w": torch.tensor([1.0])}))
        file = tmp_path / "reference-1" / "tensors.safetensors"
        file.write_bytes(b"") if damage == "cut" else checkpoints.shutil.rmtree(file.parent)
        with pytest.raises(ValueError, match=r"reference-1 is .*damaged; delete .* to start anew"):
            folder.load()
