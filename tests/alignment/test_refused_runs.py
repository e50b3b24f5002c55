"""What cannot begin or go on is refused in one line that names the file, and leaves folders as they were."""

import json
import shutil
from dataclasses import replace

import pytest
from alignment.small import small_run
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
    with pytest.raises(ValueError, match=r"holds no run, but prompts\.txt: .*this name"):  # resuming would read it
        next(run(RECIPE, out))
    assert (out / PROMPTS_FILE).read_text() == "a bird\n"


@pytest.mark.parametrize("names", [
    ["reference-2", "checkpoint.new"], ["checkpoint"], ["adapter_ema"], ["pipeline"], ["pictures"], ["metrics.jsonl"],
    ["done.json"]])
def test_files_of_something_else_are_kept(tmp_path, no_model, names):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("mine")
    with pytest.raises(ValueError, match=f"holds no run, but {', '.join(sorted(names))}: .*[Cc]hoose another folder"):
        next(run(RECIPE, tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name / "f").read_text() == "mine" for name in names)


def test_the_engine_alone_keeps_them_too_and_goes_on_without_a_recipe(tmp_path):
    (tmp_path / "mine" / "reference-2").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no run, but reference-2"):
        next(small_run(tmp_path / "mine")[1])
    assert (tmp_path / "mine" / "reference-2").is_dir()
    (tmp_path / "x" / "my-notes").mkdir(parents=True)
    assert next(small_run(tmp_path / "x")[1]).epoch == 1
    assert [progress.epoch for progress in small_run(tmp_path / "x")[1]] == [2, 3]


def test_an_empty_place_and_a_seed_that_is_too_large(no_model):
    with pytest.raises(ValueError, match="--out is empty"):
        run(RECIPE, "")
    with pytest.raises(TechniqueError, match="seed 9223372036854775808 is too large"):
        Recipe("ddpo", "rehearsal", seed=2**63).preset()


def test_settings_of_memory_may_change_on_the_way_and_the_recipe_has_them(begun, tmp_path):
    out = shutil.copytree(begun, tmp_path / "free", ignore=shutil.ignore_patterns(".lock"))
    training = {"epochs": 2, "micro_batch": 1, "sample_batch": 2, "checkpoint": True}
    assert [progress.epoch for progress in run(replace(RECIPE, training=training), out)] == [2]
    assert read_recipe(out).training == training and read_recipe(out).checkpoint
    with pytest.raises(ValueError, match=r"training is .*'lr': 0\.5"):
        run(replace(RECIPE, training=training | {"lr": 0.5}), out)


def test_another_recipe_is_told_by_its_fields(begun):
    with pytest.raises(ValueError, match=r"seed is 0 there and 5 here, training is .*epochs.*: 2"):
        next(run(Recipe("ddpo", "rehearsal", signal="brightness", seed=5, training={"epochs": 3}), begun))
