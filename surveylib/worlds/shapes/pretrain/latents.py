"""Latents of training pictures, encoded once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from surveylib.worlds.shapes.data import ALL_CATEGORIES, stream
from surveylib.worlds.shapes.prompts import parse


def load_autoencoder(folder: str | Path) -> AutoencoderKL:
    """The pre-trained autoencoder, float32, frozen."""
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(f"no autoencoder in {folder}; run surveylib.worlds.shapes.pretrain.autoencoder first")
    return AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)


@torch.no_grad()
def make_latents(vae: AutoencoderKL, n: int, seed: int, folder: str | Path) -> tuple[Tensor, list[str]]:
    """Latents of `n` training pictures and their captions, a function of (autoencoder, n, seed).

    Returns:
        (n, 8, 8, 8) float16 posterior means times the scaling factor, and n captions.
    """
    weights = torch.cat([p.flatten()[:64] for p in vae.parameters()]).numpy().tobytes()
    name = f"latents-{n}-{seed}-{hashlib.sha256(weights).hexdigest()[:10]}"
    file, texts = Path(folder) / f"{name}.safetensors", Path(folder) / f"{name}.json"
    if file.exists() and texts.exists():
        return load_file(file)["latents"], json.loads(texts.read_text())
    file.parent.mkdir(parents=True, exist_ok=True)
    latents, captions = [], []
    vae = vae.to(memory_format=torch.channels_last)
    with tqdm(total=n, desc="encoding", mininterval=10) as bar:
        for pictures, batch_captions in stream(min(256, n), seed):
            pictures = (pictures * 2 - 1).contiguous(memory_format=torch.channels_last)
            means = vae.encode(pictures.to(vae.device)).latent_dist.mean * vae.config.scaling_factor
            latents.append(means.cpu().half())
            captions += batch_captions
            bar.update(len(batch_captions))
            if len(captions) >= n:
                break
    stacked = torch.cat(latents)[:n].contiguous()
    save_file({"latents": stacked}, file)
    texts.write_text(json.dumps(captions[:n]))
    return stacked, captions[:n]


def rows(n: int, batch: int, seed: int, step: int) -> Tensor:
    """Row numbers for one step: epochs in shuffled order, a function of (n, batch, seed, step)."""
    epoch, place = divmod(step, n // batch)
    order = np.random.default_rng((seed, epoch)).permutation(n)
    return torch.from_numpy(order[place * batch : (place + 1) * batch])


def oversample(latents: Tensor, captions: list[str], what: str, times: int) -> tuple[Tensor, list[str]]:
    """The same training set, in which each example whose caption is of category `what`, or has the word `what`, occurs
    `times` times.

    Raises:
        ValueError: no such caption, or `times` below one.
    """
    if what in ALL_CATEGORIES:
        has = torch.tensor([parse(caption).category == what for caption in captions])
    else:
        has = torch.tensor([what in caption.split() for caption in captions])
    if times < 1 or not has.any():
        raise ValueError(f"--oversample {what} {times}: {int(has.sum())} captions are of this category (of "
                         f"{', '.join(ALL_CATEGORIES)}) or have this word; N must be >= 1")
    index = torch.arange(len(captions)).repeat_interleave(torch.where(has, times, 1))
    return latents[index], [captions[i] for i in index.tolist()]
