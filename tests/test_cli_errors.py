"""Bad input on the command line: one line that says what to do, on the error stream, before anything heavy is done."""

import json
import re
import sys
from pathlib import Path

import pytest

from surveylib import cli
from surveylib.alignment.run import PROMPTS_FILE, read_recipe
from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.registry import load_reward

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
])
def test_options_of_sample(monkeypatch, capsys, no_model, options, words):
    assert words in refused(monkeypatch, capsys, "sample", "tiny-sd", "--prompt", "a cat", *options)


@pytest.mark.parametrize(("inside", "words"), [("pipeline", "trained all weights"), ("recipe.json", "is not finished")])
def test_a_run_without_an_adapter(monkeypatch, capsys, tmp_path, no_model, inside, words):
    (tmp_path / inside).mkdir() if inside == "pipeline" else (tmp_path / inside).write_text("{}")
    assert words in refused(monkeypatch, capsys, "sample", "tiny-sd", "--prompt", "a cat", "--adapter", tmp_path,
                            "--out", tmp_path / "x.png")


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
    monkeypatch.setattr("surveylib.evaluation.rows.stale_techniques", lambda folder: ["draft", "rwr"])
    asked = []
    monkeypatch.setattr("surveylib.evaluation.commands.measure_command",
                        lambda techniques, *rest, **more: asked.extend(techniques))
    assert surveylib(monkeypatch, "measure", "--stale", "--technique", "rwr") == 0 and asked == ["rwr"]
    assert surveylib(monkeypatch, "measure", "--stale", "--technique", "ddpo") == 0 and asked == ["rwr"]
    assert "no row is out of date of ddpo" in capsys.readouterr().out
    assert "unknown technique 'nope'" in refused(monkeypatch, capsys, "measure", "--stale", "--technique", "nope")


def test_a_rehearsal_of_a_sampler_takes_the_rehearsal_reward(monkeypatch, capsys, tmp_path):
    asked = []

    def loaded(name, device):
        asked.append(name)
        return load_reward("tiny-pickscore", device)

    monkeypatch.setattr("surveylib.rewards.registry.load_reward", loaded)
    assert surveylib(monkeypatch, "sample", "tiny-sd", "--prompt", "a cat", "--count", 1, "--steps", 2, "--technique",
                     "best_of_n", "--scale", "rehearsal", "--out", tmp_path / "x.png") == 0
    assert asked == ["tiny-pickscore"]


def test_our_own_faults_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda: json.loads(None))
    with pytest.raises(TypeError):
        cli.main()
