"""Draw book/_static/before_after.png: the first picture of each prompt above the best of sixteen, chosen by the judge.
`before_after_narrow.png` is the same for a phone, three prompts side by side.

    python book/before_after.py

The judge itself chooses, so the lower row is an oracle's: the ceiling of choosing among samples, not a method.
"""

import io
import pathlib

import torch
from PIL import Image

from surveylib.diffusion.rollout import sample
from surveylib.diffusion.zoo import load_model
from surveylib.figures.sheet import sheet
from surveylib.worlds.shapes.judge import judge
from surveylib.worlds.shapes.quality import quality

PROMPTS = (
    "a red circle and a blue square",
    "three red crosses",
    "a star left of a ring",
    "four green squares",
    "a large green ring",
    "a pink star on black",
)
DRAWS = 16
STATIC = pathlib.Path(__file__).parent / "_static"
COLUMNS = {"before_after": len(PROMPTS), "before_after_narrow": 3}  # of each file


@torch.no_grad()
def main() -> None:
    """Draw, judge, write both PNGs on white."""
    model = load_model("shapes-sd")
    texts = [text for text in PROMPTS for _ in range(DRAWS)]
    latents = sample(model, model.encode(texts), steps=model.default_steps, generator=torch.Generator().manual_seed(1))
    pictures = model.decode(latents, clamp=True)
    verdicts, beauty = judge(pictures, texts), quality(pictures)
    first = [i * DRAWS for i in range(len(PROMPTS))]
    best = [max(range(i, i + DRAWS), key=lambda j: (verdicts[j].score, beauty[j].item())) for i in first]
    for name, columns in COLUMNS.items():
        pairs = [(first[i : i + columns], best[i : i + columns]) for i in range(0, len(PROMPTS), columns)]
        shown = [i for above, below in pairs for i in above + below]
        captions = [text for above, _ in pairs for text in [texts[i] for i in above] + [""] * len(above)]
        png = sheet(pictures[shown], captions, [verdicts[i].passed for i in shown], columns=columns, colours=240)
        drawn = Image.open(io.BytesIO(png)).convert("RGBA")
        white = Image.new("RGBA", drawn.size, "white")
        Image.alpha_composite(white, drawn).convert("RGB").save(STATIC / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
