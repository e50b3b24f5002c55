"""A pool of training examples, rendered once and kept on disk as bytes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surveylib.worlds.shapes.data import stream


class Pool:
    """`n` pictures (uint8, n x 3 x 64 x 64) with captions, a function of (n, seed) alone."""

    def __init__(self, pictures: Tensor, captions: list[str]):
        self.pictures, self.captions = pictures, captions

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
