"""Run folders and the command line: what is written, what diffusers loads, what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from surveylib.alignment import engine, logs
from surveylib.alignment.engine import AlignmentError
from surveylib.alignment.logs import read_rows
from surveylib.alignment.run import Recipe, read_recipe, resume, run
from surveylib.alignment.settings import setting
from surveylib.alignment.show import parse_settings
from surveylib.cli import app
from surveylib.diffusion.lora import load_lora
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.tiny import tiny_pipeline
from surveylib.diffusion.zoo import load_model
from surveylib.runs.ledger import Ledger
from surveylib.techniques.contract import TechniqueError

RECIPE = Recipe("ddpo", scale="rehearsal", training={"epochs": 2, "lr": 0.05, "lora_alpha": 8.0})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "x"
    list(run(RECIPE, out, pictures_every=1))
    return out


def test_what_a_run_leaves(finished):
    rows = read_rows(finished)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["network_calls"] == 2 * rows[0]["network_calls"]
    assert len(list((finished / "pictures").glob("*.png"))) == 2
    done = json.loads((finished / "done.json").read_text())
    assert done["expected"] and done["actual"]["epoch"] == 2
    assert read_recipe(finished) == RECIPE
    assert list(resume(finished)) == []  # nothing left to do


def test_a_run_killed_before_its_last_word_gets_it_on_resuming(tmp_path, monkeypatch):
    """After the log's row and before the checkpoint, and after the last checkpoint and before `done.json`."""
    save = engine.CheckpointFolder.save

    def killed(folder, state):
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        save(folder, state)

    monkeypatch.setattr(engine.CheckpointFolder, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        list(run(RECIPE, tmp_path))
    monkeypatch.setattr(engine.CheckpointFolder, "save", save)
    monkeypatch.setattr("surveylib.alignment.run.finish", lambda *given: None)
    assert [progress.epoch for progress in resume(tmp_path)] == [2]
    assert [row["epoch"] for row in read_rows(tmp_path)] == [1, 2] and not (tmp_path / "done.json").exists()
    monkeypatch.undo()
    assert list(resume(tmp_path)) == []
    done = json.loads((tmp_path / "done.json").read_text())
    assert done["actual"] == read_rows(tmp_path)[-1] and done["equivalents"] > done["actual"]["network_calls"]


def test_the_running_average_is_written_too(tmp_path):
    """With a decay of 1 the average stays where it was taken, after the first update."""
    out = tmp_path / "x"
    first = Recipe("ddpo", scale="rehearsal", training={**RECIPE.training, "epochs": 1, "updates": 1})
    list(run(first, out))
    list(run(replace(first, training={**first.training, "epochs": 2, "ema": 0.999999}), tmp_path / "y"))
    folders = (out / "adapter", tmp_path / "y" / "adapter_ema", tmp_path / "y" / "adapter")
    after_one, average, end = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in folders)
    assert not (out / "adapter_ema").exists()
    assert all(torch.allclose(average[name], value, atol=1e-5) for name, value in after_one.items())
    assert any((end[name] - value).abs().max() > 1e-3 for name, value in average.items())
    plain = [drawn_by_diffusers(folder) for folder in folders]
    assert torch.allclose(plain[0], plain[1], atol=1e-4) and not torch.allclose(plain[1], plain[2], atol=1e-3)


def test_the_running_average_of_all_weights_is_a_pipeline(tmp_path):
    list(run(Recipe("ddpo", scale="rehearsal", training={**RECIPE.training, "lora_rank": None, "ema": 0.999999}),
             tmp_path))
    end, average = (StableDiffusionPipeline.from_pretrained(tmp_path / folder, safety_checker=None).unet.state_dict()
                    for folder in ("pipeline", "pipeline_ema"))
    assert end.keys() == average.keys() and any((end[name] - average[name]).abs().max() > 1e-3 for name in end)


def test_the_log_keeps_small_numbers():
    progress = engine.Progress(1, {"approx_kl": 5.0254e-8}, [], None, Ledger(), 1)
    assert logs.row_of(progress)["approx_kl"] == 5.0254e-8


def drawn_by_diffusers(folder):
    """Latents that plain diffusers draws with the adapter in `folder`."""
    pipeline: StableDiffusionPipeline = tiny_pipeline("tiny-sd")
    pipeline.load_lora_weights(folder)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model("tiny-sd")
    noise = model.initial_noise(1, torch.Generator().manual_seed(1))
    return pipeline("a cat", num_inference_steps=4, guidance_scale=1.0, latents=noise, output_type="latent",
                    height=model.resolution[0], width=model.resolution[1]).images


def test_the_adapter_draws_the_same_picture_in_plain_diffusers(finished):
    model = load_model("tiny-sd")
    base = sample(model, ["a cat"], steps=4, guidance=1.0, generator=torch.Generator().manual_seed(1))
    load_lora(model, finished / "adapter")
    ours = sample(model, ["a cat"], steps=4, guidance=1.0, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(base, ours, atol=1e-3)
    assert torch.allclose(drawn_by_diffusers(finished / "adapter"), ours, atol=1e-4)


def test_a_stopped_run_goes_on_and_its_log_has_no_double_rows(tmp_path):
    steps = run(RECIPE, tmp_path)
    next(steps)
    steps.close()
    (tmp_path / "metrics.jsonl").write_text(
        (tmp_path / "metrics.jsonl").read_text() + json.dumps({"epoch": 2, "reward": 99.0}) + "\n{cut")
    assert [progress.epoch for progress in resume(tmp_path)] == [2]
    rows = read_rows(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["reward"] != 99.0


def test_a_recipe_says_whether_blocks_are_recomputed(monkeypatch, tmp_path):
    recipe, asked = replace(RECIPE, training={"epochs": 1, "checkpoint": True}), []
    monkeypatch.setattr(engine, "recompute", asked.append)
    assert recipe.preset().training == replace(RECIPE, training={"epochs": 1}).preset().training
    list(run(recipe, tmp_path, tensorboard=False))
    assert len(asked) == 1 and read_recipe(tmp_path).checkpoint and not RECIPE.checkpoint
    with pytest.raises(TechniqueError, match="training checkpoint = 'yes'; allowed: True or False"):
        replace(RECIPE, training={"checkpoint": "yes"}).preset()


@pytest.fixture
def no_tensorboard(monkeypatch):
    """As where the package is not installed."""
    monkeypatch.setattr(logs, "find_spec", lambda name: None)


def test_without_tensorboard_the_log_is_whole_and_the_command_says_what_to_install(no_tensorboard, tmp_path):
    command = ["align", "ddpo", "--scale", "rehearsal", "--out", str(tmp_path / "x"), "--set", "epochs=1"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0 and "pip install tensorboard" in " ".join(found.output.split())
    assert len(read_rows(tmp_path / "x")) == 1 and not (tmp_path / "x" / "tensorboard").exists()


def test_tensorboard_that_was_asked_for_and_is_missing_stops_before_anything_is_done(no_tensorboard, tmp_path):
    with pytest.raises(AlignmentError, match="pip install tensorboard"):
        next(run(RECIPE, tmp_path / "x", tensorboard=True))
    assert not (tmp_path / "x").exists()


def test_event_files_hold_what_the_log_holds(tmp_path):
    list(run(RECIPE, tmp_path / "x", tensorboard=True))
    found = EventAccumulator(str(tmp_path / "x" / "tensorboard")).Reload()
    rows = read_rows(tmp_path / "x")
    assert len(rows) == 2 and "reward" in found.Tags()["scalars"]
    for name in found.Tags()["scalars"]:
        events = found.Scalars(name)
        assert [event.step for event in events] == [row["epoch"] for row in rows]
        assert [event.value for event in events] == pytest.approx([row[name] for row in rows], rel=1e-6, nan_ok=True)


def test_who_declines_tensorboard_is_not_told_to_install_it(no_tensorboard, tmp_path):
    command = ["align", "ddpo", "--scale", "rehearsal", "--out", str(tmp_path / "x"), "--set", "epochs=1",
               "--no-tensorboard"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0 and "pip install" not in found.output


def test_another_recipe_is_refused(finished):
    with pytest.raises(ValueError, match="another recipe"):
        next(run(Recipe("ddpo", scale="rehearsal", seed=5), finished))


def test_no_run_and_a_damaged_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps({"format": 77}))
    with pytest.raises(ValueError, match="format 77"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be used"):
        read_recipe(tmp_path)


def test_settings_from_the_command_line():
    config, training = parse_settings("ddpo", ["steps=7", "lr=1e-3", "estimator=sf", "betas=(0.9, 0.98)"])
    assert config == {"steps": 7, "estimator": "sf"}
    assert training == {"lr": 1e-3, "betas": (0.9, 0.98)}
    assert parse_settings("ddpo", ["checkpoint=True"]) == ({}, {"checkpoint": True})
    assert parse_settings("draft", ["checkpoint=True"]) == ({"checkpoint": True}, {})  # of its own
    with pytest.raises(TechniqueError, match="checkpoint = 1; allowed: True or False"):
        parse_settings("ddpo", ["checkpoint=1"])
    with pytest.raises(TechniqueError, match="no such setting"):
        parse_settings("ddpo", ["nonsense=1"])
    with pytest.raises(TechniqueError, match="name=value"):
        parse_settings("ddpo", ["steps"])
    with pytest.raises(TechniqueError, match="no training field 'nonsense'"):
        Recipe("ddpo", training={"nonsense": 1}).preset()


def test_the_command_line(tmp_path):
    out, runner = tmp_path / "x", CliRunner()
    found = runner.invoke(app, ["align", "ddpo", "--scale", "rehearsal", "--out", str(out), "--set", "epochs=1"])
    assert found.exit_code == 0, found.output
    assert "Expected:" in found.output and "network calls" in found.output
    found = runner.invoke(app, ["resume", str(out)])
    assert "nothing left to do" in found.output
    picture = tmp_path / "x.png"
    found = runner.invoke(app, ["sample", "tiny-sd", "--prompt", "a cat", "--adapter", str(out), "--count", "1",
                                "--steps", "2", "--out", str(picture)])
    assert found.exit_code == 0, found.output
    assert picture.exists()
    rows = json.loads(runner.invoke(app, ["techniques", "--json"]).output)
    assert {"name", "family", "needs", "schedules", "presets"} == set(rows[0])


@pytest.mark.parametrize("family", ["vp", "flow"])
def test_rehearsal_setting(family):
    place = setting("rehearsal", family)
    pictures = place.model.decode(place.model.initial_noise(2, torch.Generator().manual_seed(0)), clamp=True)
    assert place.proxy(pictures, place.train_prompts[:2]).shape == (2,)
    assert place.gold is None
    assert all(reward(pictures, place.test_prompts[:2]).shape == (2,) for reward in place.held_out.values())


def test_toy_setting():
    place = setting("toy")
    assert len(place.train_prompts) > 100 and place.gold is not None
    assert not set(place.train_prompts) & set(place.test_prompts)
    with pytest.raises(ValueError, match="unknown family"):
        setting("toy", "gan")


def test_sampling_with_a_sampler(tmp_path):
    picture, runner = tmp_path / "x.png", CliRunner()
    command = ["sample", "tiny-sd", "--prompt", "a cat", "--count", "2", "--steps", "2", "--out", str(picture)]
    found = runner.invoke(app, [*command, "--technique", "best_of_n", "--reward", "brightness", "--scale", "toy"])
    assert found.exit_code == 0, found.output
    assert "64 network calls" in " ".join(found.output.split())  # 16 candidates x 2 steps x 2 branches
    assert picture.exists()
    found = runner.invoke(app, [*command, "--technique", "ddpo"])
    assert isinstance(found.exception, TechniqueError) and "surveylib align ddpo" in str(found.exception)
