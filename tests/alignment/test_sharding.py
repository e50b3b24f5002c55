"""Weights cut over two processes (FSDP2) train as whole ones do, are written whole, and are gone on with."""

import json

import pytest
import torch
from alignment.every_technique import trained
from alignment.small import small_run
from alignment.starting import finish, two_processes
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from surveylib.alignment.logs import read_rows
from surveylib.alignment.processes import Processes
from surveylib.alignment.sharding import ShardingError, settings, shard
from surveylib.diffusion.zoo import load_model

CUT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as `accelerate launch --use_fsdp --fsdp_version 2` sets it


def farthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max((one[name].float() - two[name].float()).abs().max().item() for name in one)


def root_mean_square(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Of the differences: where a gradient is next to nothing, rounding decides on which side Adam steps, so that the
    farthest entry says little at a large rate."""
    assert one.keys() == two.keys()
    return torch.cat([(one[name].float() - two[name].float()).flatten() for name in one]).square().mean().sqrt().item()


@pytest.mark.truth
@pytest.mark.parametrize("changed", [
    {},
    {"updates": 8},  # no sample of an update on one of them: it must meet the other all the same
    {"updates": 8, "micro_batch": 2, "lora_rank": None, "lr": 1e-4},
], ids=["adapter", "no sample of an update on one", "all weights"])
def test_cut_weights_make_the_update_of_one_process(tmp_path, changed):
    text = json.dumps(changed)
    one = finish("none", tmp_path / "one.safetensors", text)
    printed = two_processes("alignment.small", "none", str(tmp_path / "two.safetensors"), text, **CUT)
    assert printed.count("holds 0.50") == 2, f"each was to hold half of the weights: {printed}"
    assert farthest(one, load_file(tmp_path / "two.safetensors")) < 1e-4


@pytest.mark.parametrize("changed", [{}, {"lora_rank": None, "lr": 1e-4}], ids=["adapter", "all weights"])
def test_a_run_with_cut_weights_goes_on_where_it_stopped(tmp_path, changed):
    straight = json.dumps({"epochs": 2, **changed})
    two_processes("alignment.small", "none", str(tmp_path / "straight"), straight, **CUT)
    out = tmp_path / "x"
    two_processes("alignment.small", str(out), str(tmp_path / "half"), json.dumps({"epochs": 1, **changed}), **CUT)
    kept = load_file(out / "checkpoint" / "tensors.safetensors")
    assert {tuple(kept[name].shape) for name in kept if name.startswith("/policy")} == {
        tuple(value.shape) for value in load_file(tmp_path / "half").values()}, "weights were not written whole"
    identity = out / "identity.json"
    identity.write_text(identity.read_text().replace("epochs=1", "epochs=2"))
    printed = two_processes("alignment.small", str(out), str(tmp_path / "resumed"), straight, **CUT)
    assert "epoch 1 " not in printed and printed.count("epoch 2 2 ") == 2, printed
    assert farthest(load_file(tmp_path / "straight"), load_file(tmp_path / "resumed")) == 0


def alike(one, two) -> None:
    """The last lines of two logs say the same loss and gradient."""
    for key in ("grad_norm", "loss"):
        assert read_rows(two)[-1][key] == pytest.approx(read_rows(one)[-1][key], rel=1e-2, abs=1e-6), (two, key)


@pytest.mark.truth
def test_every_technique_trains_cut_weights_as_whole_ones(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    two_processes("alignment.every_technique", str(whole), "{}")
    two_processes("alignment.every_technique", str(cut), "{}", **CUT)
    for name in trained():
        alike(whole / name, cut / name)
        file = f"{name}/adapter/pytorch_lora_weights.safetensors"
        assert farthest(load_file(whole / file), load_file(cut / file)) < 1e-4, name


@pytest.mark.truth
@pytest.mark.parametrize("model, part, names", [("tiny-sd", "unet", ("diffusion_dpo", "adjoint_matching")),
                                                ("tiny-flux", "transformer", ("flow_grpo",))])
def test_all_weights_are_compared_with_cut_copies_and_saved_as_a_plain_pipeline(tmp_path, model, part, names):
    """These techniques compute with the reference, which is a copy of all weights."""
    changed = json.dumps({"model": model, "training": {"lora_rank": None, "ema": 0.5, "ema_every": 1, "lr": 1e-3}})
    two_processes("alignment.every_technique", str(tmp_path / "whole"), changed, *names)
    two_processes("alignment.every_technique", str(tmp_path / "cut"), changed, *names, **CUT)
    for name in names:
        whole, cut = (tmp_path / kind / name for kind in ("whole", "cut"))
        alike(whole, cut)
        for folder in ("pipeline", "pipeline_ema"):
            networks = [getattr(DiffusionPipeline.from_pretrained(str(run / folder)), part) for run in (whole, cut)]
            apart = root_mean_square(*(network.state_dict() for network in networks))
            assert apart < 1e-5, (name, folder)  # a hundredth of a step of lr 1e-3
            configs = [(run / folder / part / "config.json").read_text() for run in (whole, cut)]
            assert configs[0] == configs[1]


def test_weights_that_are_not_cut_are_read_on_every_process(tmp_path):
    """Text encoders and decoder come from files here; accelerate's launcher also sets a variable that spares ranks
    above 0 the reading."""
    changed, variables = json.dumps({"model": "shapes-sd"}), CUT | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    two_processes("alignment.every_technique", str(tmp_path / "whole"), changed, "draft")
    two_processes("alignment.every_technique", str(tmp_path / "cut"), changed, "draft", **variables)
    alike(tmp_path / "whole" / "draft", tmp_path / "cut" / "draft")


def test_one_process_needs_no_cutting(monkeypatch):
    for name, value in CUT.items():
        monkeypatch.setenv(name, value)
    processes = Processes(cpu=True)
    assert processes.sharding is None
    assert next(small_run(processes=processes, epochs=1)[1]).epoch == 1


def test_blocks_that_the_network_does_not_have(monkeypatch):
    for name, value in {**CUT, "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                        "FSDP_TRANSFORMER_CLS_TO_WRAP": "FluxTransformerBlock"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ShardingError, match=r"no module of the network is a FluxTransformerBlock; there are .*Resnet"):
        shard(load_model("tiny-sd").network, settings())
