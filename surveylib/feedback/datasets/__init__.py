"""Public preference data sets, each mapped to the one record schema. `load` finds a loader by the data set's key."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from surveylib.feedback.datasets.cards import CARDS, DataSetCard
from surveylib.feedback.datasets.stream import RecordStream

__all__ = ["CARDS", "DataSetCard", "RecordStream", "load"]


def load(key: str, *args: Any, **options: Any) -> RecordStream:
    """Records of a public data set: `load("pickapic_v1", split="test")` is `pickapic.load(...)` for that set.

    The loader's own arguments follow. Where it reads raw files and is given no folder, it looks into one of the key's
    name; its error says what to download.

    Raises:
        ValueError: an unknown key (lists those with a loader), or a data set that has none (says why).
        FileNotFoundError: the files are not there; says what to download.
    """
    given = {**_card(key).options, **options}
    if args:
        given.pop("path_or_hub", None)
    elif from_files(key) and "path_or_hub" not in given:
        args = (key,)
    try:
        return _loader(key)(*args, **given)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. As a name: {key}:FOLDER") from error


def from_files(key: str) -> bool:
    """Whether a data set is read from its raw files, and not from the hub.

    Raises:
        ValueError: as `load`.
    """
    return "path_or_hub" not in _card(key).options and (
        signature(_loader(key)).parameters["path_or_hub"].default is Parameter.empty)


def _card(key: str) -> DataSetCard:
    with_loader = sorted(k for k, card in CARDS.items() if card.module)
    if key not in CARDS:
        raise ValueError(f"unknown data set {key!r}; with a loader: {', '.join(with_loader)}")
    card = CARDS[key]
    if card.module is None:
        raise ValueError(f"{card.name} has no loader: {card.note} With a loader: {', '.join(with_loader)}")
    return card


def _loader(key: str) -> Callable[..., RecordStream]:
    return import_module(_card(key).module).load
