"""Checkpoints: what goes in comes out, damage is named, a crash between renames loses nothing."""

import json
import os

import pytest
import torch
from torch import nn

from surveylib.runs.checkpoint import (
    STATE_FILE,
    TENSOR_FILE,
    load_checkpoint,
    pack,
    random_state,
    save_checkpoint,
    set_random_state,
    unpack,
    write_atomically,
)


def state():
    net = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": 7, "names": ("a", None, 1.5, True)}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_round_trip_keeps_types_integer_keys_and_bits(tmp_path):
    save_checkpoint(tmp_path / "c", state_ := state())
    assert same(load_checkpoint(tmp_path / "c"), dict(state_, net=dict(state_["net"])))


def test_pack_refuses_what_json_and_safetensors_cannot_hold():
    with pytest.raises(TypeError, match="net/hook holds a function"):
        pack({"net": {"hook": lambda: None}})
    tree, tensors = pack({"a": [torch.ones(2)]})
    assert torch.equal(unpack(json.loads(json.dumps(tree)), tensors)["a"][0], torch.ones(2))


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "c") is None


@pytest.mark.parametrize("file", [STATE_FILE, TENSOR_FILE])
def test_a_damaged_or_missing_file_is_named(tmp_path, file):
    save_checkpoint(tmp_path / "c", state())
    path = tmp_path / "c" / file
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=file):
        load_checkpoint(tmp_path / "c")
    path.unlink()
    with pytest.raises(ValueError, match=file):
        load_checkpoint(tmp_path / "c")


def test_a_crash_between_the_two_renames_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", {"step": 1})
    real, calls = os.replace, []

    def crash_on_second(src, dst):
        calls.append(dst)
        if str(dst).endswith("/c"):
            raise KeyboardInterrupt
        real(src, dst)

    monkeypatch.setattr(os, "replace", crash_on_second)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "c", {"step": 2})
    monkeypatch.undo()
    assert not (tmp_path / "c").exists()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert load_checkpoint(tmp_path / "c") == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "reading moved something: another may be reading"
    monkeypatch.setattr("surveylib.runs.checkpoint.save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "c", {"step": 3})
    assert load_checkpoint(tmp_path / "c") == {"step": 1}, "the only whole checkpoint was given up"
    monkeypatch.undo()
    save_checkpoint(tmp_path / "c", {"step": 3})
    assert load_checkpoint(tmp_path / "c") == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_write_atomically_leaves_no_part_behind(tmp_path, monkeypatch):
    write_atomically(tmp_path / "deep" / "f.json", "old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "deep" / "f.json", "new")
    assert (tmp_path / "deep" / "f.json").read_text() == "old"


def test_random_state_repeats_draws():
    kept = random_state()
    first = torch.randn(4)
    set_random_state(kept)
    assert torch.equal(first, torch.randn(4))
