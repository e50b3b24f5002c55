"""The quick-facts card of a technique: a few labelled lines, made from the catalog's record and the code."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from .movable import Figure
from .pictures import to_png


class QuickFacts(Figure):
    """A card for each of `cards`: title -> lines (label -> text; a pair (text, address) is a link).

    Raises ValueError for no card.
    """

    def __init__(self, cards: Mapping[str, Mapping[str, str | tuple[str, str]]], *, caption: str = ""):
        if not cards:
            raise ValueError("no card to show")
        super().__init__("", caption, "Quick facts: " + ", ".join(cards))
        self.body = f'<div class="sv-facts-row">{"".join(self._card(t, lines) for t, lines in cards.items())}</div>'
        self.png = to_png(np.full((2, 2, 3), 255, np.uint8))  # where no HTML is shown there is the text

    @staticmethod
    def _card(title: str, lines: Mapping[str, str | tuple[str, str]]) -> str:
        rows = []
        for label, value in lines.items():
            text = escape(value) if isinstance(value, str) else f'<a href="{escape(value[1])}">{escape(value[0])}</a>'
            rows.append(f"<dt>{escape(label)}</dt><dd>{text}</dd>")
        return f'<section class="sv-card"><b>{escape(title)}</b><dl>{"".join(rows)}</dl></section>'


def facts_of(record: Mapping[str, object], **more: str) -> dict[str, str | tuple[str, str]]:
    """Lines of a card from a record of `surveylib.catalog.as_records` and what else is known (cost, memory ...)."""

    def listed(values: object) -> str:
        return ", ".join(values) if isinstance(values, Sequence) and not isinstance(values, str) else str(values)

    source = f"{record['venue']} {record['year']}" if record["year"] else str(record["venue"])
    lines: dict[str, str | tuple[str, str]] = {"needs": listed(record["needs"]) or "not recorded"}
    lines |= {label.replace("_", " "): text for label, text in more.items()}
    if record["models"]:
        lines["written for"] = listed(record["models"])
    lines["file"] = str(record["module"] or "planned").replace("surveylib.techniques.", "")
    lines["paper"] = (source, str(record["url"])) if record["url"] else source
    return lines
