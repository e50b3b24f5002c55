"""Docstrings for the API page: plain prose with equations, made safe for reStructuredText.

The library's docstrings are written for readers of the source: `names` in back quotes, x_t and a*b in plain text.
Where even the cleaned text is not valid reStructuredText it is shown as it stands, in a literal block; nothing is lost.
"""

import inspect
import re

from docutils import nodes
from docutils.core import publish_doctree

KEEP = re.compile(r"(:[\w:]+:`[^`]*`|``[^`]+``|\*\*[^*\s][^*]*\*\*)")
SINGLE = re.compile(r"`([^`\n]+)`")
NEXT = re.compile(r"(?<=\.) ((?:\w+, )*\w+): ")
FIELDS = re.compile(r"^\s*(:[\w ]+:|\.\. )")


def clean(text: str) -> str:
    """One line of prose with single back quotes doubled and the special characters * | _ escaped outside code."""
    done = []
    for piece in KEEP.split(SINGLE.sub(lambda m: m[0] if m.string[max(m.start() - 1, 0)] in "`:" else f"``{m[1]}``",
                                       text)):
        if KEEP.fullmatch(piece):
            done.append(piece)
        else:
            piece = re.sub(r"(?<!\\)([*|])", r"\\\1", piece)
            done.append(re.sub(r"(?<=\w)_(?!\w)", r"\\_", piece))
    return "".join(done)


def skeleton(text: str) -> str:
    """The text with Sphinx roles turned into code and directives left out, so that plain docutils can read it."""
    lines, inside = [], None
    for line in re.sub(r":[\w:]+:`([^`]*)`", r"``\1``", text).splitlines():
        depth = len(line) - len(line.lstrip())
        if inside is not None and (not line.strip() or depth > inside):
            continue
        inside = depth if line.lstrip().startswith(".. ") else None
        lines.append("" if inside is not None else line)
    return "\n".join(lines)


def faults(text: str) -> bool:
    """Whether docutils complains about the text."""
    quiet = {"report_level": 5, "halt_level": 6, "file_insertion_enabled": False}
    return any(m["level"] >= 2 for m in publish_doctree(skeleton(text), settings_overrides=quiet)
               .findall(nodes.system_message))


def literal(lines: list[str]) -> list[str]:
    """The lines as a literal block."""
    return ["::", "", *(f"   {line}" for line in lines), ""]


def split_entries(app, what, name, obj, options, lines: list[str]) -> None:
    """Handler before napoleon: several entries on a line of Args or Attributes, "a: one. b: two.", become several."""
    try:
        known = {*inspect.signature(obj).parameters, *getattr(obj, "__annotations__", ())}
    except (TypeError, ValueError):  # what has no signature
        return

    def apart(found: re.Match) -> str:
        return f"\n{entry}{found[1]}: " if set(found[1].split(", ")) <= known else found[0]

    out, section, entry = [], None, ""
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if section is not None and line.strip() and depth <= section:
            section = None
        if section is not None and line.strip():
            if not entry or depth <= len(entry):
                entry = line[:depth]
            line = NEXT.sub(apart, line)
        elif line.strip() in ("Args:", "Attributes:"):
            section, entry = depth, ""
        out += line.split("\n")
    lines[:] = out


def process(app, what, name, obj, options, lines: list[str]) -> None:
    """Handler of autodoc-process-docstring: changes ``lines`` in place."""
    safe, verbatim = [], False
    for line in lines:
        body = line.lstrip()
        if verbatim and body and len(line) == len(body):
            verbatim = False
        verbatim = verbatim or body.startswith((".. math", ">>>")) or body.rstrip().endswith("::")
        safe.append(line if verbatim or FIELDS.match(line) or body.startswith(">>>") else clean(line))
    if faults("\n".join(safe)):
        safe = literal(lines)
    lines[:] = safe
