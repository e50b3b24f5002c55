"""A card for each public prompt suite. Numbers and licences were read in the file or repository named; what was not is
said to be not verified."""

from __future__ import annotations

from dataclasses import dataclass

NOT_VERIFIED = "not verified"


@dataclass(frozen=True)
class SuiteCard:
    """One suite.

    Attributes:
        key, name, arxiv: key as in the catalog, where it has a card there.
        home: where the prompts are publicly kept. files: what the loader reads below it. form: format on disk.
        download: shell command that fetches the files.
        prompts: how many, None where the number was not verified. categories: their names in the files.
        protocol: pictures a prompt and how they are scored. licence: of the prompts, or `NOT_VERIFIED`.
        note: what a user must know.
    """

    key: str
    name: str
    arxiv: str
    home: str
    files: tuple[str, ...]
    form: str
    download: str
    prompts: int | None
    categories: tuple[str, ...]
    protocol: str
    licence: str = NOT_VERIFIED
    note: str = ""

    @property
    def how(self) -> str:
        """What to do where the files are missing."""
        return (f"The prompts of {self.name} were not found. They lie in {self.home}: `{self.download}`. "
                f"Then give the folder or file that holds {' or '.join(self.files)}")


COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
DRAWBENCH = ("Colors", "Conflicting", "Counting", "DALL-E", "Descriptions", "Gary Marcus et al.", "Misspellings",
             "Positional", "Rare Words", "Reddit", "Text")
STYLES = ("anime", "concept-art", "paintings", "photo")

_CARDS = (
    SuiteCard(
        "geneval", "GenEval", "2310.11513", "github.com/djghosh13/geneval", ("evaluation_metadata.jsonl",),
        "JSON Lines; tag, include (class, count, color, position), exclude, prompt",
        "git clone https://github.com/djghosh13/geneval", 553,
        ("single_object", "two_object", "counting", "colors", "position", "color_attr"),
        "4 pictures a prompt; Mask2Former finds objects, CLIP ViT-L/14 names the colours of their crops; overall is "
        "the mean of the six categories' rates over pictures", "MIT",
        "The detector runs in mmdet 2.x, not on a present torch. Pictures go to <number, 5 digits>/samples/<k, 5 "
        "digits>.png beside metadata.jsonl. Always say the guidance scale: it moves the score more than most methods.",
    ),
    SuiteCard(
        "t2i_compbench", "T2I-CompBench++", "2307.06350", "github.com/Karine-Huang/T2I-CompBench",
        ("<category>_val.txt",), "text, one prompt a line; <category>_train.txt beside it",
        "git clone https://github.com/Karine-Huang/T2I-CompBench  # examples/dataset", None, COMPBENCH,
        "BLIP-VQA for colour, shape and texture; UniDet for spatial relations and numeracy; CLIPScore for non-spatial "
        "relations; their mean for complex prompts",
        note="Splits and pictures a prompt: not verified. File names of pictures must end in _<number, 6 digits>.png.",
    ),
    SuiteCard(
        "drawbench", "DrawBench", "2205.11487", "the hub: sayakpaul/drawbench, shunk031/DrawBench",
        ("*.csv", "*.parquet"), "table; Prompts and Category (prompts and category, a class number, in shunk031's)",
        "hf download sayakpaul/drawbench --repo-type dataset", 200, DRAWBENCH,
        "side by side by people, fidelity and alignment; today mostly any reward model",
        note="The authors published a sheet; the copies on the hub are others'.",
    ),
    SuiteCard(
        "partiprompts", "PartiPrompts (P2)", "2206.10789", "github.com/google-research/parti", ("PartiPrompts.tsv",),
        "tab-separated; Prompt, Category, Challenge, Note", "git clone https://github.com/google-research/parti", 1632,
        (), "side by side by people; today mostly any reward model", "Apache-2.0",
        "Category says what is shown, Challenge what is hard about it.",
    ),
    SuiteCard(
        "hpdv2", "HPDv2 benchmark prompts", "2306.09341", "the hub: zhwang/HPDv2",
        tuple(f"{style}.json" for style in STYLES), "one JSON array of texts a style",
        "hf download zhwang/HPDv2 --repo-type dataset --include 'benchmark/*.json'", 3200, STYLES,
        "one picture a prompt, scored by HPS v2; mean and deviation over ten groups of 80 prompts a style",
        note="800 prompts a style, as the authors' script takes them. Picture k of a style is <k, 5 digits>.jpg.",
    ),
)  # fmt: skip

CARDS: dict[str, SuiteCard] = {card.key: card for card in _CARDS}
