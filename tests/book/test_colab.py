"""Notebooks for Colab: each where its button points, with a first cell that sets a fresh machine up."""

import importlib.util
import os
import re
import sys

import nbformat
import pytest
from colab import ROOT, repository, write
from IPython.core.inputtransformer2 import TransformerManager
from survey_book import colab_ipynb

URL = "https://github.com/somebody/survey"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("colab")
    return out, write(out, URL)


def test_every_chapter_is_where_its_button_points(written):
    out, notebooks = written
    for chapter in (ROOT / "chapters").glob("*/*.md"):
        page = chapter.relative_to(ROOT).as_posix()
        button = {"url": f"https://colab.research.google.com/github/somebody/survey/blob/main/{page}"}
        colab_ipynb(None, None, None, {"header_buttons": [button]}, None)
        assert out / button["url"].split("/blob/notebooks/")[1] in notebooks
    for notebook in notebooks:
        nbformat.validate(nbformat.read(notebook, 4))


def run_first_cell(notebook) -> list[str]:
    """What the cell asks the shell and pip for."""
    asked = []

    class Shell:
        def system(self, command):
            asked.append(command)

        def run_line_magic(self, name, line):
            asked.append(f"{name} {line}")

    code = TransformerManager().transform_cell(nbformat.read(notebook, 4).cells[0].source)
    exec(code, {"get_ipython": Shell})
    return asked


def test_a_fresh_machine_is_set_up_and_another_left_alone(written, monkeypatch, tmp_path):
    _, [*_, notebook] = written
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run_first_cell(notebook) == [] and os.getcwd() == str(tmp_path)
    folder = tmp_path / "survey" / "chapters" / notebook.parent.name
    folder.mkdir(parents=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    clone, install = run_first_cell(notebook)
    assert clone.startswith("git clone") and clone.endswith(f"{URL} survey")
    assert install == 'pip install --quiet -e "survey[book]"'
    assert os.getcwd() == str(folder) and sys.path[0] == str(tmp_path / "survey")


def test_nothing_else_is_overwritten_and_an_address_is_asked_for(written, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="more than notebooks"):
        write(tmp_path, URL)
    out, notebooks = written
    assert write(out, URL) == notebooks  # again, over its own
    config, text = tmp_path / "_config.yml", (ROOT / "_config.yml").read_text(encoding="utf-8")
    for url in ("", URL):
        config.write_text(re.sub(r'^  url: .*$', f'  url: "{url}"', text, count=1, flags=re.M), encoding="utf-8")
        if url:
            assert repository(config) == URL
        else:
            with pytest.raises(ValueError, match=r"repository\.url in _config\.yml is empty"):
                repository(config)
