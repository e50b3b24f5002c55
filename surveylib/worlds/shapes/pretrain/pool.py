"""A pool of training examples, rendered once and kept on disk as bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surveylib.worlds.shapes.data import FLAWS, MIXTURE, example, pictures_of, stream
from surveylib.worlds.shapes.pretrain.attributes import scene_labels


class Pool:
    """`n` pictures (uint8, n x 3 x 64 x 64) with captions, a function of (n, seed) alone.

    labels: what was drawn, (n, `marks`) uint8 of `scene_labels`, where the pool was made with them.
    """

    def __init__(self, pictures: Tensor, captions: list[str], labels: Tensor | None = None):
        self.pictures, self.captions, self.labels = pictures, captions, labels

    def __len__(self) -> int:
        return len(self.captions)

    def floats(self, index: Tensor) -> Tensor:
        """Pictures of the given rows, float32 in [-1, 1], channels last in memory."""
        pictures = self.pictures[index].float().div_(127.5).sub_(1)
        return pictures.contiguous(memory_format=torch.channels_last)


def make_pool(n: int, seed: int, folder: str | Path) -> Pool:
    """Read the pool from `folder`, or draw it and keep it there."""
    file = Path(folder) / f"pool-{n}-{seed}.safetensors"
    texts = file.with_suffix(".json")
    if file.exists() and texts.exists():
        return Pool(load_file(file)["pictures"], json.loads(texts.read_text()))
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures, captions = torch.empty(n, 3, 64, 64, dtype=torch.uint8), []
    for batch, texts_of_batch in stream(min(512, n), seed):
        room = min(len(batch), n - len(captions))
        pictures[len(captions) : len(captions) + room] = (batch[:room] * 255).round().to(torch.uint8)
        captions += texts_of_batch[:room]
        if len(captions) == n:
            break
    save_file({"pictures": pictures}, file)
    texts.write_text(json.dumps(captions))
    return Pool(pictures, captions)


def make_labelled_pool(n: int, seed: int, folder: str | Path, mixture: dict[str | None, float] = MIXTURE) -> Pool:
    """As `make_pool`, with captions that say what was drawn (no wrong or incomplete ones) and `scene_labels`.

    mixture: shares of the caption categories.
    """
    shares = hashlib.sha256(json.dumps(list(mixture.items())).encode()).hexdigest()[:6]
    file = Path(folder) / f"labelled-{n}-{seed}-{shares}.safetensors"
    texts = file.with_suffix(".json")
    if not (file.exists() and texts.exists()):
        file.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        flaws = {name: rate for name, rate in FLAWS.items() if not name.endswith("caption")}
        pictures, labels, captions = [], [], []
        while len(captions) < n:
            examples = [example(rng, flaws, mixture) for _ in range(min(512, n - len(captions)))]
            pictures.append((pictures_of(examples, rng) * 255).round().to(torch.uint8))
            labels += [scene_labels(e.scene) for e in examples]
            captions += [e.caption for e in examples]
        save_file({"pictures": torch.cat(pictures), "labels": torch.stack(labels)}, file)
        texts.write_text(json.dumps(captions))
    found = load_file(file)
    return Pool(found["pictures"], json.loads(texts.read_text()), found["labels"])
