"""Changed settings at the border: of the type that their dataclass names, and in a range that trains.

Settings come from ``--set`` and from recipes, which people edit by hand. A negative clip turns the gradient round, a
text where a number belongs fails somewhere deep: both are refused here, with the field, the value and what is allowed.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from surveylib.techniques.contract import TechniqueError

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "clip_norm": (lambda v: v > 0, "a number > 0"),
    "clip_advantage": (lambda v: v is None or v > 0, "a number > 0"),
    "lr": (lambda v: 0 <= v < inf, "a number >= 0"),
    "weight_decay": (lambda v: 0 <= v < inf, "a number >= 0"),
    "eps": (lambda v: 0 < v < inf, "a number > 0"),
    "lora_rank": (lambda v: v is None or v >= 1, "1 or more, or None to train all weights"),
    "lora_alpha": (lambda v: v is None or 0 < v < inf, "a number > 0, or None"),
    "steps": (lambda v: v >= 1, "1 or more"),
    "warmup": (lambda v: v >= 0, "0 or more updates"),
    "ema": (lambda v: v is None or 0 <= v < 1, "a decay in [0, 1)"),
    "betas": (lambda v: all(0 <= b < 1 for b in v), "two numbers in [0, 1)"),
    "tracker_size": (lambda v: v >= 1, "1 or more"),
    "empty_prompts": (lambda v: 0 <= v < 1, "a share in [0, 1)"),
}


def check_settings(owner: type, values: Mapping[str, Any], what: str) -> None:
    """Refuses what does not fit the fields of a dataclass.

    Args:
        owner: the dataclass. values: changed fields, all of which exist. what: names them in the message.

    Raises:
        TechniqueError: a value of another type, or outside its range.
    """
    hints = get_type_hints(owner)
    for name, value in values.items():
        if not fits(value, hints[name]):
            raise TechniqueError(f"{what} {name} = {value!r}; allowed: {words(hints[name])}")
        holds, allowed = RANGES.get(name, (None, ""))
        if holds is not None and not holds(value):
            raise TechniqueError(f"{what} {name} = {value!r}; allowed: {allowed}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. A whole number is a float; True and False are no numbers; lists, which
    JSON has instead of them, are tuples. Types that are not known here take anything."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is Mapping:
        return isinstance(value, Mapping)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if inner[-1:] == (Ellipsis,):
            return all(fits(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    return True


def words(hint: Any) -> str:
    """An annotated type for a message."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(words, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is Mapping:
        return "names with values"
    if origin is tuple:
        return f"a tuple of {words(inner[0])}" if inner[-1:] == (Ellipsis,) else f"{len(inner)} of {words(inner[0])}"
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a text",
            types.NoneType: "None"}.get(hint, str(hint))
