"""What the page must know of the model beside its weights: sampler, tokenizers, words, fixed seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from live.graphs import VERIFIED, sampler_table
from surveylib.diffusion.zoo import CHECKPOINTS
from surveylib.worlds.shapes.prompts import COUNTS, RELATIONS, VOCABULARY
from surveylib.worlds.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES

STEPS = (10, 20, 5)  # the first is what the page begins with
FIXED_SEEDS = (2, 0, 1, 3)  # the first is the one that changes
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
STILL_PROMPT = "two red crosses"  # chosen: one on which alignment helps, and the page says so
EXAMPLES = (STILL_PROMPT, "two yellow stars", "a red circle above a blue square", "a purple star",
            "a large green ring on a black background", "a pink ring and a red star", "three small orange squares")


def tokenizer(folder: Path) -> dict[str, Any]:
    """A shipped CLIP tokenizer as the page's `LIVE.tokenizer` reads it.

    Raises:
        ValueError: a tokenizer of another kind.
    """
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, steps = data["model"], data["pre_tokenizer"].get("pretokenizers", [{}])
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>" or "pattern" not in steps[0]:
        raise ValueError(f"{folder} holds no byte-level BPE tokenizer of CLIP's kind; the page reads no other")
    vocab = model["vocab"]
    ends = dict(data["post_processor"][place] for place in ("cls", "sep"))
    begin, end = ends.values()
    return {"vocab": sorted(vocab, key=vocab.get), "merges": [list(pair) for pair in model["merges"]],
            "pattern": steps[0]["pattern"]["Regex"], "special": list(ends), "begin": begin, "end": end,
            "pad": data["padding"]["pad_id"], "unknown": vocab[model["unk_token"]],
            "length": data["truncation"]["max_length"]}


def describe(model: Any, reward: Any) -> dict[str, Any]:
    """The part of the manifest that needs no export.

    Args:
        model: a PipelineModel. reward: a LearnedReward.
    """
    height, width = model.resolution
    return {
        "latent": list(model.latent_shape), "height": height, "width": width,
        "textWidth": model.network.config.cross_attention_dim, "guidance": model.default_guidance,
        "steps": list(STEPS), "tables": {steps: sampler_table(model, steps) for steps in STEPS},
        "tokenizers": {"model": tokenizer(CHECKPOINTS / "shapes-sd" / "tokenizer"),
                       "verifier": tokenizer(CHECKPOINTS / reward.model.trunk.name)},
        "reward": reward.name, "verified": VERIFIED, "seeds": list(FIXED_SEEDS),
        "strengths": list(STRENGTHS), "prompt": STILL_PROMPT,
        "examples": list(EXAMPLES), "vocabulary": sorted(VOCABULARY),
        "words": {"number": [*COUNTS], "size": list(SIZES), "colour": list(COLOURS), "shape": list(SHAPES),
                  "place": [*RELATIONS, "and"], "background": [f"on {name}" for name in BACKGROUNDS]},
    }  # fmt: skip
