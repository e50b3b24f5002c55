"""The command line, as a user types it."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from surveylib.cli import app


def run(*words, **environment):
    command = [sys.executable, "-m", "surveylib.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "160", **environment})


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    names = [found.name or found.callback.__name__ for found in app.registered_commands]
    listed = {line.split()[1] for line in done.stdout.splitlines() if len(line.split()) > 2}
    assert len(names) >= 11 and set(names) <= listed


def test_list_json_is_a_list_of_cards():
    done = run("list", "--json")
    cards = json.loads(done.stdout)
    assert done.returncode == 0 and len(cards) > 100
    assert all({"key", "name", "family", "paper", "section", "status", "module"} <= set(card) for card in cards)
    running = json.loads(run("list", "--json", "--status", "runs").stdout)
    assert {card["key"] for card in running} == {card["key"] for card in cards if card["status"] == "runs"}


def test_models_json_says_what_is_ready():
    rows = {row["name"]: row for row in json.loads(run("models", "--json").stdout)}
    assert rows["shapes-sd"]["ready"] and rows["sd3.5-medium"]["kind"] == "full scale"


def test_sample_writes_one_row_a_prompt(tmp_path):
    out = tmp_path / "p.png"
    done = run("sample", "shapes-sd", "--prompt", "a red circle", "--prompt", "two stars", "--count", "3",
               "--steps", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (3 * 64, 2 * 64)


def test_judge_prints_all_categories(tmp_path):
    rows = tmp_path / "rows.jsonl"
    done = run("judge", "shapes-sd", "--per-category", "1", "--pictures", "1", "--steps", "2", "--json",
               "--rows", str(rows))
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)["table"]
    assert {"overall", "counting", "colour attribution"} <= set(table)
    assert len(rows.read_text().splitlines()) == 7


@pytest.mark.parametrize("words, names", [
    (("judge", "shapes-ds"), ("shapes-ds", "shapes-sd", "sd1.5")),
    (("judge", "shapes-sd", "--suite", "test"), ("test", "held-out", "generalisation")),
    (("list", "--status", "done"), ("done", "runs", "planned")),
])
def test_a_mistake_is_one_line_that_names_what_exists(words, names):
    done = run(*words)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    assert all(name in " ".join(done.stderr.split()) for name in names) and not done.stdout
