"""The catalog: the whole survey as data. Tables of the book, its map, the command line and tests are made from it.

>>> from surveylib import catalog
>>> catalog.lookup("ddpo").paper
'Training Diffusion Models with Reinforcement Learning'
"""

from difflib import get_close_matches

from . import benchmarks, challenges, evaluation, fundamentals, techniques
from .card import LISTS, MODEL_CLASSES, NEEDS, Card, Chapter, Family, Part
from .tree import CHAPTERS, FAMILIES, PARTS

__all__ = ["LISTS", "MODEL_CLASSES", "NEEDS", "Card", "Chapter", "Family", "Part",
           "as_records", "cards", "chapters", "families", "family", "lookup", "parts"]

_CARDS = (*fundamentals.CARDS, *techniques.CARDS, *benchmarks.CARDS, *evaluation.CARDS, *challenges.CARDS)
_BY_KEY = {card.key: card for card in _CARDS}
_FAMILY = {item.key: item for item in FAMILIES}


def _unknown(kind: str, name: str, known: list[str]) -> KeyError:
    near = get_close_matches(name.lower(), known, n=5, cutoff=0.5)
    return KeyError(f"no {kind} is called {name!r}; " + (f"near names: {', '.join(near)}" if near
                                                         else f"known: {', '.join(known)}"))


def parts() -> tuple[Part, ...]:
    """The five parts of the book, in order."""
    return PARTS


def families(part: str | None = None) -> tuple[Family, ...]:
    """All families in order, or those of one part. Raises KeyError for an unknown part."""
    if part is not None and part not in {p.key for p in PARTS}:
        raise _unknown("part", part, [p.key for p in PARTS])
    return tuple(f for f in FAMILIES if part in (None, f.part))


def family(key: str) -> Family:
    """One family by key. Raises KeyError that lists near keys."""
    if key not in _FAMILY:
        raise _unknown("family", key, list(_FAMILY))
    return _FAMILY[key]


def cards(family_key: str | None = None, *, part: str | None = None, status: str | None = None) -> tuple[Card, ...]:
    """All cards in the order of the book; of one family, one part, or one status ("runs", "explained",
    "planned").

    Raises KeyError for an unknown family or part, ValueError for an unknown status.
    """
    if status not in (None, "runs", "explained", "planned"):
        raise ValueError(f"status is 'runs', 'explained' or 'planned', not {status!r}")
    wanted = {family(family_key).key} if family_key else {f.key for f in families(part)}
    return tuple(c for c in _CARDS if c.family in wanted and status in (None, c.status))


def lookup(name: str) -> Card:
    """A card by key or by name, upper or lower case. Raises KeyError that lists near names."""
    key = name.strip().lower()
    if key in _BY_KEY:
        return _BY_KEY[key]
    for card in _CARDS:
        if key in (card.name.lower(), card.key.replace("_", "-"), card.key.replace("_", " ")):
            return card
    raise _unknown("card", name, sorted({*_BY_KEY, *(c.name.lower() for c in _CARDS)}))


def chapters(part: str | None = None) -> tuple[Chapter, ...]:
    """The chapters of the book, written and planned, in order; or those of one part."""
    return tuple(c for c in CHAPTERS if part in (None, c.part))


def as_records(selected: tuple[Card, ...] | None = None) -> list[dict[str, object]]:
    """The cards (all by default) as dictionaries for JSON: key, name, family, paper, section, status, module, ..."""
    return [{"key": c.key, "name": c.name, "family": c.family, "paper": c.paper, "section": _FAMILY[c.family].section,
             "status": c.status, "module": c.module, "arxiv": c.arxiv, "venue": c.venue, "year": c.year,
             "group": c.group, "needs": list(c.needs), "models": list(c.models), "chapter": c.chapter, "url": c.url}
            for c in (_CARDS if selected is None else selected)]
