"""Rewards without a model: the size of the encoded picture, its brightness, its colourfulness.

JPEG (in)compressibility is the reward of DDPO (arXiv 2305.13301): the size of the picture in kB (1 kB = 1000 bytes) as
a JPEG file of quality 95, negative for compressibility. The encoder is Pillow's, with its default chroma subsampling.
The sizes depend on the version of the JPEG library by a few bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from surveylib.rewards.contract import Reward

QUALITY = 95  # of the JPEG encoder, as in DDPO's official code
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
TINY = 1e-12  # least square under a root on the 0 to 255 scale: grey pictures keep a finite gradient


def to_bytes(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as uint8 (B, H, W, 3) on the CPU, rounded."""
    return (images.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous()


def jpeg_kilobytes(images: Tensor, quality: int = QUALITY) -> Tensor:
    """Sizes (B,) in kB of pictures (B, 3, H, W) in [0, 1] as JPEG files.

    Raises:
        ValueError: a quality outside 1 ... 100.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"the JPEG quality must be 1 to 100, not {quality}")
    sizes = []
    for picture in to_bytes(images).numpy():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="JPEG", quality=quality)
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32, device=images.device)


class JpegIncompressibility(Reward):
    """Size of the picture as a JPEG file, in kB. Not differentiable."""

    name, range, needs_prompt = "jpeg_incompressibility", (0.0, float("inf")), False

    def __init__(self, quality: int = QUALITY):
        self.quality = quality

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in kB; grows with the number of pixels."""
        return jpeg_kilobytes(images, self.quality)


class JpegCompressibility(JpegIncompressibility):
    """Negative size of the picture as a JPEG file, in kB. Not differentiable."""

    name, range = "jpeg_compressibility", (float("-inf"), 0.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in negative kB."""
        return -jpeg_kilobytes(images, self.quality)


class Brightness(Reward):
    """Mean luma (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B), in [0, 1]. Differentiable."""

    name, range, needs_prompt, differentiable = "brightness", (0.0, 1.0), False, True

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in [0, 1]."""
        return (images.float() * images.new_tensor(LUMA).float()[:, None, None]).sum(1).mean((1, 2))


class Colourfulness(Reward):
    """The colourfulness M of Hasler and Suesstrunk (2003), on values from 0 to 255. Differentiable.

    With rg = R - G and yb = (R + G) / 2 - B over the pixels:
    M = sqrt(var rg + var yb) + 0.3 sqrt(mean² rg + mean² yb). About 0 for a grey picture; the authors place 109 at
    "extremely colourful". Source: Measuring colourfulness in natural images, SPIE 5007, 2003.
    """

    name, range, needs_prompt, differentiable = "colourfulness", (0.0, float("inf")), False, True

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,), 0 or more."""
        red, green, blue = (images.float() * 255).flatten(2).unbind(1)
        rg, yb = red - green, (red + green) / 2 - blue
        spread = rg.var(1, correction=0) + yb.var(1, correction=0)
        centre = rg.mean(1).square() + yb.mean(1).square()
        return spread.clamp(min=TINY).sqrt() + 0.3 * centre.clamp(min=TINY).sqrt()
