"""Write the map of the survey into README.md, between its two marks. ``make readme``; a test holds it in step."""

from pathlib import Path

from surveylib import catalog

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- map: written by `make readme` -->", "<!-- end of map -->"


def survey_map(root: Path = ROOT) -> str:
    """The map as Markdown: families with what runs, then the chapters that are written."""
    lines = ["| part | family | entries | runs today |", "|---|---|---|---|"]
    for part in catalog.parts():
        for n, family in enumerate(catalog.families(part.key)):
            cards = catalog.cards(family.key)
            runs = ", ".join(f"{c.name} (`{c.module}`)" for c in cards if c.module)
            lines.append(f"| {part.title if n == 0 else ''} | {family.title} | {len(cards)} | {runs or '-'} |")
    written = [c for c in catalog.chapters() if (root / "chapters" / f"{c.key}.md").exists()]
    lines += ["", f"Chapters written: {len(written)} of {len(catalog.chapters())}."]
    lines += [f"- [{c.title}](chapters/{c.key}.md) {c.question}" for c in written]
    return "\n".join(lines)


def filled(text: str, root: Path = ROOT) -> str:
    """README text with the map replaced. Raises ValueError when a mark is missing."""
    if START not in text or END not in text:
        raise ValueError(f"README.md needs the marks {START!r} and {END!r}")
    head, rest = text.split(START, 1)
    return f"{head}{START}\n{survey_map(root)}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
