"""Bad input on the command line: one line that says what to do, on the error stream, before anything heavy is done."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from surveylib import cli
from surveylib.alignment.processes import leave_group
from surveylib.alignment.run import PROMPTS_FILE, read_recipe
from surveylib.diffusion.lora import add_lora, save_lora
from surveylib.diffusion.tiny import TINY
from surveylib.diffusion.zoo import FULL_SCALE, load_model
from surveylib.evaluation.protocol import Budget, Protocol
from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.registry import load_reward
from surveylib.techniques.contract import Sampler
from surveylib.techniques.registry import technique_class, technique_names

PAGE = (Path(__file__).parents[1] / "book" / "run.md").read_text(encoding="utf-8")
MINE = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def Darkness" in code)
MORE = """
number = 3

def Scaled(scale):
    return FunctionReward(lambda pictures, prompts: float(scale) * pictures.mean((1, 2, 3)), "scaled", True, False)
"""


def surveylib(monkeypatch, *arguments) -> int:
    """The exit code of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["surveylib", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def refused(monkeypatch, capsys, *arguments) -> str:
    """The message of a refused command."""
    code, said = surveylib(monkeypatch, *arguments), capsys.readouterr()
    assert code == 2 and "error:" in said.err and "error:" not in said.out and "Traceback" not in said.err
    return " ".join(said.err.split())


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""
    def load_model(*given, **options):
        raise AssertionError("a model was loaded before the options were checked")

    for place in ("diffusion.zoo", "alignment.run"):
        monkeypatch.setattr(f"surveylib.{place}.load_model", load_model)


@pytest.mark.parametrize(("options", "words"), [
    (["--reward", "brightness"], "--reward belong to a sampler"),
    (["--strength", "0.2"], "--strength 0.2 is that of an adapter"),
    (["--technique", "nope"], "nope"),
    (["--out", "gone/x.png"], "in a folder that exists"),
    (["--out", "x.jpg"], "ending in .png"),
    (["--technique", "ddpo"], "surveylib align ddpo"),
    (["--technique", "best_of_n", "--reward", "nope"], "unknown reward"),
    (["--technique", "best_of_n", "--scale", "huge"], "unknown scale"),
    (["--adapter", "gone"], "--adapter gone: there is no such"),
    (["--adapter", ".", "--strength", "inf"], "--strength inf must be a finite number"),
])
def test_options_of_sample(monkeypatch, capsys, no_model, options, words):
    assert words in refused(monkeypatch, capsys, "sample", "tiny-sd", "--prompt", "a cat", *options)


@pytest.mark.parametrize(("inside", "words"), [("pipeline", "trained all weights"), ("recipe.json", "is not finished")])
def test_a_run_without_an_adapter(monkeypatch, capsys, tmp_path, no_model, inside, words):
    (tmp_path / inside).mkdir() if inside == "pipeline" else (tmp_path / inside).write_text("{}")
    assert words in refused(monkeypatch, capsys, "sample", "tiny-sd", "--prompt", "a cat", "--adapter", tmp_path,
                            "--out", tmp_path / "x.png")


def test_a_run_given_as_a_model(monkeypatch, capsys, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    said = refused(monkeypatch, capsys, "sample", tmp_path, "--prompt", "a cat", "--out", tmp_path / "x.png")
    assert f"surveylib sample MODEL --adapter {tmp_path}" in said


def test_a_strength_that_is_too_large_writes_no_picture(monkeypatch, capsys, tmp_path):
    model = load_model("tiny-sd")
    add_lora(model, 2)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.fill_(1.0)
    save_lora(model, tmp_path)
    said = refused(monkeypatch, capsys, "sample", "tiny-sd", "--prompt", "a cat", "--count", 1, "--steps", 2,
                   "--adapter", tmp_path, "--strength", "1e30", "--out", tmp_path / "x.png")
    assert "--strength 1e+30 is too large" in said and not (tmp_path / "x.png").exists()


def test_a_seed_beyond_64_bits_and_an_empty_run_folder(monkeypatch, capsys, tmp_path, no_model):
    for start in (["sample", "tiny-sd", "--prompt", "a cat", "--out", tmp_path / "x.png"],
                  ["align", "ddpo", "--out", tmp_path / "x"]):
        assert surveylib(monkeypatch, *start, "--seed", 2**63) == 2
        assert str(2**63 - 1) in capsys.readouterr().err
    assert "--out is empty" in refused(monkeypatch, capsys, "align", "ddpo", "--scale", "rehearsal", "--out", "")


@pytest.mark.parametrize("command", ["techniques", "models"])
def test_names_in_tables_are_whole_in_a_narrow_terminal(monkeypatch, capsys, command):
    monkeypatch.setattr(cli, "console", Console(width=80))
    assert surveylib(monkeypatch, command) == 0
    said = capsys.readouterr().out
    assert "…" not in said
    assert all(f" {name} " in said for name in (technique_names() if command == "techniques" else [*TINY, *FULL_SCALE]))


@pytest.mark.parametrize(("content", "words"), [
    (None, "No such file"), (b"\xff\xfe", "can't decode"), (b"\n \n", "no prompt")])
def test_prompts_that_cannot_be_used(monkeypatch, capsys, tmp_path, no_model, content, words):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    start = ["align", "ddpo", "--scale", "rehearsal", "--out", tmp_path / "x", "--prompts"]
    said = refused(monkeypatch, capsys, *start, file)
    assert words in said and "prompts.txt" in said
    assert "prompts file" in refused(monkeypatch, capsys, *start, tmp_path)


@pytest.mark.parametrize("key", [
    "hpd_v1", "hpd_v2", "hpd_v3", "imagerewarddb", "richhf18k", "simulacra", "visionprefer"])
def test_data_that_must_be_downloaded(monkeypatch, capsys, tmp_path, no_model, key):
    start = ["align", "diffusion_dpo", "--scale", "rehearsal", "--out", tmp_path, "--reward"]
    said = refused(monkeypatch, capsys, *start, key)
    assert "was not found" in said and f"Looked for: {key}/" in said and f"{key}:FOLDER" in said
    said = refused(monkeypatch, capsys, *start, f"{key}:{tmp_path / 'gone'}")
    assert "gone" in said  # the loader's own error


def test_a_refused_run_leaves_its_folder_free_and_names_what_differs(monkeypatch, capsys, tmp_path):
    start = ["align", "draft", "--scale", "rehearsal", "--out", tmp_path]
    assert "differentiable" in refused(monkeypatch, capsys, *start, "--reward", "jpeg_compressibility")
    assert surveylib(monkeypatch, *start, "--reward", "brightness", "--set", "epochs=1") == 0
    capsys.readouterr()
    said = refused(monkeypatch, capsys, *start, "--reward", "colourfulness", "--set", "epochs=1")
    assert "signal is 'brightness' there and 'colourfulness' here" in said


def test_a_reward_and_prompts_of_ones_own(monkeypatch, capsys, tmp_path):
    (tmp_path / "my_rewards.py").write_text(MINE + MORE)
    prompts = tmp_path / "mine.txt"
    prompts.write_text("\ufeffa cat\n\na dog\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    wrong = {"my_rewards:Gone": "Gone", "gone_module:X": "gone_module", "my_rewards:number": "not callable"}
    for name, words in wrong.items():
        code = surveylib(monkeypatch, "align", "ddpo", "--scale", "rehearsal", "--out", "x", "--reward", name)
        assert code == 2 and words in capsys.readouterr().err
    assert surveylib(monkeypatch, "align", "ddpo", "--scale", "rehearsal", "--out", "x", "--prompts", prompts,
                     "--reward", "my_rewards:Scaled:scale=2", "--set", "epochs=1") == 0
    assert read_recipe("x").signal == "my_rewards:Scaled:scale=2"
    assert Path("x", PROMPTS_FILE).read_text().split("\n")[:2] == ["a cat", "a dog"]
    prompts.unlink()  # the run has its own copy
    assert surveylib(monkeypatch, "resume", "x") == 0
    assert "finished" in capsys.readouterr().out
    assert isinstance(load_reward("my_rewards:Darkness"), FunctionReward)


def test_the_aesthetic_head_is_looked_for_where_the_message_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SURVEYLIB_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_reward("aesthetic")
    (tmp_path / "sac+logos+ava1-l14-linearMSE.pth").write_bytes(b"no head")
    with pytest.raises(ValueError):
        load_reward("aesthetic")  # found, and read
    with pytest.raises(FileNotFoundError, match="gone"):
        load_reward("aesthetic:head=gone.pth")


@pytest.mark.parametrize(("options", "words"), [
    (["tiny-sd"], "pictures of 32 x 32 pixels and the judge reads 64 x 64"),
    (["shapes-sd", "--rows", "gone/rows.jsonl"], "in a folder that exists"),
    (["shapes-sd", "--suite", "nope"], "unknown suite"),
])
def test_judging_is_refused_before_pictures_are_drawn(monkeypatch, capsys, options, words):
    monkeypatch.setattr("surveylib.worlds.shapes.suites.score_model", lambda *given: pytest.fail("drawn"))
    assert words in refused(monkeypatch, capsys, "judge", *options)


def test_the_optional_package_of_a_reward_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    said = refused(monkeypatch, capsys, "align", "ddpo", "--scale", "rehearsal", "--out", tmp_path / "x", "--reward",
                   "ocr")
    assert "pip install 'surveylib[rewards]'" in said and not (tmp_path / "x").exists()


def test_a_run_folder_that_is_a_file(monkeypatch, capsys, tmp_path, no_model):
    (tmp_path / "x").write_text("")
    said = refused(monkeypatch, capsys, "align", "ddpo", "--scale", "rehearsal", "--out", tmp_path / "x")
    assert "a run needs a folder" in said


def test_rows_are_those_of_the_book_wherever_the_command_is_started(monkeypatch, capsys, tmp_path):
    asked = []

    def curves(*given, folder, **more):
        asked.append(folder)
        return []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("surveylib.evaluation.commands.report_command", lambda folder, *rest: asked.append(folder))
    monkeypatch.setattr("surveylib.evaluation.equal_cost.equal_cost", curves)
    assert surveylib(monkeypatch, "report") == surveylib(monkeypatch, "equal-cost") == 0
    book = Path(__file__).parents[1] / "book" / "measurements"
    assert asked == [book, book / "equal_cost"]


@pytest.mark.parametrize("command", [["report", "--folder"], ["measure", "--stale", "--out"]])
def test_a_folder_without_rows(monkeypatch, capsys, tmp_path, command):
    assert "no result rows in" in refused(monkeypatch, capsys, *command, tmp_path)


def test_only_the_measured_techniques_that_were_asked_for_are_repeated(monkeypatch, capsys):
    found = [(name, "toy", Budget(5, 5), (0,), Protocol()) for name in ("draft", "rwr")]
    monkeypatch.setattr("surveylib.evaluation.commands.stale_measurements", lambda folder: found)
    asked = []
    monkeypatch.setattr("surveylib.evaluation.commands.measure",
                        lambda techniques, *rest, **more: asked.extend(techniques) or ())
    assert surveylib(monkeypatch, "measure", "--stale", "--technique", "rwr") == 0 and asked == ["rwr"]
    assert surveylib(monkeypatch, "measure", "--stale", "--technique", "ddpo") == 0 and asked == ["rwr"]
    assert "no row is out of date of ddpo" in capsys.readouterr().out
    assert "unknown technique 'nope'" in refused(monkeypatch, capsys, "measure", "--stale", "--technique", "nope")


def test_rows_out_of_date_are_repeated_with_their_own_seeds_budget_and_scale(monkeypatch, capsys, tmp_path):
    book = Path(__file__).parents[1] / "book" / "measurements"
    base, rwr, ddpo = (json.loads((book / f"{name}.json").read_text())
                       for name in ("base-seed0-shapes-sd", "rwr-seed0-preset", "ddpo-seed0-preset"))
    rows = {"base-seed0-shapes-sd": base, "rwr-seed0-preset": rwr}
    rows |= {f"ddpo-seed{seed}-preset": ddpo | {"seed": seed} for seed in range(3)}
    for name, row in rows.items():
        row["budget"] = row.get("budget", {}) | {"training": 77}
        row["protocol"] = row["protocol"] | {"sheet": 3}  # another one than the scale's present protocol
        row["hashes"] = row["hashes"] | ({"rule": "another"} if name.startswith("ddpo-seed1") else {})
        (tmp_path / f"{name}.json").write_text(json.dumps(row))
    asked = []
    monkeypatch.setattr("surveylib.evaluation.commands.measure",
                        lambda names, seeds, budget, **more: asked.append((names, tuple(seeds), budget, more)) or ())
    monkeypatch.setattr("surveylib.evaluation.rows.differences",
                        lambda row, identity: ["rule"] if row["hashes"]["rule"] == "another" else [])
    assert surveylib(monkeypatch, "measure", "--stale", "--out", tmp_path) == 0
    assert [(names, seeds, budget.training, more["scale"]) for names, seeds, budget, more in asked] == [
        (["ddpo"], (0, 1, 2), 77, "toy")]
    assert asked[0][3]["protocol"] == replace(Protocol(**ddpo["protocol"]), sheet=3)
    assert "leave --seeds out" in refused(monkeypatch, capsys, "measure", "--stale", "--seeds", 3, "--out", tmp_path)


def test_several_techniques_with_commas(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("surveylib.evaluation.commands.measure", lambda names, *rest, **more: asked.extend(names) or ())
    assert surveylib(monkeypatch, "measure", "--techniques", "rwr,draft", "--technique", "raft", "--out", tmp_path) == 0
    assert asked == ["rwr", "draft", "raft"]


def test_the_model_of_sample_by_place_or_by_option(monkeypatch, capsys, tmp_path):
    out = ("--prompt", "a cat", "--count", 1, "--steps", 1, "--out", tmp_path / "x.png")
    assert surveylib(monkeypatch, "sample", "--model", "tiny-sd", *out) == 0
    assert "name one model" in refused(monkeypatch, capsys, "sample", "tiny-sd", "--model", "tiny-sd", *out)
    assert "name one model" in refused(monkeypatch, capsys, "sample", *out)
    assert "--prompt" in refused(monkeypatch, capsys, "sample", "tiny-sd", "--out", tmp_path / "x.png")


SAMPLERS = [name for name in technique_names() if issubclass(technique_class(name), Sampler)]


@pytest.mark.parametrize("technique", SAMPLERS)
def test_every_sampler_draws_from_the_command_line(technique, monkeypatch, tmp_path):
    out = tmp_path / "x.png"
    assert surveylib(monkeypatch, "sample", "tiny-sd", "--prompt", "a cat", "--count", 1, "--steps", 3, "--technique",
                     technique, "--scale", "rehearsal", "--out", out) == 0 and out.is_file()


def test_words_that_a_shapes_model_never_saw_are_named(monkeypatch, capsys, tmp_path):
    for more in ((), ("--technique", "best_of_n", "--reward", "brightness")):
        with pytest.warns(UserWarning) as found:
            surveylib(monkeypatch, "sample", "shapes-sd", "--prompt", "a purple-ish unicorn", "--count", 1, "--steps",
                      1, "--out", tmp_path / "x.png", *more)
        [said] = [str(warning.message) for warning in found if "unicorn" in str(warning.message)]  # once
        assert "never saw: purple-ish, unicorn." in said


def test_full_scale_without_a_gpu_is_refused_before_a_reward_is_loaded(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("surveylib.alignment.run.load_reward", lambda name: pytest.fail("loaded a reward"))
    for technique in ("ddpo", "draft", "flow_grpo"):
        said = refused(monkeypatch, capsys, "align", technique, "--scale", "full", "--out", tmp_path / technique)
        assert "there is no GPU" in said and "Nothing was loaded" in said


@pytest.mark.parametrize("role, name", [("proxy", "tiny-pickscore"), ("held-out", "tiny-hps_v2.1")])
def test_rewards_by_their_role(role, name, monkeypatch, capsys, tmp_path):
    asked = []

    def loaded(name):
        asked.append(name)
        raise ValueError("enough")

    monkeypatch.setattr("surveylib.alignment.run.load_reward", loaded)
    refused(monkeypatch, capsys, "align", "ddpo", "--scale", "rehearsal", "--reward", role, "--out", tmp_path / "x")
    assert asked == [name]
    said = refused(monkeypatch, capsys, "align", "ddpo", "--scale", "rehearsal", "--reward", "gold", "--out", tmp_path)
    assert "only people could say" in said


def test_a_rehearsal_of_a_sampler_takes_the_rehearsal_reward(monkeypatch, capsys, tmp_path):
    asked = []

    def loaded(name, device):
        asked.append(name)
        return load_reward("tiny-pickscore", device)

    monkeypatch.setattr("surveylib.rewards.registry.load_reward", loaded)
    assert surveylib(monkeypatch, "sample", "tiny-sd", "--prompt", "a cat", "--count", 1, "--steps", 2, "--technique",
                     "best_of_n", "--scale", "rehearsal", "--out", tmp_path / "x.png") == 0
    assert asked == ["tiny-pickscore"]


def test_pictures_drawn_a_few_at_a_time_are_the_same(monkeypatch, tmp_path):
    drawn = []
    for more in ((), ("--batch", 2)):
        out = tmp_path / f"{len(more)}.png"
        assert surveylib(monkeypatch, "sample", "tiny-sd", "--prompt", "a cat", "--prompt", "a dog", "--count", 2,
                         "--steps", 4, "--out", out, *more) == 0
        drawn.append(np.asarray(Image.open(out)).astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1  # of 255: sums in another order


@pytest.mark.parametrize("options, words", [
    ((), "out of memory with 4 pictures at a time: give a smaller --batch"),
    (("--batch", 2), "out of memory with 2 pictures at a time: give a smaller --batch"),
    (("--batch", 1), "out of memory with 1 picture at a time: take a smaller model"),
    (("--technique", "best_of_n", "--reward", "brightness", "--batch", 3), "with 3 pictures at a time: give a smaller"),
])
def test_memory_that_runs_out_while_drawing_is_told(options, words, monkeypatch, capsys, tmp_path):
    seen = []

    def full(self, noise, *args, **kwargs):
        seen.append(len(noise))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("surveylib.diffusion.pipelines.PipelineModel.decode", full)
    said = refused(monkeypatch, capsys, "sample", "tiny-sd", "--prompt", "a cat", "--count", 4, "--steps", 4, "--out",
                   tmp_path / "x.png", *options)
    assert words in said
    assert seen == [options[-1] if options else 4]


def test_a_failed_command_does_not_wait_for_other_processes(monkeypatch, capsys):
    left = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: left.append(True))
    monkeypatch.setattr(sys, "last_value", None, raising=False)
    leave_group()
    assert left == [True]
    refused(monkeypatch, capsys, "judge", "shapes-ds")
    leave_group()
    assert left == [True]


def test_our_own_faults_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda: json.loads(None))
    with pytest.raises(TypeError):
        cli.main()
