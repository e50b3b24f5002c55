"""Killed at any moment and started again, a run ends with the same weights, bit for bit."""

import signal
import subprocess
import time

import pytest
import torch
from alignment.starting import finish, start, two_processes
from safetensors.torch import load_file

from surveylib.alignment.logs import read_rows


def kill_when(process: subprocess.Popen, ready) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, f"ended before it could be killed: {process.stderr.read()[-2000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_at_three_points_a_run_ends_with_the_same_weights(tmp_path):
    straight = finish(tmp_path / "straight", tmp_path / "straight.safetensors")
    out = tmp_path / "killed"
    first = start(out, tmp_path / "x")  # before any checkpoint
    kill_when(first, lambda: (out / "identity.json").exists())
    second = start(out, tmp_path / "x")  # while a checkpoint is being written, or right after
    kill_when(second, lambda: (out / "checkpoint.new").exists() or (out / "checkpoint").exists())
    third = start(out, tmp_path / "x")  # in the middle of a later epoch
    kill_when(third, lambda: third.stdout.readline().startswith("epoch"))
    resumed = finish(out, tmp_path / "resumed.safetensors")
    assert straight.keys() == resumed.keys()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.truth
@pytest.mark.parametrize("changed", ["{}", '{"updates": 8, "epochs": 3}'], ids=["", "no sample of an update on one"])
def test_two_processes_make_the_update_of_one(tmp_path, changed):
    one = finish("none", tmp_path / "one.safetensors", changed)
    printed = two_processes("alignment.small", "none", str(tmp_path / "two.safetensors"), changed)
    cost = "120 48"  # 3 epochs of 8 samples, 3 steps rolled out and 2 trained: of both processes, on both
    assert printed.count(f"epoch 3 2 {cost}") == 2, "the run was not spread over two processes, or counts only one"
    assert printed.count("in a group at the end: False") == 2, "a process ended with the group's threads alive"
    two = load_file(tmp_path / "two.safetensors")
    difference = max((one[name] - two[name]).abs().max().item() for name in one)
    assert difference < 1e-4, difference  # Adam divides by the gradient's size: rounding counts where it is near zero


def test_two_processes_go_on_where_they_stopped_with_the_costs_of_both(tmp_path):
    changed = '{"updates": 8, "epochs": 1}'
    assert two_processes("alignment.small", str(tmp_path / "x"), str(tmp_path / "w"), changed).count("2 40 16") == 2
    identity = tmp_path / "x" / "identity.json"
    identity.write_text(identity.read_text().replace("epochs=1", "epochs=2"))
    printed = two_processes("alignment.small", str(tmp_path / "x"), str(tmp_path / "w"),
                            changed.replace('"epochs": 1', '"epochs": 2'))
    assert "epoch 1 " not in printed and printed.count("epoch 2 2 80 32") == 2, printed


def test_the_command_line_in_two_processes(tmp_path):
    """The documented command, and a technique whose processes do not report the same numbers (one picture is kept)."""
    for technique, more in (("ddpo", []), ("raft", ["--set", "samples=2", "--set", "samples_per_prompt=2"])):
        out = tmp_path / technique
        two_processes("surveylib.cli", "align", technique, "--scale", "rehearsal", "--out", str(out), *more)
        assert (out / "done.json").is_file() and (out / "adapter").is_dir()
    row = read_rows(out)[-1]
    assert row["reward_kept"] > row["reward"]  # of the one that is kept, wherever it is; and of both
