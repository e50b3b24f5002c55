"""Rankings as choice models read them: groups of items from best to worst, order inside a group unknown.

A full ranking has groups of one. A top-k ranking has k groups of one and a last group with the rest. A partitioned
ranking has groups of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surveylib.feedback.choice.comparisons import check_columns, item_numbers, record_items, sorted_names

LARGEST_GROUP = 10  # the likelihood of a group of m sums over its 2^m subsets


@dataclass(frozen=True, eq=False)
class Stage:
    """All choices of a group of m items before the ranking's remaining items, over a data set: S of them.

    Attributes:
        members: (S, m) items of the group. rest: (S, L) items of later groups, padded with 0 where ``present``
            (S, L) is False. record: (S,) the ranking a choice belongs to.
    """

    members: Tensor
    rest: Tensor
    present: Tensor
    record: Tensor


@dataclass(frozen=True, eq=False)
class Rankings:
    """M rankings of some of n items. Build one with `rankings` or `rankings_from_records`.

    Attributes:
        items: names of the n items.
        groups: a tuple for each record: its groups of item numbers, best first; at least two groups.
        weight: (M,) float64 > 0. annotator, prompt: (M,) names, or None. skipped: why records were left out.
    """

    items: tuple[str, ...]
    groups: tuple[tuple[tuple[int, ...], ...], ...]
    weight: Tensor
    annotator: tuple[str, ...] | None = None
    prompt: tuple[str, ...] | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        check_columns(self)
        for m, ranking in enumerate(self.groups):
            flat = [i for group in ranking for i in group]
            twice = [i for i, count in Counter(flat).items() if count > 1]
            if twice:
                raise ValueError(f"ranking {m} has {self.items[twice[0]]!r} twice: an item cannot be compared with "
                                 "itself; remove one")
            if len(ranking) < 2 or not all(ranking):
                raise ValueError(f"ranking {m} has {len(ranking)} group(s), or an empty one: it needs at least two "
                                 "non-empty groups, one preferred to the other")
            if max(map(len, ranking[:-1])) > LARGEST_GROUP:
                raise ValueError(f"ranking {m} has a tied group of {max(map(len, ranking[:-1]))}: at most "
                                 f"{LARGEST_GROUP} outside the last place (the likelihood sums over subsets)")

    def __len__(self) -> int:
        return len(self.groups)

    def wins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(winners, losers, records): an edge from each item of a group to each item of the next group."""
        edges = [(i, j, m) for m, ranking in enumerate(self.groups) for better, worse in pairwise(ranking)
                 for i in better for j in worse]
        return tuple(np.array(edges, dtype=np.int64).T)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The choices that make up the rankings, one `Stage` for each size of group. The last group is no choice."""
        by_size: dict[int, list[tuple[int, tuple[int, ...], list[int]]]] = {}
        for m, ranking in enumerate(self.groups):
            for k, group in enumerate(ranking[:-1]):
                rest = [i for later in ranking[k + 1:] for i in later]
                by_size.setdefault(len(group), []).append((m, group, rest))
        stages = []
        for rows in by_size.values():
            longest = max(len(rest) for _, _, rest in rows)
            padded = torch.tensor([rest + [0] * (longest - len(rest)) for _, _, rest in rows])
            present = torch.tensor([[True] * len(rest) + [False] * (longest - len(rest)) for _, _, rest in rows])
            stages.append(Stage(torch.tensor([group for _, group, _ in rows]), padded, present,
                                torch.tensor([m for m, _, _ in rows])))
        return tuple(stages)

    def take(self, index: np.ndarray) -> Rankings:
        """The records at ``index``, an array of integers or booleans."""
        rows = np.arange(len(self))[index]
        names = {name: None if (column := getattr(self, name)) is None else tuple(column[m] for m in rows)
                 for name in ("annotator", "prompt")}
        return Rankings(self.items, tuple(self.groups[m] for m in rows), self.weight[torch.as_tensor(rows)], **names)


def rankings(
    orders: Iterable[Sequence[Any]], *, weight: Sequence[float] | None = None, annotator: Sequence[Any] | None = None,
    prompt: Sequence[Any] | None = None, items: Sequence[Any] | None = None,
) -> Rankings:
    """Rankings from lists of item names, best first; a list, tuple or set inside is a tied group.

    ``["a", "b", "c"]`` is a full ranking of three, ``["a", ["b", "c", "d"]]`` a top-1 choice among four.

    Raises:
        ValueError: no rankings, fewer than two groups, an item twice in a ranking, an item not in ``items``, a tied
            group that is too large, weights that are not positive or not one a ranking.
    """
    named = [[[str(i) for i in group] if isinstance(group, (list, tuple, set, frozenset)) else [str(group)]
              for group in (order.tolist() if isinstance(order, (Tensor, np.ndarray)) else order)]
             for order in orders]
    seen = {i for ranking in named for group in ranking for i in group}
    items = tuple(str(i) for i in items) if items is not None else sorted_names(seen)
    groups = tuple(tuple(tuple(item_numbers(group, items).tolist()) for group in ranking) for ranking in named)
    return Rankings(
        items, groups,
        torch.ones(len(groups), dtype=torch.float64) if weight is None else torch.as_tensor(weight).double(),
        annotator=None if annotator is None else tuple(map(str, annotator)),
        prompt=None if prompt is None else tuple(map(str, prompt)))


def rankings_from_records(records: Iterable[Any], item: str = "model") -> Rankings:
    """Rankings from feedback records of kind ``ranking``: equal ranks form a tied group. ``item`` as for pairs.

    Left out and counted in ``skipped``: records of another kind, of unknown models, with one model twice, and rankings
    in which all are tied.
    """
    skipped: Counter[str] = Counter()
    rows = []
    for record in records:
        names = record_items(record, item) if record.kind == "ranking" else None
        if record.kind != "ranking":
            skipped[f"kind {record.kind}"] += 1
        elif names is None:
            skipped["models unknown"] += 1
        elif len(set(names)) < len(names):
            skipped[f"the same {item} twice"] += 1
        elif len(set(record.ranks)) < 2:
            skipped["all tied"] += 1
        else:
            order = [[name for name, r in zip(names, record.ranks) if r == rank] for rank in sorted(set(record.ranks))]
            rows.append((order, record.weight, record.annotator, record.prompt_id or record.prompt))
    if not rows:
        raise ValueError(f"no records to fit (left out: {dict(skipped)}): give at least one ranking")
    orders, weight, annotator, prompt = zip(*rows)
    data = rankings(orders, weight=weight, prompt=prompt, annotator=annotator if all(annotator) else None)
    data.skipped.update(skipped)
    return data
