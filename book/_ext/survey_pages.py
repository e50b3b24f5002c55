"""Pages made from data: the map of the survey, the part pages, the API page.

A page asks for a piece by a comment line ``<!-- survey:map -->``, ``<!-- survey:part techniques -->``,
``<!-- survey:chapters -->``, ``<!-- survey:packages -->`` or ``<!-- survey:api figures -->``; `fill` puts it there when
the page is read.
"""

import ast
import json
import re
from html import escape
from pathlib import Path

import docstrings
from import_graph import module_files

from surveylib import catalog
from surveylib.figures import colours

PARTS = [part.key for part in catalog.parts()]
MADE = ("book/intro", "book/api", "book/api/", "book/parts/")  # pages with pieces, or beginnings of their names
PROGRAM = "program"  # the API page of modules that lie in no package
MARKER = re.compile(r"^<!-- survey:(\w+) ?(\w*) -->$", re.MULTILINE)


def written(root: Path) -> set[str]:
    """Keys of the chapters that have a file."""
    return {str(p.relative_to(root / "chapters").with_suffix("")) for p in (root / "chapters").glob("*/[0-9]*.md")}


def state(app) -> str:
    """Everything the made pages depend on, as one string."""
    root = Path(app.srcdir)
    return json.dumps([catalog.as_records(), [vars(c) for c in catalog.chapters()], sorted(written(root)),
                       sorted(module_files(root)), (root / "book/_static/before_after.png").exists()], sort_keys=True)


def is_made(docname: str) -> bool:
    """Whether pieces of a page come from data."""
    return any(docname == name or (name.endswith("/") and docname.startswith(name)) for name in MADE)


def fill(app, docname: str, text: str) -> str:
    """The page with its markers replaced."""
    if not is_made(docname):
        return text

    def piece(match: re.Match) -> str:
        page = Page(app, docname)
        makers = {"doors": page.doors, "five": page.five, "picture": page.picture,
                  "map": page.map, "part": page.part, "chapters": page.chapters, "packages": page.packages,
                  "api": page.api}
        if match[1] not in makers:
            raise ValueError(f"{docname}: no piece is called {match[1]!r}; pieces: {', '.join(makers)}")
        return makers[match[1]](match[2]) if match[2] else makers[match[1]]()

    return MARKER.sub(piece, text)


def api_pages(root: Path) -> list[str]:
    """Names of the API's pages: the packages of the library, then `PROGRAM`."""
    return [*sorted({api_page(module) for module in module_files(root)} - {PROGRAM}), PROGRAM]


def api_page(dotted: str) -> str:
    """The API page that describes a module or a member of it."""
    name = (dotted.split(".") + [""])[1]
    return PROGRAM if name in ("", "cli", "exercises") else name


def family_anchor(family: catalog.Family) -> str:
    """The place of a family on its part's page, as docutils spells it."""
    return f"family-{family.key.replace('_', '-')}"


def raw(html: str) -> str:
    """HTML as a block of a MyST page."""
    return f"```{{raw}} html\n{html}\n```\n"


class Page:
    """Makes the pieces of one page; knows which chapters exist and how to link to them from here."""

    def __init__(self, app, docname: str):
        self.app, self.docname, self.root = app, docname, Path(app.srcdir)
        self.written = written(self.root)

    def link(self, target: str, anchor: str = "") -> str:
        """Relative address of another page."""
        uri = self.app.builder.get_relative_uri(self.docname, target) if self.app.builder.format == "html" else target
        return uri + (f"#{anchor}" if anchor else "")

    def card_link(self, card: catalog.Card) -> str:
        """Where a reader lands who clicks a card on the map: its chapter if written and run, else its entry."""
        if card.chapter in self.written:
            return self.link(f"chapters/{card.chapter}")
        return self.link(f"book/parts/{catalog.family(card.family).part}", f"card-{card.key}")

    def chip(self, card: catalog.Card) -> str:
        """A card on the map."""
        say = f"{card.name}: {card.paper} ({card.source}); {card.status}"
        return (f'<li data-name="{escape(f"{card.name} {card.paper} {card.key}".lower())}"><a class="sv-chip '
                f'sv-{card.status}" href="{escape(self.card_link(card))}" title="{escape(say)}">{escape(card.name)}'
                f'<span class="sv-hide">, {card.status}</span></a></li>')

    def tile(self, family: catalog.Family) -> str:
        """A family on the map: the cards a chapter treats, the others folded."""
        cards = catalog.cards(family.key)
        first = [c for c in cards if c.module or c.chapter] or list(cards[:6])
        rest = [c for c in cards if c not in first]
        runs = sum(c.status == "runs" for c in cards)
        hue = colours.FAMILIES.get(family.key, "var(--sv-neutral)")
        more = (f'<details><summary>{len(rest)} more</summary><ul>{"".join(map(self.chip, rest))}</ul></details>'
                if rest else "")
        page = self.link(f"book/parts/{family.part}", family_anchor(family))
        return (f'<section class="sv-tile" style="--hue:{hue}"><h4><a href="{escape(page)}">{escape(family.title)}</a>'
                f'<span class="sv-count">{f"{runs} of {len(cards)} run" if runs else len(cards)}</span></h4>'
                f'<p>{escape(family.sentence)}</p><ul>{"".join(map(self.chip, first))}</ul>{more}</section>')

    def chapter_items(self, part: str) -> str:
        """The chapters of a part as list items: written ones are links, planned ones say so."""
        items = []
        for chapter in catalog.chapters(part):
            title, question = escape(chapter.title), escape(chapter.question)
            if chapter.key in self.written:
                items.append(f'<li class="sv-runs"><a href="{self.link(f"chapters/{chapter.key}")}">{title}</a> '
                             f"<span>{question}</span></li>")
            else:
                items.append(f'<li class="sv-planned"><b>{title}</b> <i>planned</i> <span>{question}</span></li>')
        return "".join(items)

    def map(self) -> str:
        """The taxonomy of the survey as nested lists that CSS draws as a tree."""
        bands = []
        for number, part in enumerate(catalog.parts(), start=1):
            tiles = "".join(self.tile(f) for f in catalog.families(part.key))
            chapters = self.chapter_items(part.key)
            listed = f'<ul class="sv-chapters">{chapters}</ul>' if chapters else ""
            bands.append(f'<section class="sv-band" id="map-{part.key}"><h3><span>{number}</span>'
                         f'<a href="{self.link(f"book/parts/{part.key}")}">{part.title}</a></h3>'
                         f'{listed}<div class="sv-tiles">{tiles}</div></section>')
        total, runs = len(catalog.cards()), len(catalog.cards(status="runs"))
        head = (f'<div class="sv-maphead"><label>Find <input type="search" placeholder="DDPO, guidance ..." '
                f'aria-controls="sv-map"></label><span class="sv-legend"><span class="sv-chip sv-runs">runs here</span>'
                f'<span class="sv-chip sv-explained">explained</span><span class="sv-chip sv-planned">planned</span> '
                f'{runs} of {total} entries run today</span>'
                '<output aria-live="polite"></output></div>')
        return raw(f'<div class="sv-map" id="sv-map">{head}{"".join(bands)}</div>')

    def doors(self) -> str:
        """Three ways in: read, run, teach."""
        first = next((c for c in catalog.chapters() if c.key in self.written), None)
        start = self.link(f"chapters/{first.key}") if first else self.link("book/parts/fundamentals")
        doors = (("Read", start, first.title if first else "Fundamentals",
                  "Start with the first chapter. Sliders work in the page; nothing needs to be installed."),
                 ("Run", self.link("book/run"), "On your machine",
                  "One command executes every chapter. The model comes with the clone."),
                 ("Teach", self.link("book/teach"), "With exercises",
                  "Exercises with folded solutions and checks that decide."))
        return raw('<nav class="sv-doors" aria-label="Three ways in">' + "".join(
            f'<a href="{escape(address)}"><b>{name}</b><span>{escape(title)}</span><small>{text}</small></a>'
            for name, address, title, text in doors) + "</nav>")

    def five(self) -> str:
        """What a reader can do in five minutes: only what is there."""
        offers = {
            "fundamentals/01_why_align": "see where a small text-to-image model fails, prompt by prompt",
            "fundamentals/02_diffusion_from_the_ground_up": "pull a slider from noise to picture",
        }
        titles = {c.key: c.title for c in catalog.chapters()}
        lines = [f"- In [{titles[key]}](/chapters/{key}.md): {text}."
                 for key, text in offers.items() if key in self.written]
        lines += ["- On the map below: find a method, and go from its name to its paper or its code.",
                  "- On [your machine](/book/run.md): run every chapter with one command."]
        return "\n".join(lines) + "\n"

    def picture(self) -> str:
        """The before/after picture, once the file is there; another arrangement of it on a phone."""
        if not (self.root / "book" / "_static" / "before_after.png").exists():
            return ""
        alt = ":alt: Six prompts; above the model's first picture of each, below the best of sixteen\n"
        return (f"```{{image}} /book/_static/before_after_narrow.png\n{alt}:class: sv-picture sv-narrow\n```\n\n"
                f"```{{figure}} /book/_static/before_after.png\n{alt}:class: sv-picture sv-wide\n\n"
                "Above, the first picture the model that comes with this book draws for a prompt; below, the best of\n"
                "sixteen, chosen by the judge that knows what was meant. The book is about getting from the first row\n"
                "to the second.\n```\n")

    def chapters(self, part: str) -> str:
        """The chapters of one part."""
        items = self.chapter_items(part)
        return raw(f'<ul class="sv-chapters sv-large">{items}</ul>') if items else "No chapter is planned yet.\n"

    def part(self, key: str) -> str:
        """All families and cards of one part."""
        blocks = []
        for family in catalog.families(key):
            rows = "".join(map(self.row, catalog.cards(family.key)))
            hue = colours.FAMILIES.get(family.key, "var(--sv-neutral)")
            blocks.append(f"({family_anchor(family)})=\n## {family.title}\n\n{family.sentence} In the survey: "
                          f"*{family.section}*.\n\n" + raw(f'<ul class="sv-cards" style="--hue:{hue}">{rows}</ul>'))
        return "\n".join(blocks)

    def row(self, card: catalog.Card) -> str:
        """One card with its paper, needs, code and chapter."""
        paper = escape(card.paper)
        title = f'<a href="{escape(card.url)}">{paper}</a>' if card.url else paper
        facts = [f"<span>{escape(card.group)}</span>"] if card.group else []
        facts += [f"<span>needs {escape(', '.join(card.needs))}</span>"] if card.needs else []
        if card.module:
            anchor = f"module-{card.module}" if card.module in module_files(self.root) else card.module
            address = self.link(f"book/api/{api_page(card.module)}", anchor)
            facts.append(f'<a href="{address}"><code>{escape(card.module)}</code></a>')
        if card.chapter in self.written:
            chapter = next(c for c in catalog.chapters() if c.key == card.chapter)
            facts.append(f'<a href="{self.link(f"chapters/{card.chapter}")}">{escape(chapter.title)}</a>')
        note = f"<p>{escape(card.note)}</p>" if card.note else ""
        return (f'<li id="card-{card.key}" class="sv-{card.status}"><b>{escape(card.name)}</b> '
                f'<i>{card.status}</i> {title} <small>{escape(card.source)}</small>'
                f'<div class="sv-facts">{"".join(facts)}</div>{note}</li>')

    def packages(self) -> str:
        """A link to each package's API page, with the first line of its docstring."""
        items = []
        for name in api_pages(self.root):
            module = module_files(self.root).get(f"surveylib.{name}")
            text = (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) if module else None) or ""
            first = (text or "Command line and exercises.").partition("\n")[0].removeprefix(f"{name.capitalize()}: ")
            items.append(f"- [{name}](api/{name}.md): {first}")
        return "\n".join(items) + "\n"

    def api(self, name: str) -> str:
        """Every public module of one package by automodule."""
        blocks = []
        for module in module_files(self.root):
            if any(piece.startswith("_") for piece in module.split(".")) or api_page(module) != name:
                continue
            if module != f"surveylib.{name}":
                blocks.append(f"\n## {module.removeprefix(f'surveylib.{name}.')}\n")
            options = "   :members:\n   :ignore-module-all:\n   :show-inheritance:\n"
            blocks.append(f"```{{eval-rst}}\n.. automodule:: {module}\n{options}```\n")
        return "".join(blocks)


def setup(app) -> None:
    """Register what these pages need."""
    app.connect("autodoc-process-docstring", docstrings.split_entries, priority=100)
    app.connect("autodoc-process-docstring", docstrings.process, priority=900)
