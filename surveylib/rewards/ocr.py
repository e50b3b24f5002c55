"""Text rendering: does the picture show the text that the prompt quotes?

The rule of Flow-GRPO's OCR reward (arXiv 2505.05470, official code): the target is the text between the first pair of
double quotes; spaces and case do not count; the read text is all boxes joined.

    r = 1 - min(d, |target|) / |target|,   d = 0 if the target is contained in the read text, else its edit distance.

Deviations: the reader is RapidOCR with the models inside its package (PP-OCRv4), not PaddleOCR; a failing reader raises
instead of scoring 0; a prompt without quotes raises. Typographic quotes are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from surveylib.rewards.contract import Reward, RewardError, rows_where
from surveylib.rewards.handmade import to_bytes

_QUOTED = re.compile(r'["“”]([^"“”]*)["“”]')


def quoted_text(prompt: str) -> str | None:
    """The text between the first pair of double quotes, None where there is none."""
    found = _QUOTED.search(prompt)
    return found.group(1) if found else None


def edit_distance(first: str, second: str) -> int:
    """Least number of insertions, deletions and substitutions from one text to the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def text_score(read: str, target: str) -> float:
    """The reward in [0, 1] of a read text against the target.

    Raises:
        ValueError: a target without any character but spaces.
    """
    read, target = ("".join(text.split()).lower() for text in (read, target))
    if not target:
        raise ValueError("the quoted text is empty; a target needs at least one character")
    distance = 0 if target in read else edit_distance(read, target)
    return 1 - min(distance, len(target)) / len(target)


def rapid_reader() -> Callable[[np.ndarray], str]:
    """A function from a picture (H, W, 3) uint8 RGB to the text read in it, boxes joined in reading order.

    Raises:
        ImportError: the optional extra is not installed.
    """
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError as error:
        raise ImportError(
            "the OCR reward needs the optional extra: pip install 'surveylib[rewards]' (rapidocr-onnxruntime)"
        ) from error
    # At most 960 pixels, PaddleOCR's default; RapidOCR's own enlarges small pictures to 736, many times slower.
    engine = RapidOCR(det_limit_type="max", det_limit_side_len=960)

    def read(picture: np.ndarray) -> str:
        boxes, _ = engine(np.ascontiguousarray(picture[..., ::-1]), use_cls=False)  # the engine expects BGR
        return "".join(text for _, text, confidence in boxes or () if float(confidence) > 0)

    return read


class TextRendering(Reward):
    """The OCR reward, in [0, 1]. Not differentiable.

    Args:
        reader: from a picture (H, W, 3) uint8 RGB to the read text; None takes RapidOCR.
    """

    name, range = "ocr", (0.0, 1.0)

    def __init__(self, reader: Callable[[np.ndarray], str] | None = None):
        self.reader = reader or rapid_reader()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in [0, 1]; raises RewardError naming the rows whose prompt quotes no text."""
        targets = [quoted_text(prompt) for prompt in prompts]
        without = torch.tensor([not (target or "").strip() for target in targets], dtype=torch.bool)
        if without.any():
            raise RewardError(
                f"reward {self.name!r}: the prompt quotes no text in {rows_where(without)}; "
                'write the text to show between double quotes, for example: a sign that says "OPEN"'
            )
        read = [self.reader(picture) for picture in to_bytes(images).numpy()]
        return torch.tensor([text_score(*pair) for pair in zip(read, targets)], device=images.device)
