"""Every family in the Gaussian world: how much of the way to the known optimum it goes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

FAMILIES = ("reward_weighted", "policy_gradient", "reward_gradient", "preference", "test_time")


def table(families: Sequence[str] | None = None, seed: int = 0) -> list[dict]:
    """Rows of the families (default: all), see `closure.TiltProblem.row`. Minutes on two cores.

    Raises:
        ValueError: an unknown family; the message lists the known ones.
    """
    rows = []
    for family in families or FAMILIES:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
        rows += import_module(f"{__name__}.{family}").rows(seed)
    return rows
