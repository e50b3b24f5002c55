"""Rewards by name. A name stands for "module:factory"; the module is imported when the reward is asked for.

    load_reward("brightness")                      # one of the library's
    load_reward("aesthetic:head=weights/head.pth") # with options, key=value, divided by commas
    load_reward("my_rewards:Contrast")             # one's own: module:callable, where Python finds the module
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

import torch

from surveylib.rewards.contract import Reward, RewardError, told

_HOME = "surveylib.rewards"
_FACTORIES: dict[str, str] = {
    "jpeg_compressibility": f"{_HOME}.handmade:JpegCompressibility",
    "jpeg_incompressibility": f"{_HOME}.handmade:JpegIncompressibility",
    "brightness": f"{_HOME}.handmade:Brightness",
    "colourfulness": f"{_HOME}.handmade:Colourfulness",
    "faithfulness": f"{_HOME}.judge_based:Faithfulness",
    "faithfulness_hard": f"{_HOME}.judge_based:HardFaithfulness",
    "shapes_quality": f"{_HOME}.judge_based:PictureQuality",
    "count_and_colour": f"{_HOME}.count_and_colour:CountAndColour",
    "ocr": f"{_HOME}.ocr:TextRendering",
    "clip_score": f"{_HOME}.pretrained.clip_score:load",
    "aesthetic": f"{_HOME}.pretrained.aesthetic:load",
    "pickscore": f"{_HOME}.pretrained.pickscore:load",
    "hps_v2": f"{_HOME}.pretrained.hps:load_v2",
    "hps_v2.1": f"{_HOME}.pretrained.hps:load_v21",
    "imagereward": f"{_HOME}.pretrained.imagereward:load",
    "mps": f"{_HOME}.pretrained.mps:load",
    "vqascore": f"{_HOME}.pretrained.vqascore:load",
}


def reward_names() -> tuple[str, ...]:
    """Names that `load_reward` knows: pretrained, hand-made and shipped learned ones."""
    return (*_FACTORIES, *_shipped())


def _shipped() -> list[str]:
    from surveylib.rewards.learned.store import shipped_rewards

    return shipped_rewards()


def register_reward(name: str, factory: str) -> None:
    """Adds a reward under a name; `factory` is "module:callable", called with the options of `load_reward`.

    Raises:
        ValueError: the name is taken, or the factory has not the form "module:callable".
    """
    if name in _FACTORIES and _FACTORIES[name] != factory:
        raise ValueError(f"the reward name {name!r} is taken by {_FACTORIES[name]}; take another")
    if factory.count(":") != 1 or not all(factory.split(":")):
        raise ValueError(f"a factory is written 'module:callable', not {factory!r}")
    _FACTORIES[name] = factory


def check_reward(name: str, **options: Any) -> None:
    """Refuses a name that `load_reward` cannot load, or options that its reward does not take. Loads no weights.

    Raises:
        ValueError: as `load_reward`.
    """
    _maker(name, options)


def load_reward(name: str, device: torch.device | str | None = None, **options: Any) -> Reward:
    """The reward of a name.

    Args:
        name: one of `reward_names()`, also with options; "module:callable" of one's own; or "tiny-" and the name of a
            pretrained one: random weights, for rehearsals.
        device: where its model computes; None leaves it where its loader puts it.
        options: passed to the reward, for example `path` of a pretrained model; they go before those of the name.

    Raises:
        ValueError: an unknown name; the message lists the known ones. Options that are not key=value, or that the
        reward does not take. A module or callable of one's own that is not there, or that makes no `Reward`.
        RewardError, a ValueError: a module or factory of one's own fails; says how and where.
        FileNotFoundError, ImportError: weights or an optional package are missing; the message says how to get them.
    """
    make = _maker(name, options)
    try:
        reward = make()
    except Exception as error:
        if isinstance(error, RewardError) or not _is_own(name):
            raise
        raise RewardError(f"reward {name!r}: making it failed: {told(error)}") from error
    if not isinstance(reward, Reward):
        raise ValueError(f"reward {name!r} made a {type(reward).__name__}, not a Reward; wrap a function in "
                         "surveylib.rewards.contract.FunctionReward")
    return reward if device is None else reward.to(device)


def split_options(name: str) -> tuple[str, dict[str, Any]]:
    """"name:key=value,key=value" as (name, options); a value is a Python literal or, where it is none, a text.

    Raises:
        ValueError: a part without "=".
    """
    if not (found := re.fullmatch(r"(.+?):(\w+=.*)", name)):
        return name, {}
    options = {}
    for part in found[2].split(","):
        key, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"reward {name!r}: {part!r} is no option; write {found[1]}:key=value,key=value")
        options[key.strip()] = literal(text)
    return found[1], options


def literal(text: str) -> Any:
    """A Python literal, such as 3, 1e-4, True or (0.9, 0.99), or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError):
        return text


def _maker(name: str, options: dict[str, Any]) -> Callable[[], Any]:
    """What makes the reward of a name, its options checked and bound."""
    base, own = split_options(name)
    options = {**own, **options}
    if _is_own(name):
        make = _own(_FACTORIES.get(base, base))
    elif base in _FACTORIES:
        module, attribute = _FACTORIES[base].split(":")
        make = getattr(import_module(module), attribute)
    elif base.startswith("tiny-"):
        tiny = import_module(f"{_HOME}.pretrained.tiny")
        make, options = tiny.tiny_reward, {"name": tiny.known(base.removeprefix("tiny-")), **options}
    elif base in _shipped():
        make = import_module(f"{_HOME}.learned.store").load_learned
        options = {"folder": base, **options}
    else:
        raise ValueError(f"unknown reward {name!r}; known are: {', '.join(reward_names())}")
    if isinstance(make, Reward):
        if options:
            raise ValueError(f"reward {name!r} is a ready object and takes no options")
        return lambda: make
    try:
        signature(make).bind(**options)
    except TypeError as error:
        wrap = ". Name a callable that returns FunctionReward(function, name)" if _is_own(name) else ""
        raise ValueError(f"reward {name!r}: {error}. It is called with options, here {options}, out of "
                         f"{', '.join(signature(make).parameters) or 'none'}, and makes a Reward{wrap}") from error
    return partial(make, **options)


def _is_own(name: str) -> bool:
    """Whether a name stands for code outside the library."""
    base = split_options(name)[0]
    return ":" in base or not _FACTORIES.get(base, _HOME).startswith(_HOME)


def _own(name: str) -> Any:
    """The callable, or the reward, "module:attribute" outside the library."""
    module, attribute = name.split(":", 1)
    try:
        found = import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and (module + ".").startswith(f"{error.name}.")
        if missing or not module.strip(".") or module.startswith("."):
            raise ValueError(f"reward {name!r}: {error}. Write module:callable, with the module in the present folder "
                             "or on PYTHONPATH") from error
        raise RewardError(f"reward {name!r}: the module {module} itself fails: {told(error)}") from error
    try:
        found = getattr(found, attribute)
    except AttributeError as error:
        raise ValueError(f"reward {name!r}: {error}. Write module:callable") from error
    if not callable(found):
        raise ValueError(f"reward {name!r}: {attribute} is a {type(found).__name__} and not callable")
    return found
