"""The shape of the catalog: parts, families, cards, chapters.

A card is one method, model, data set, metric or paper of the survey "Alignment of Diffusion Models" (arXiv 2409.07253).
A card runs when it names a module; a test resolves every module named, so the map cannot claim what is not there.
"""

from dataclasses import dataclass

NEEDS = ("reward", "gradient", "pairs", "rankings", "binary", "online")
LISTS = ("RLHF", "DPO", "test-time", "beyond", "evaluation", "preference modelling", "LLM RLHF", "LLM DPO",
         "challenges")
MODEL_CLASSES = ("unet", "flow", "few-step")


@dataclass(frozen=True)
class Part:
    """A part of the book: key is its folder under ``chapters/``."""

    key: str
    title: str
    sentence: str


@dataclass(frozen=True)
class Family:
    """A family of cards. ``section`` says where the survey treats it (in our words: its wording differs by version)."""

    key: str
    title: str
    part: str
    section: str
    sentence: str


@dataclass(frozen=True)
class Card:
    """One entry of the survey.

    key: lower-case name, also the file name of the module of a technique. name: as the field says it.
    family: key of a `Family`. paper: title. arxiv: identifier or None. year, venue: as the survey's list prints them.
    group: the branch inside the family. lists: which of the survey's public lists file it (empty: added by this book).
    needs: what a method asks for, out of `NEEDS`; empty when not recorded. models: what it is written for, out of
    `MODEL_CLASSES`; empty when not recorded. module: dotted path of the code, None while there is none.
    chapter: key of the chapter that treats it, or None. link: address of the paper where there is no arXiv identifier.
    """

    key: str
    name: str
    family: str
    paper: str
    arxiv: str | None
    venue: str
    year: int | None
    group: str = ""
    lists: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    module: str | None = None
    chapter: str | None = None
    link: str | None = None
    note: str = ""

    @property
    def status(self) -> str:
        """ "runs" when the card names a module, "explained" when only a chapter treats it, else "planned"."""
        return "runs" if self.module else "explained" if self.chapter else "planned"

    @property
    def url(self) -> str | None:
        """Address of the paper, or None where no public page is recorded."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.link

    @property
    def source(self) -> str:
        """Venue and year as one string: "ICLR 2024"."""
        return f"{self.venue} {self.year}".strip() if self.year else self.venue


@dataclass(frozen=True)
class Chapter:
    """A chapter of the book: ``key`` is its path under ``chapters/`` without ending, ``question`` what it answers."""

    key: str
    title: str
    question: str

    @property
    def part(self) -> str:
        """Key of the part: the folder."""
        return self.key.split("/")[0]
