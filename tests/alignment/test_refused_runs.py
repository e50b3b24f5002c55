"""What cannot begin or go on is refused in one line that names the file, and leaves folders as they were."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from surveylib.alignment import run as runs
from surveylib.alignment.run import PROMPTS_FILE, RECIPE_FILE, Recipe, read_recipe, resume, run
from surveylib.cli import app
from surveylib.techniques.contract import TechniqueError

RECIPE = Recipe("ddpo", "rehearsal", signal="brightness", training={"epochs": 2})


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    out = tmp_path_factory.mktemp("begun") / "x"
    steps = run(RECIPE, out)
    next(steps)
    steps.close()
    return out


@pytest.fixture
def copy(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "copy", ignore=shutil.ignore_patterns(".lock"))


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(runs, "load_model", lambda *given: pytest.fail("a model was loaded before the checks"))


@pytest.mark.parametrize(("file", "content"), [
    ("checkpoint/state.json", "{}"), ("checkpoint/state.json", "[]"), ("checkpoint/state.json", '{"list": 3}'),
    ("checkpoint/state.json", '{"tensor": "gone"}'), ("identity.json", "[]"), ("identity.json", "{"),
    ("metrics.jsonl", '{"reward": 1.0}\n'), ("metrics.jsonl", "3\n"), ("recipe.json", "[]"),
    ("recipe.json", json.dumps({"format": 1, "technique": "ddpo", "config": [1]})),
    ("recipe.json", json.dumps({"format": 1, "technique": "ddpo", "seed": "x"})),
])
def test_a_damaged_file_is_named(copy, file, content):
    (copy / file).write_text(content)
    with pytest.raises(ValueError, match=file.rpartition("/")[2]):
        list(resume(copy))


def test_a_place_that_is_no_folder(tmp_path, no_model):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below" / "x"):
        with pytest.raises(ValueError, match="file is a file"):
            next(run(RECIPE, out))
    assert file.read_text() == "mine"


@pytest.mark.parametrize(("recipe", "words"), [
    (Recipe("ddpo", "rehearsal", signal="nonsense"), "unknown reward"),
    (Recipe("ddpo", "rehearsal", signal="brightness:x=1"), "unexpected keyword"),
    (Recipe("diffusion_dpo", "rehearsal", signal="nonsense"), "unknown preference data"),
    (Recipe("diffusion_dpo", "rehearsal", signal="gone.parquet"), "no preference records"),
    (Recipe("rankdpo", "rehearsal", signal="own:nonsense"), "unknown reward"),
    (Recipe("ddpo", "toy", signal="clip_score:path=gone,local_only=True"), "gone"),
    (Recipe("nonsense", "rehearsal"), "unknown technique"),
    (Recipe("ddpo", "rehearsal", prompts="gone.txt"), "prompts file gone.txt"),
])
def test_before_a_model_is_loaded(tmp_path, no_model, recipe, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        next(run(recipe, tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_prompts_that_recorded_data_would_pass_over(tmp_path, no_model):
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a cat\n")
    with pytest.raises(TechniqueError, match=r"diffusion_dpo learns from the recorded data.*own:"):
        next(run(Recipe("diffusion_dpo", "rehearsal", prompts=str(prompts)), tmp_path / "x"))


def test_a_folder_is_claimed_only_by_a_run_that_was_accepted(tmp_path):
    """A refusal by the technique, by the engine and a kill while it begins; the user's own file stays."""
    out, mine = tmp_path / "x", tmp_path / "x" / PROMPTS_FILE
    out.mkdir()
    mine.write_text("a cat\n\na dog\n")
    for recipe in (Recipe("draft", "rehearsal", signal="jpeg_compressibility", prompts=str(mine)),
                   Recipe("ddpo", "rehearsal", training={"lora_targets": ["gone"]}, prompts=str(mine))):
        with pytest.raises(ValueError):
            next(run(recipe, out))
        assert not (out / RECIPE_FILE).exists() and mine.read_text() == "a cat\n\na dog\n"


def test_no_cost_is_promised_of_a_refused_run(tmp_path):
    found = CliRunner().invoke(app, ["align", "draft", "--scale", "rehearsal", "--reward", "jpeg_compressibility",
                                     "--out", str(tmp_path / "x")])
    assert found.exit_code != 0 and "Expected" not in found.output


def test_an_interrupted_start_leaves_the_folder_free(tmp_path, monkeypatch):
    def interrupted(*given, **options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(runs, "align", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(run(RECIPE, tmp_path / "x"))
    assert not (tmp_path / "x" / RECIPE_FILE).exists()


def test_prompts_of_another_kind_in_the_folder(tmp_path):
    out, prompts = tmp_path / "x", tmp_path / "mine.txt"
    out.mkdir()
    (out / PROMPTS_FILE).write_text("a bird\n")
    prompts.write_text("a cat\n")
    with pytest.raises(ValueError, match="holds other prompts"):
        next(run(Recipe("ddpo", "rehearsal", signal="brightness", prompts=str(prompts)), out))
    assert (out / PROMPTS_FILE).read_text() == "a bird\n"
    assert list(run(RECIPE, out))  # without prompts that file means nothing
    assert read_recipe(out).prompts is None


def test_another_recipe_is_told_by_its_fields(begun):
    with pytest.raises(ValueError, match=r"seed is 0 there and 5 here, training is .*epochs.*: 2"):
        next(run(Recipe("ddpo", "rehearsal", signal="brightness", seed=5, training={"epochs": 3}), begun))
