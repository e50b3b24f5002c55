"""When strengths are finite: every item must beat, directly or through others, every other item.

The condition is Ford's (1957) for Bradley-Terry and the same for the other models with a log-concave link and for
Plackett-Luce (Hunter 2004, Annals of Statistics 32(1), assumption 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

REMEDY = "pass prior=2.0 (strengths ~ N(0, 2²), maximum a posteriori), or remove those items, or collect comparisons"


class NoFiniteFit(ValueError):
    """The likelihood has no finite maximum, or no unique one."""


def check_finite_fit(items: Sequence[str], winners: np.ndarray, losers: np.ndarray) -> None:
    """Raise `NoFiniteFit` unless the graph with an edge from each winner to each loser is strongly connected.

    A cycle of certain wins is strongly connected: its strengths are finite (equal, for a plain cycle). The message
    names items never compared, the parts of a disconnected graph, items that always win or lose, or the groups of
    which one always beats the other.
    """
    n = len(items)
    if n < 2:
        raise NoFiniteFit(f"only one item ({', '.join(items)}): there is nothing to compare")
    graph = coo_array((np.ones(len(winners)), (winners, losers)), shape=(n, n)).tocsr()
    count, part = connected_components(graph, directed=True, connection="weak")
    if count > 1:
        parts = "; ".join(_listed([items[i] for i in np.flatnonzero(part == k)]) for k in range(count))
        raise NoFiniteFit(f"the comparison graph falls into {count} parts that were never compared: {parts}. Strengths "
                          f"across parts are not defined. {_sentence(REMEDY)}")
    count, group = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return
    won, lost = np.bincount(winners, minlength=n), np.bincount(losers, minlength=n)
    found = []
    for verb, never in (("always win", lost == 0), ("always lose", won == 0)):
        if never.any():
            found.append(f"{verb}: {_listed([items[i] for i in np.flatnonzero(never)])}")
    if not found:
        groups = [_listed([items[i] for i in np.flatnonzero(group == k)]) for k in range(count)]
        found.append(f"the groups {'; '.join(groups)} have wins between them in one direction only")
    raise NoFiniteFit(f"infinite strengths, because items {', and '.join(found)}. {_sentence(REMEDY)}")


def _listed(names: list[str], most: int = 8) -> str:
    """{a, b, c}, shortened."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return "{" + ", ".join(names[:most]) + more + "}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
