"""Public preference data sets, each mapped to the one record schema. `load` finds a loader by the data set's key."""

from __future__ import annotations

from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from surveylib.feedback.datasets.cards import CARDS, DataSetCard
from surveylib.feedback.datasets.stream import RecordStream

__all__ = ["CARDS", "DataSetCard", "RecordStream", "load"]


def load(key: str, *args: Any, **options: Any) -> RecordStream:
    """Records of a public data set: `load("pickapic_v1", split="test")` is `pickapic.load(...)` for that set.

    The loader's own arguments follow; where it needs a folder, its error says what to download.

    Raises:
        ValueError: an unknown key (lists those with a loader), or a data set that has none (says why).
        FileNotFoundError: no folder for a set that is read from raw files; says where they are.
    """
    with_loader = sorted(k for k, card in CARDS.items() if card.module)
    if key not in CARDS:
        raise ValueError(f"unknown data set {key!r}; with a loader: {', '.join(with_loader)}")
    card = CARDS[key]
    if card.module is None:
        raise ValueError(f"{card.name} has no loader: {card.note} With a loader: {', '.join(with_loader)}")
    loader = import_module(card.module)
    needs_place = signature(loader.load).parameters["path_or_hub"].default is Parameter.empty
    if needs_place and not args and "path_or_hub" not in options:
        raise FileNotFoundError(f"{card.name} is read from its raw files ({card.hub}): download them and give their "
                                f"folder, as {key}:FOLDER where a name is asked for. {card.note}".strip())
    return loader.load(*args, **{**card.options, **options})
