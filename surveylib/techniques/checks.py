"""Settings at the border: of the type that their dataclass names, and in a range that trains.

Settings come from ``--set``, from recipes, which people edit by hand, and from Python. A negative clip turns the
gradient round, a text where a number belongs fails somewhere deep: both are refused here, with the field, the value and
what is allowed.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import inf, isnan
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class TechniqueError(ValueError):
    """A model, a signal or a setting that a technique cannot work with."""


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
    "clip": (lambda v: v is None or 0 < v < inf, "a finite number > 0"),
    "eta": (lambda v: 0 <= v <= 1, "a number in [0, 1]: 0 is deterministic, 1 has the noise of DDPM"),
    "beta": (lambda v: v is None or 0 <= v < inf, "a finite number >= 0"),
    "kl_weight": (lambda v: 0 <= v < inf, "a finite number >= 0"),
    "reward_weight": (lambda v: 0 <= v < inf, "a finite number >= 0"),
    "value_lr": (lambda v: 0 < v < inf, "a finite number > 0"),
    "value_steps": (lambda v: v >= 1, "1 or more"),
    "value_batch": (lambda v: v >= 1, "1 or more"),
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
        if isinstance(value, float) and isnan(value):
            raise TechniqueError(f"{what} {name} = {value!r}; allowed: {words(hints[name])}")
        if not fits(value, hints[name]):
            raise TechniqueError(f"{what} {name} = {value!r}; allowed: {words(hints[name])}")
        holds, allowed = RANGES.get(name, (None, ""))
        if holds is not None and not holds(value):
            raise TechniqueError(f"{what} {name} = {value!r}; allowed: {allowed}")


def check_all(settings: Any, what: str) -> None:
    """As `check_settings`, of all fields of a dataclass."""
    check_settings(type(settings), {f.name: getattr(settings, f.name) for f in fields(settings)}, what)


def warn_of_clip(config: Any, dimensions: int) -> None:
    """Warns where a clip made for means of log-probabilities meets their sums, which are `dimensions` times larger:
    then nearly every item is clipped after the first update. Settings without both `clip` and `reduction` pass.

    Warns:
        UserWarning naming the clip that would be the same band.
    """
    if getattr(config, "reduction", None) != "sum" or not hasattr(config, "clip") or dimensions <= 8:
        return
    if getattr(config, "estimator", None) != "sf" and config.clip <= 10 * type(config)().clip:
        warnings.warn(f"clip={config.clip:g} belongs to reduction='mean'. Sums over {dimensions} dimensions are that "
                      "much larger, and nearly every item will be clipped: the same band is clip="
                      f"{type(config)().clip * dimensions:g}", stacklevel=4)


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
