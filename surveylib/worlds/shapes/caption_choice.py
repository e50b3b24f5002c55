"""Can a CLIP model tell the right caption of a picture from captions in which one attribute was changed?

For each clean rendering the right caption stands against fifteen others; each differs from it in exactly one attribute:
shape, colour, size, count, relation or background. Swaps, in which two things exchange their colours, are counted
apart: they are the hardest, since the words are the same.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from surveylib.diffusion.zoo import ModelUnavailable, check_safetensors, git_checkout, read_json
from surveylib.worlds.shapes.data import change_one, scene_for
from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, Spec, is_held_out, realise, sample_spec
from surveylib.worlds.shapes.render import render

CLIP_TEXTS = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
CLIP_WEIGHTS = "model.safetensors"
KINDS = ("shape", "colour", "size", "count", "relation", "background")


@dataclass(frozen=True)
class Question:
    """A picture's spec, its caption, and wrong captions with the kind of their one change."""

    spec: Spec
    caption: str
    wrong: tuple[tuple[str, str], ...]  # (kind, caption)
    swap: str | None


def question(rng: np.random.Generator, negatives: int = 15) -> Question:
    """Draw a held-out spec that has `negatives` different one-attribute changes, and their captions."""
    while True:
        category = (*ALL_CATEGORIES, None)[rng.integers(len(ALL_CATEGORIES) + 1)]
        spec = sample_spec(category, rng, background=0.5)
        if not is_held_out(spec) or spec.unseen_pair or len({g.shape for g in spec.groups}) < len(spec.groups):
            continue
        found: dict[str, tuple[str, str]] = {}
        for _ in range(20 * negatives):
            kind = KINDS[rng.integers(len(KINDS))]
            other = change_one(spec, rng, kind)
            if other is not None and other.key != spec.key:
                found.setdefault(other.key, (kind, realise(other, rng)))
            if len(found) == negatives:
                swapped = change_one(spec, rng, "swap")
                swap = realise(swapped, rng) if swapped is not None else None
                return Question(spec, realise(spec, rng), tuple(found.values()), swap)


@torch.no_grad()
def caption_choice(model: CLIPModel, processor: CLIPProcessor, n: int = 500, seed: int = 0) -> dict[str, dict]:
    """Ask `n` questions.

    Returns:
        {"right of 16": {"rate", "n"}, kind: {"rate", "n"} for each kind of negative, "swap": {"rate", "n"}}. The rate
        of a kind is that of single comparisons: right caption against one negative of the kind.
    """
    rng = np.random.default_rng(seed)
    questions = [question(rng) for _ in range(n)]
    pictures = render([scene_for(q.spec, rng) for q in questions])
    pixels = processor(images=list(pictures), return_tensors="pt", do_rescale=False).pixel_values
    images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    right, alone = [], defaultdict(list)
    for image, q in zip(images, questions):
        texts = [q.caption, *(text for _, text in q.wrong), *([q.swap] if q.swap else [])]
        tokens = processor(text=texts, return_tensors="pt", padding="max_length", truncation=True)
        features = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        score = features @ image
        right.append(bool((score[0] > score[1:16]).all()))
        for (kind, _), value in zip(q.wrong, score[1:16]):
            alone[kind].append(bool(score[0] > value))
        if q.swap:
            alone["swap"].append(bool(score[0] > score[-1]))
    table = {"right of 16": right, **{kind: alone[kind] for kind in (*KINDS, "swap") if alone[kind]}}
    return {name: {"rate": float(np.mean(values)), "n": len(values)} for name, values in table.items()}


def check_clip(folder: Path) -> Path:
    """The folder of the shipped `shapes-clip`, after a look through its files.

    Raises:
        ModelUnavailable: names the first file that is missing or damaged, and the command that restores it.
    """
    for name in CLIP_TEXTS:
        read_json(folder / name, git_checkout)
    check_safetensors(folder / CLIP_WEIGHTS, git_checkout)
    return folder


def main() -> None:
    """Print the table of the shipped shapes-clip, or in one line what is wrong with its files."""
    try:
        folder = check_clip(Path(__file__).parent / "checkpoints" / "shapes-clip")
    except ModelUnavailable as error:
        raise SystemExit(f"error: {error}") from None
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    for kind, row in caption_choice(model, processor, 2000).items():
        print(f"{kind:12} {100 * row['rate']:5.1f} %  of {row['n']}")


if __name__ == "__main__":
    main()
