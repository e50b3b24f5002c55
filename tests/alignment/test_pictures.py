"""Sheets of techniques whose batches bring no pictures: at the right epochs, and the training knows nothing of them."""

import pytest
import torch
from safetensors.torch import load_file

from surveylib.alignment.logs import read_rows
from surveylib.alignment.pictures import draw_pictures, evaluating, sheet_due, shown_prompts
from surveylib.alignment.run import Recipe, resume, run
from surveylib.diffusion.lora import add_lora
from surveylib.diffusion.zoo import load_model

SMALL = {"epochs": 4, "samples": 2, "micro_batch": 2, "sample_batch": 4, "lr": 0.01}
COSTS = ("network_calls", "backward_passes", "decodes", "reward_calls")


def sheets(out):
    return sorted(path.name for path in (out / "pictures").glob("*"))


@pytest.fixture
def few_steps(monkeypatch):
    """The tiny model is drawn in four steps."""
    monkeypatch.setattr("surveylib.alignment.run.load_model", lambda *given: _with_steps(load_model(*given)))


def _with_steps(model):
    model.default_steps = 4
    return model


@pytest.mark.parametrize("technique", ["draft", "diffusion_dpo"])
def test_sheets_come_when_due_and_change_neither_weights_nor_costs(few_steps, tmp_path, technique):
    recipe = Recipe(technique, "rehearsal", training=SMALL)
    drawn, plain = tmp_path / "drawn", tmp_path / "plain"
    steps = run(recipe, drawn, pictures_every=3, tensorboard=False)
    first = next(steps)
    assert first.pictures.shape[:2] == (8, 3) and len(set(first.prompts)) == 8
    steps.close()
    assert [progress.pictures is None for progress in resume(drawn, pictures_every=3, tensorboard=False)] == [
        True, True, False]
    list(run(recipe, plain, pictures_every=0, tensorboard=False))
    assert sheets(drawn) == ["epoch-00001.png", "epoch-00004.png"] and sheets(plain) == []
    a, b = (load_file(out / "adapter" / "pytorch_lora_weights.safetensors") for out in (drawn, plain))
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
    assert any(value.abs().max() > 0 for name, value in a.items() if "lora_B" in name or "lora.up" in name)
    assert [[row[name] for name in COSTS] for row in read_rows(drawn)] == [
        [row[name] for name in COSTS] for row in read_rows(plain)]


def model_with_adapter():
    model = _with_steps(load_model("tiny-sd"))
    add_lora(model, 2)
    return model


def test_the_noise_is_fixed_and_no_other_random_state_is_moved():
    model, prompts = model_with_adapter(), ["a cat", "a dog", "a bird"]
    before = torch.get_rng_state()
    pictures = draw_pictures(model, prompts, 3, 8)
    assert torch.equal(before, torch.get_rng_state())
    assert pictures.shape[:2] == (3, 3) and not pictures.requires_grad and 0 <= pictures.min() <= pictures.max() <= 1
    torch.rand(5)
    assert torch.equal(pictures, draw_pictures(model, prompts, 3, 8))
    assert torch.allclose(pictures, draw_pictures(model, prompts, 3, 2), atol=1e-5)
    assert not torch.allclose(pictures, draw_pictures(model, prompts, 4, 8), atol=1e-2)


def test_the_adapter_is_on():
    model = model_with_adapter()
    before = draw_pictures(model, ["a cat"], 3, 8)
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(0.5)
    assert (before - draw_pictures(model, ["a cat"], 3, 8)).abs().max() > 1e-2


def test_the_network_is_in_evaluation_mode_and_then_as_it_was():
    model, seen = model_with_adapter(), []
    block = model.network.down_blocks[0]
    block.train()
    block.resnets[0].eval()
    model.network.register_forward_hook(lambda network, args, output: seen.append(
        any(module.training for module in network.modules()) or torch.is_grad_enabled()))
    modes = [module.training for module in model.network.modules()]
    draw_pictures(model, ["a cat"], 3, 8)
    assert seen and not any(seen)
    assert any(modes) and modes == [module.training for module in model.network.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(model.network):
        raise ZeroDivisionError
    assert modes == [module.training for module in model.network.modules()]


def test_which_epochs_and_which_prompts():
    assert [epoch for epoch in range(1, 12) if sheet_due(epoch, 5)] == [1, 6, 11]
    assert not any(sheet_due(epoch, 0) for epoch in range(1, 12))
    prompts = [str(i) for i in range(80)]
    assert shown_prompts(prompts) == ["0", "10", "20", "30", "40", "50", "60", "70"]
    assert shown_prompts(prompts[:3]) == ["0", "1", "2"]
