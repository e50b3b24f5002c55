"""How far the judge agrees with a person: labels by eye of generated pictures, beside the judge's verdicts.

    python -m surveylib.worlds.shapes.eyes tests/worlds/shapes/eyes_later.json

The pictures are stored beside the labels, which therefore outlive the model that drew them. A label says whether the
picture shows its prompt and nothing else. There are two sets of 200 pictures, each labelled once by one labeller.

* `eyes.json`, drawn by an earlier `shapes-sd`. The judge was tuned on the half "tune"; it agrees on 95 of the 100
  pictures of "report" and on 187 of all. Of the 13 where it does not, 4 are shapes that it finds unreadable and the eye
  still recognises, 3 are neighbouring hues, and 5 it passes where the eye does not.
* `eyes_later.json`, other prompts drawn by the present `shapes-sd`. The judge was not tuned on them; it agrees on 193
  of 200. Of the 7 where it does not, 4 are clumsy shapes and 3 are hues between two names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from surveylib.worlds.shapes.judge import Verdict, judge
from surveylib.worlds.shapes.scenes import CANVAS

HALVES = ("tune", "report")


@dataclass(frozen=True)
class Labelled:
    """One picture's entry: what was asked, the seed of its noise, the half, and whether a person says it shows it."""

    prompt: str
    category: str
    seed: int
    half: str
    shows: bool


def load(path: str | Path) -> tuple[Tensor, list[Labelled], dict]:
    """Pictures (B, 3, 64, 64) in [0, 1], their labels, and what is known about the model that drew them.

    Args:
        path: the JSON file; the sheet of pictures lies beside it under the name it gives.

    Raises:
        ValueError: the sheet does not hold one 64 x 64 picture for each label.
    """
    path = Path(path)
    facts = json.loads(path.read_text(encoding="utf-8"))
    rows = [Labelled(**row) for row in facts.pop("pictures")]
    sheet = torch.from_numpy(np.array(Image.open(path.parent / facts["sheet"]).convert("RGB")))
    height, width = sheet.shape[0] // CANVAS, sheet.shape[1] // CANVAS
    if height * width != len(rows) or sheet.shape[:2] != (height * CANVAS, width * CANVAS):
        found = tuple(sheet.shape[:2])
        raise ValueError(f"{facts['sheet']} is {found}; {len(rows)} labels need as many {CANVAS} x {CANVAS} pictures")
    tiles = sheet.reshape(height, CANVAS, width, CANVAS, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, CANVAS, CANVAS)
    return tiles.float() / 255, rows, facts


def agreement_with_eyes(rows: Sequence[Labelled], verdicts: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """For each half, and for "all": pictures, how many the two agree on, and the two kinds of disagreement.

    Raises:
        ValueError: another number of verdicts than labels.
    """
    if len(rows) != len(verdicts):
        raise ValueError(f"{len(verdicts)} verdicts for {len(rows)} labels; give one verdict a picture")
    table = {}
    for half in (*HALVES, "all"):
        pairs = [(row.shows, v.passed) for row, v in zip(rows, verdicts) if half in (row.half, "all")]
        table[half] = {
            "pictures": len(pairs),
            "agree": sum(eye == rule for eye, rule in pairs),
            "only the eye passes": sum(eye and not rule for eye, rule in pairs),
            "only the judge passes": sum(rule and not eye for eye, rule in pairs),
        }
    return table


def confusions_with_eyes(rows: Sequence[Labelled], verdicts: Sequence[Verdict]) -> list[str]:
    """One line for each picture they disagree on: number, half, both verdicts, prompt and the judge's reason."""
    return [
        f"{i:3d} {row.half:6}  eye {'yes' if row.shows else 'no':3}  judge {'yes' if v.passed else 'no':3}  "
        f"{row.prompt}" + (f"  [{v.reason}]" if v.reason else "")
        for i, (row, v) in enumerate(zip(rows, verdicts)) if row.shows != v.passed
    ]


def main(arguments: Sequence[str]) -> int:
    """Print agreement and confusions of one file of labels."""
    if len(arguments) != 1:
        print("usage: python -m surveylib.worlds.shapes.eyes PATH_TO/eyes.json", file=sys.stderr)
        return 2
    pictures, rows, _ = load(arguments[0])
    verdicts = judge(pictures, [row.prompt for row in rows])
    for half, counts in agreement_with_eyes(rows, verdicts).items():
        share = counts["agree"] / max(counts["pictures"], 1)
        print(f"{half:6} {share:6.1%}  " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(*confusions_with_eyes(rows, verdicts), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))


__all__ = ["HALVES", "Labelled", "agreement_with_eyes", "confusions_with_eyes", "load", "main"]
