"""Source code as part of a page, read from the library so that it cannot drift."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any


class Source:
    """The source of functions, methods or classes, shown as Python code below the file's name.

    things: what to show, in this order. docstrings: False leaves them out.
    Raises ValueError without things, or for code of more than ``limit`` lines; TypeError for what has no source.
    """

    def __init__(self, *things: Callable[..., Any] | type, docstrings: bool = False, limit: int = 60):
        if not things:
            raise ValueError("Source needs at least one function, method or class")
        parts, module = [], None
        for thing in things:
            body = textwrap.dedent(inspect.getsource(thing)).rstrip()
            if not docstrings:
                body = _without_docstrings(body)
            owner = thing.__qualname__.rpartition(".")[0]  # the class of a method
            heads = [f"# {thing.__module__.replace('.', '/')}.py"] if thing.__module__ != module else []
            heads += [f"# class {owner}"] if owner else []
            module = thing.__module__
            parts.append("\n".join([*heads, body]))
        self.code = "\n\n".join(parts)
        lines = self.code.count("\n") + 1
        if lines > limit:
            raise ValueError(f"{lines} lines of source; show at most {limit}")

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/markdown": f"```python\n{self.code}\n```", "text/plain": self.code}


def _without_docstrings(code: str) -> str:
    """The code without the docstrings of its functions and classes; comments stay."""
    import ast

    lines = code.splitlines()
    drop: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            drop |= set(range(first.lineno - 1, first.end_lineno))
            if len(node.body) > 1:  # the blank line after it
                after = first.end_lineno
                if after < len(lines) and not lines[after].strip():
                    drop.add(after)
    return "\n".join(line for n, line in enumerate(lines) if n not in drop)
