"""LoRA: the reference is the adapter off; what is saved loads in plain diffusers with its alpha."""

import json
import logging

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from surveylib.diffusion.lora import TARGETS, WEIGHT_FILE, add_lora, load_lora, lora_strength, save_lora
from surveylib.diffusion.pipelines import from_pipeline
from surveylib.diffusion.tiny import tiny_pipeline

NAMES = ["tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux"]
PROMPTS = ["a red circle", "a cat"]


def adapter(name):
    settings = {"max_sequence_length": 8} if name in ("tiny-sd3", "tiny-flux") else {}
    return from_pipeline(tiny_pipeline(name), resolution=32, **settings)


def trained(name, rank=2, alpha=None):
    """A model whose adapter is not zero."""
    model = adapter(name)
    add_lora(model, rank=rank, alpha=alpha)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def output(model):
    x = model.initial_noise(2, torch.Generator().manual_seed(0))
    return model.predict(x, model.schedule.grid(4)[1], model.encode(PROMPTS), 2.0).output


@torch.no_grad()
def picture(pipeline):
    return pipeline(PROMPTS, num_inference_steps=2, height=32, width=32, output_type="pt",
                    generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_adapter_changes_nothing_and_trains_alone(name):
    model = adapter(name)
    before = output(model)
    add_lora(model, rank=2, alpha=4)
    torch.testing.assert_close(output(model), before)
    named = model.named_trainable_parameters()
    assert named and all("lora_" in key for key in named)
    base = {key: p.detach().clone() for key, p in model.network.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.Adam(model.trainable_parameters(), lr=1e-2)
    for _ in range(2):
        x = model.initial_noise(2, torch.Generator().manual_seed(0))
        model.predict(x, model.schedule.grid(4)[1], model.encode(PROMPTS), 1.0).x0.square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert (output(model) - before).abs().max() > 1e-4
    for key, parameter in model.network.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, base[key])


@pytest.mark.truth
@pytest.mark.parametrize("name", NAMES)
def test_reference_is_the_base_model_bit_for_bit(name):
    base = output(adapter(name))
    model = trained(name)
    policy = output(model)
    assert (policy - base).abs().max() > 1e-3
    with model.reference():
        assert torch.equal(output(model), base)
        assert not any(p.requires_grad for p in model.network.parameters())
    assert torch.equal(output(model), policy)
    assert model.trainable_parameters()
    with lora_strength(model, 0.0):
        torch.testing.assert_close(output(model), base)
    with lora_strength(model, 0.5):
        half = output(model)
    assert (half - base).abs().max() > 1e-4 and (half - policy).abs().max() > 1e-4
    assert torch.equal(output(model), policy)


def test_a_frozen_adapter_stays_frozen_after_reference():
    model = trained("tiny-sd")
    model.network.requires_grad_(False)
    with model.reference():
        pass
    assert not model.trainable_parameters()


@pytest.mark.truth
def test_gradient_of_policy_and_reference_together():
    """A KL term compares both; its gradient reaches the adapter only, as if the reference were a constant."""
    model, alone = trained("tiny-sd"), trained("tiny-sd")
    x = model.initial_noise(2, torch.Generator().manual_seed(0))
    condition = model.encode(PROMPTS)
    policy = model.predict(x, 500, condition, 1.0).output
    with model.reference(), torch.no_grad():
        reference = model.predict(x, 500, condition, 1.0).output
    (policy - reference).square().mean().backward()
    constant = adapter("tiny-sd").predict(x, 500, condition, 1.0).output.detach()
    (alone.predict(x, 500, condition, 1.0).output - constant).square().mean().backward()
    for parameter, expected in zip(model.trainable_parameters(), alone.trainable_parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-7)


def test_old_and_ema_beside_an_adapter():
    model = trained("tiny-sd")
    old = output(model)
    model.snapshot("old")
    model.update_ema("ema", 0.5)
    assert all("lora_" in key for key in model.snapshots["old"])
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.mul_(2)
    model.update_ema("ema", 0.5)
    new = output(model)
    with model.weights("old"):
        assert torch.equal(output(model), old)
    with model.weights("ema"):
        ema = output(model)
    assert (ema - old).abs().max() > 1e-4 and (ema - new).abs().max() > 1e-4
    assert torch.equal(output(model), new)
    with pytest.raises(ValueError, match="always there"):
        model.snapshot("reference")
    with pytest.raises(KeyError, match="policy, reference, old, ema"), model.weights("best"):
        pass


@pytest.mark.truth
@pytest.mark.parametrize("name", NAMES)
def test_saved_adapters_load_in_plain_diffusers_with_their_alpha(name, tmp_path):
    model = trained(name, rank=2, alpha=4)  # alpha = 2 r
    ours = picture(model.pipeline)
    with lora_strength(model, 0.5):
        half = picture(model.pipeline)
    path = save_lora(model, tmp_path / "lora")
    adapter(name).pipeline.save_pretrained(tmp_path / "base")

    def plain(folder=None):
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "base")
        pipeline.set_progress_bar_config(disable=True)
        if folder is not None:
            pipeline.load_lora_weights(folder)
        return picture(pipeline)

    torch.testing.assert_close(plain(tmp_path / "lora"), ours, atol=1e-5, rtol=0)
    assert (plain() - ours).abs().max() > 1e-2

    # The same weights without the metadata: no error, and the adapter at half its strength.
    (tmp_path / "bare").mkdir()
    save_file(load_file(path), tmp_path / "bare" / WEIGHT_FILE)
    silent = plain(tmp_path / "bare")
    assert (silent - ours).abs().max() > 1e-2
    torch.testing.assert_close(silent, half, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_load_lora_is_the_inverse_of_save_lora(name, tmp_path):
    model = trained(name, rank=2, alpha=4)
    expected = output(model)
    save_lora(model, tmp_path)
    again = adapter(name)
    base = output(again)
    load_lora(again, tmp_path)
    torch.testing.assert_close(output(again), expected, atol=1e-6, rtol=1e-5)
    assert not again.trainable_parameters()
    with again.reference():
        torch.testing.assert_close(output(again), base)
    further = adapter(name)
    load_lora(further, tmp_path, trainable=True)
    assert len(further.trainable_parameters()) == len(model.trainable_parameters())
    save_lora(further, tmp_path / "again")
    torch.testing.assert_close(load_file(tmp_path / "again" / WEIGHT_FILE), load_file(tmp_path / WEIGHT_FILE))


@pytest.mark.truth
def test_without_metadata_the_adapter_has_half_its_strength(tmp_path):
    model = trained("tiny-sd", rank=2, alpha=4)
    path = save_lora(model, tmp_path)
    with lora_strength(model, 0.5):
        half = output(model)
    save_file(load_file(path), path)
    bare = adapter("tiny-sd")
    with pytest.warns(UserWarning, match="carries no alpha"):
        load_lora(bare, path)
    torch.testing.assert_close(output(bare), half, atol=1e-5, rtol=1e-4)


def test_the_adapter_is_drawn_from_its_seed_alone():
    torch.manual_seed(5)
    first = adapter("tiny-sd")
    add_lora(first, rank=2, seed=3)
    state = torch.random.get_rng_state()
    second, other = adapter("tiny-sd"), adapter("tiny-sd")
    add_lora(second, rank=2, seed=3)
    add_lora(other, rank=2, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    a, b, c = (m.trainable_parameters()[0] for m in (first, second, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_adapter_of_a_half_precision_network_is_float32():
    model = adapter("tiny-sd").to(dtype=torch.bfloat16)
    add_lora(model, rank=2)
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.trainable_parameters()} == {torch.float32}
    model.predict(model.initial_noise(2), 500, model.encode(PROMPTS), 1.0).x0.square().mean().backward()
    assert any(p.grad.abs().sum() > 0 for p in model.trainable_parameters())


def test_default_targets_are_the_attention_projections():
    expected = {
        "tiny-sd": {"to_q", "to_k", "to_v", "to_out.0"},
        "tiny-sd3": {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"},
    }
    expected |= {"tiny-sdxl": expected["tiny-sd"], "tiny-flux": expected["tiny-sd3"]}
    for name, leaves in expected.items():
        model = adapter(name)
        add_lora(model, rank=1)
        adapted = {key.split(".lora_")[0] for key in model.named_trainable_parameters()}
        own = [key for key in adapted if ".attn." in key or ".attn1." in key]
        assert {key.split(".attn", 1)[1].split(".", 1)[1] for key in own} == leaves


# -- the border --------------------------------------------------------------------------------------------------------
def test_bad_arguments():
    model = adapter("tiny-sd")
    with pytest.raises(ValueError, match="rank"):
        add_lora(model, rank=0)
    with pytest.raises(ValueError, match="no module of UNet2DConditionModel"):
        add_lora(model, targets=["nowhere"])
    with pytest.raises(ValueError, match="no adapter"):
        save_lora(model, "somewhere")
    with pytest.raises(ValueError, match="no adapter"), lora_strength(model, 0.5):
        pass
    add_lora(model, rank=1)
    with pytest.raises(ValueError, match="already"):
        add_lora(model, rank=1)


def test_networks_without_defaults_take_named_targets():
    from surveylib.diffusion.model import DiffusionModel

    model = DiffusionModel()
    model.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="no default LoRA targets for Sequential"):
        add_lora(model)
    x = torch.ones(1, 3)
    before = model.network(x)
    add_lora(model, rank=1, targets=["0", "2"])
    torch.testing.assert_close(model.network(x), before)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.fill_(0.5)
    assert (model.network(x) - before).abs().max() > 0.1
    with model.reference():
        torch.testing.assert_close(model.network(x), before)
    with pytest.raises(ValueError, match=r"no diffusers pipeline.*named_trainable"):
        save_lora(model, "somewhere")


def test_files_that_are_missing_damaged_or_foreign(tmp_path):
    model = adapter("tiny-sd")
    with pytest.raises(FileNotFoundError, match="save_lora"):
        load_lora(model, tmp_path)
    (tmp_path / WEIGHT_FILE).write_bytes(b"not weights")
    with pytest.raises(ValueError, match="damaged"):
        load_lora(model, tmp_path)
    save_lora(trained("tiny-flux"), tmp_path)
    with pytest.raises(ValueError, match="another kind of network"):
        load_lora(model, tmp_path)
    save_lora(trained("tiny-sdxl"), tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        load_lora(model, tmp_path)


def test_an_adapter_of_another_size_is_refused_in_one_line(tmp_path):
    path = save_lora(trained("tiny-sd"), tmp_path)
    weights = load_file(path)
    key = next(key for key in weights if key.endswith("lora_A.weight"))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    given = weights[key].shape[1]
    save_file(weights | {key: torch.zeros(weights[key].shape[0], 4 * given)}, path, metadata)
    with pytest.raises(ValueError, match=f"fits {4 * given} channels at .*, this network has {given}: give") as told:
        load_lora(adapter("tiny-sd"), tmp_path)
    assert "\n" not in str(told.value)
    save_file(weights | {"unet.gone.lora_A.weight": weights[key].clone()}, path, metadata)
    with pytest.raises(ValueError, match="it adapts gone, which this network has not"):
        load_lora(adapter("tiny-sd"), tmp_path)


class Noted(logging.Handler):
    """Keeps the messages in a list."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def emit(self, record):
        self.said.append(record.getMessage())


def test_a_run_folder_loads_and_nothing_is_said_of_text_encoders(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [Noted(said)])
    model = trained("tiny-sd")
    save_lora(model, tmp_path / "adapter")
    again = adapter("tiny-sd")
    load_lora(again, tmp_path)
    assert said == []
    adapter("tiny-sd").pipeline.load_lora_weights(tmp_path / "adapter")
    assert len(said) == 1 and said[0].startswith("No LoRA keys")
    theirs = again.named_trainable_parameters() or dict(again.network.named_parameters())
    assert all(torch.equal(theirs[name], p) for name, p in model.named_trainable_parameters().items())


def test_targets_are_written_in_order(tmp_path):
    with safe_open(save_lora(trained("tiny-sd"), tmp_path), framework="pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["unet.target_modules"] == sorted(TARGETS["UNet2DConditionModel"])
