"""The prompt grammar of the Shapes world: what a prompt asks for, how it is said, and how it is read back.

A `Spec` is the meaning of a prompt (its attribute tuple). `realise` says it in one of several paraphrases, `parse`
reads any of them back. The categories are GenEval's six (arXiv 2310.11513) plus size.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from surveylib.worlds.shapes.scenes import BACKGROUNDS, COLOURS, MAX_THINGS, SHAPES, SIZES, UNSEEN_PAIRS

CATEGORIES = ("single object", "two objects", "counting", "colours", "position", "colour attribution")
ALL_CATEGORIES = (*CATEGORIES, "size")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNTS = ("a", "two", "three", "four")
HELD_OUT_SHARE = 0.2

_PLURAL = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
_SINGULAR = {plural: shape for shape, plural in _PLURAL.items()}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_LEAD_INS = ("", "", "", "a picture of ", "an image of ", "a drawing of ")
_BACKGROUND_WORDS = (" on a {} background", " on {}")


@dataclass(frozen=True)
class Group:
    """`count` things of one shape; colour and size are None when the prompt leaves them open."""

    shape: str
    count: int = 1
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Spec:
    """The meaning of a prompt: one or two groups, where the first stands to the second, the background."""

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def count(self) -> int:
        """Number of things in the picture."""
        return sum(group.count for group in self.groups)

    @property
    def key(self) -> str:
        """A canonical text of the attribute tuple, the unit of the train/held-out split."""
        groups = list(self.groups)
        relation = self.relation
        if len(groups) == 2 and repr(groups[0]) > repr(groups[1]):  # "a and b" is "b and a"
            groups, relation = groups[::-1], OPPOSITE.get(relation)
        parts = [f"{g.count} {g.size or '*'} {g.colour or '*'} {g.shape}" for g in groups]
        return " | ".join([*parts, relation or "*", self.background or "*"])

    @property
    def category(self) -> str | None:
        """The suite category this tuple belongs to, or None for richer combinations."""
        first, colours = self.groups[0], [g.colour for g in self.groups]
        if any(g.size for g in self.groups):
            return "size" if self.count == 1 else None
        if len(self.groups) == 1:
            if first.count > 1:
                return "counting"
            return "colours" if first.colour else "single object"
        if self.count != 2:
            return None
        if self.relation:
            return "position" if not any(colours) else None
        if all(colours):
            return "colour attribution"
        return "two objects" if not any(colours) else None

    @property
    def unseen_pair(self) -> bool:
        """Whether it names a colour-shape pair that no training picture contains."""
        return any((g.colour, g.shape) in UNSEEN_PAIRS for g in self.groups)


def is_held_out(spec: Spec) -> bool:
    """Whether prompts with this attribute tuple are kept out of training (a fifth of all tuples, by hash)."""
    digest = hashlib.sha256(spec.key.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def _noun_phrase(group: Group) -> str:
    words = [w for w in (group.size, group.colour) if w]
    words.append(group.shape if group.count == 1 else _PLURAL[group.shape])
    article = COUNTS[group.count - 1]
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join([article, *words])


def realise(spec: Spec, rng: np.random.Generator | None = None) -> str:
    """Say a spec. Without `rng` the plainest form; with it a random paraphrase and, for "and", a random order."""
    pick = (lambda options: options[0]) if rng is None else (lambda options: options[rng.integers(len(options))])
    groups = list(spec.groups)
    if len(groups) == 2 and spec.relation is None and rng is not None and rng.random() < 0.5:
        groups.reverse()
    joint = f" {pick(_RELATION_WORDS[spec.relation])} " if spec.relation else " and "
    text = pick(_LEAD_INS) + joint.join(_noun_phrase(group) for group in groups)
    if spec.background:
        text += pick(_BACKGROUND_WORDS).format(spec.background)
    return text


VOCABULARY = frozenset(
    " ".join(
        [*_LEAD_INS, *_BACKGROUND_WORDS, *COLOURS, *BACKGROUNDS, *SHAPES, *_PLURAL.values(), *SIZES, *COUNTS]
        + ["an one and", *(w for words in _RELATION_WORDS.values() for w in words)]
    )
    .replace("{}", "")
    .split()
)


MORE = ("five", "six", "seven", "eight", "nine", "ten", *map(str, range(MAX_THINGS + 1, 100)))


def unknown_words(text: str) -> list[str]:
    """Words of a prompt that the grammar does not have, in order."""
    return [word for word in re.findall(r"[^\s,.]+", text.lower()) if word not in VOCABULARY]


def warn_outside(texts: Sequence[str], stacklevel: int = 2) -> None:
    """Warns, once for all texts, of words outside the grammar: a model of the Shapes world has never seen them.

    Warns:
        UserWarning naming the words.
    """
    strange = dict.fromkeys(word for text in texts for word in unknown_words(text))
    if strange:
        warnings.warn(f"words outside the Shapes grammar, which its models never saw: {', '.join(strange)}. Shapes are "
                      f"{', '.join(SHAPES)}; colours {', '.join(COLOURS)}", stacklevel=stacklevel + 1)


def _parse_group(phrase: str) -> Group:
    found: dict[str, list] = {"number": [], "size": [], "colour": [], "shape": []}
    for word in phrase.split():
        if word in ("a", "an", "one"):
            found["number"].append(1)
        elif word in COUNTS:
            found["number"].append(COUNTS.index(word) + 1)
        elif word in SIZES:
            found["size"].append(word)
        elif word in COLOURS:
            found["colour"].append(word)
        elif word in SHAPES or word in _SINGULAR:
            found["shape"].append(_SINGULAR.get(word, word))
        elif word in ("on", "background", *BACKGROUNDS):
            raise ValueError(f"{word!r} in {phrase!r} names no background; those are 'on a ... background' with "
                             f"{', '.join(BACKGROUNDS)}, at the end of the prompt")
    for kind, values in found.items():
        if len(values) > 1:
            raise ValueError(f"{phrase!r} names {len(values)} {kind}s, {', '.join(map(str, values))}; a group has one")
    if not found["shape"]:
        raise ValueError(f"no shape in {phrase!r}; shapes are {', '.join(SHAPES)}")
    count, size, colour, shape = ((*values, None)[0] for values in found.values())
    return Group(shape, count or 1, colour, size)


def parse(text: str) -> Spec:
    """Read a prompt back.

    Raises:
        ValueError: no shape in it, more than two groups, a group with two colours (shapes, sizes, numbers), two
        relations, another background than those there are, or more than four things; the message says what is allowed.

    Warns:
        UserWarning naming words outside the grammar; they are passed over.
    """
    strange = unknown_words(text)
    if strange:
        warnings.warn(f"words outside the Shapes grammar, passed over: {', '.join(strange)}", stacklevel=2)
    if more := [word for word in strange if word in MORE]:
        raise ValueError(f"{text!r} asks for {more[0]} things; a picture holds at most {MAX_THINGS}")
    rest = re.sub(r"[,.]", " ", text.lower())
    rest = " ".join(w for w in rest.split() if w in VOCABULARY)
    rest = re.sub(r"^(a picture|an image|a drawing) of ", "", rest)
    background = None
    found = re.search(rf" on (?:a )?({'|'.join(BACKGROUNDS)})(?: background)?$", " " + rest)
    if found:
        background, rest = found.group(1), (" " + rest)[: found.start()].strip()
    relation, phrases = None, re.split(r"\band\b", rest)
    for name, sayings in _RELATION_WORDS.items():
        for saying in sorted(sayings, key=len, reverse=True):
            if re.search(rf"\b{saying}\b", rest) and relation is None:
                relation, phrases = name, re.split(rf"\b{saying}\b", rest, maxsplit=1)
    others = [saying for phrase in phrases for sayings in _RELATION_WORDS.values() for saying in sayings
              if re.search(rf"\b{saying}\b", phrase)]
    if relation and others:
        raise ValueError(f"{text!r} names a second relation, {others[0]!r}; a prompt has two groups and one relation")
    if len(phrases) > 2:
        raise ValueError(f"{text!r} names {len(phrases)} groups; a prompt has one or two")
    spec = Spec(tuple(_parse_group(phrase) for phrase in phrases), relation, background)
    if spec.count > MAX_THINGS:
        raise ValueError(f"{text!r} asks for {spec.count} things; a picture holds at most {MAX_THINGS}")
    return spec


def sample_spec(category: str | None, rng: np.random.Generator, background: float = 0.3) -> Spec:
    """Draw an attribute tuple of a category, uniformly; None draws a richer combination (coloured relations, groups).

    Args:
        category: one of `ALL_CATEGORIES` or None.
        rng: source of randomness.
        background: probability that the background is named.

    Raises:
        ValueError: unknown category.
    """
    if category is not None and category not in ALL_CATEGORIES:
        raise ValueError(f"unknown category {category!r}; known: {', '.join(ALL_CATEGORIES)}")

    def colour() -> str:
        return str(rng.choice(list(COLOURS)))

    a, b = (str(s) for s in rng.choice(SHAPES, size=2, replace=False))
    relation = str(rng.choice(RELATIONS))
    named = str(rng.choice(list(BACKGROUNDS))) if rng.random() < background else None
    if category == "single object":
        spec = Spec((Group(a),))
    elif category == "two objects":
        spec = Spec((Group(a), Group(b)))
    elif category == "counting":
        spec = Spec((Group(a, int(rng.integers(2, 5)), colour() if rng.random() < 0.5 else None),))
    elif category == "colours":
        spec = Spec((Group(a, 1, colour()),))
    elif category == "position":
        spec = Spec((Group(a), Group(b)), relation)
    elif category == "colour attribution":
        spec = Spec((Group(a, 1, colour()), Group(b, 1, colour())))
    elif category == "size":
        spec = Spec((Group(a, 1, colour() if rng.random() < 0.5 else None, str(rng.choice(list(SIZES)))),))
    elif rng.random() < 0.6:
        spec = Spec((Group(a, 1, colour()), Group(b, 1, colour())), relation)
    else:
        first = int(rng.integers(1, 4))
        spec = Spec((Group(a, first, colour()), Group(b, int(rng.integers(1, MAX_THINGS - first + 1)), colour())))
    return replace(spec, background=named)
