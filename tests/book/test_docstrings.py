"""The API page: docstrings written for readers of the source become valid reStructuredText, nothing lost."""

import docstrings
import pytest


def processed(text: str) -> str:
    lines = text.splitlines()
    docstrings.process(None, "function", "f", None, None, lines)
    return "\n".join(lines)


@pytest.mark.parametrize("text, expected", [
    ("uses `x` here", "uses ``x`` here"),
    ("already ``x`` here", "already ``x`` here"),
    ("x_t = a*x0 + s*eps", r"x_t = a\*x0 + s\*eps"),
    ("p(x|c) and x_ alone", r"p(x\|c) and x\_ alone"),
    ("a role :math:`x_t` stays", "a role :math:`x_t` stays"),
    ("**bold** stays", "**bold** stays"),
])
def test_prose_is_made_safe(text, expected):
    assert processed(text) == expected


def test_result_is_valid_for_awkward_prose():
    text = "Return *args and **kwargs, `a` | `b`, x_ , y__ and |z|.\n\n- one `x`\n- two a*b"
    assert not docstrings.faults(processed(text))


def test_what_cannot_be_saved_is_shown_as_it_stands():
    text = "Heading\n  x:   one\n        two\n   three ====\n ---"
    shown = processed(text)
    assert docstrings.faults(text) and not docstrings.faults(shown)
    assert all(line.strip() in shown for line in text.splitlines())


def test_examples_and_equations_are_left_alone():
    text = "Say it.\n\n>>> f(*a)\n3\n\n.. math:: x_t = a * b_|c|"
    assert processed(text) == text


def test_entries_that_share_a_line_are_told_apart():
    def draw(model, steps: int, seed: int, out: str):
        """"""

    lines = ["Draws.", "", "Args:", "    model, steps: see above. seed: names",
             "        the noise, as in a: b. out: folder. It is made.", "", "After it. steps: stay."]
    docstrings.split_entries(None, "function", "draw", draw, None, lines)
    assert lines == ["Draws.", "", "Args:", "    model, steps: see above.", "    seed: names",
                     "        the noise, as in a: b.", "    out: folder. It is made.", "",
                     "After it. steps: stay."]
