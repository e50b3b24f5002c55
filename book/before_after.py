"""Draw book/_static/before_after.png: the first picture of each prompt above the best of sixteen, chosen by the judge.

    python book/before_after.py

The judge itself chooses, so the lower row is an oracle's: the ceiling of choosing among samples, not a method.
"""

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
TARGET = pathlib.Path(__file__).parent / "_static" / "before_after.png"


@torch.no_grad()
def main() -> None:
    """Draw, judge, write the PNG on white."""
    model = load_model("shapes-sd")
    texts = [text for text in PROMPTS for _ in range(DRAWS)]
    latents = sample(model, model.encode(texts), steps=model.default_steps, generator=torch.Generator().manual_seed(1))
    pictures = model.decode(latents, clamp=True)
    verdicts, beauty = judge(pictures, texts), quality(pictures)
    first = [i * DRAWS for i in range(len(PROMPTS))]
    best = [max(range(i, i + DRAWS), key=lambda j: (verdicts[j].score, beauty[j].item())) for i in first]
    shown = first + best
    png = sheet(pictures[shown], [texts[i] for i in first] + [""] * len(best), [verdicts[i].passed for i in shown],
                columns=len(PROMPTS), colours=240)
    temporary = TARGET.with_suffix(".raw.png")
    temporary.write_bytes(png)
    drawn = Image.open(temporary).convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    Image.alpha_composite(white, drawn).convert("RGB").save(TARGET, optimize=True)
    temporary.unlink()


if __name__ == "__main__":
    main()
