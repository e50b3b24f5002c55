"""Preprocessing of pictures that gradients pass through: resize, crop or pad, normalise.

The reference is Pillow's bicubic resize of 8-bit pictures: along the width first, then along the height, with weights
in whole multiples of 2^-22, clipped to [0, 255] and rounded after each pass. With `eight_bit` this is done exactly, in
float64, the rounding with a straight-through gradient (value rounded, derivative 1; clipped values have none): 8-bit
pictures give the reference's values bit for bit. A single two-dimensional resize misses them by up to 30/255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
BICUBIC = 3  # Pillow's number
FIXED = 2**22  # one, in Pillow's whole-number weights


@lru_cache(maxsize=64)
def pillow_weights(size: int, wanted: int) -> Tensor:
    """(wanted, size) float64: row i weighs the old pixels for the new pixel i.

    The cubic kernel with a = -1/2, widened by the scale when the picture shrinks, over the pixels whose middle lies
    within its support; rows sum to 1 and are then rounded to multiples of 2^-22.
    """
    scale = size / wanted
    wide = max(scale, 1.0)
    centre = (torch.arange(wanted, dtype=torch.float64) + 0.5)[:, None] * scale
    pixel = torch.arange(size, dtype=torch.float64)
    first = (centre - 2 * wide + 0.5).trunc().clamp(min=0)
    last = (centre + 2 * wide + 0.5).trunc().clamp(max=size)
    x = ((pixel + 0.5 - centre) / wide).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = torch.where((pixel >= first) & (pixel < last), weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True) * FIXED
    return (weights + 0.5 * weights.sign()).trunc() / FIXED


def to_eight_bit(x: Tensor) -> Tensor:
    """Values on the 0 to 255 scale clipped and rounded, halves up, with a straight-through gradient."""
    x = x.clamp(0, 255)
    return x + ((x + 0.5).floor() - x).detach()


def resize(images: Tensor, height: int, width: int, eight_bit: bool = True) -> Tensor:
    """Bicubic, antialiased resize of (B, 3, H, W) in [0, 1]: as Pillow, or without `eight_bit` on plain floats."""
    if (height, width) == tuple(images.shape[2:]):
        return images
    if not eight_bit:
        return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
    x = (images * 255).double()  # in float32 first: k / 255 times 255 is k again
    if width != x.shape[3]:
        x = to_eight_bit(x @ pillow_weights(x.shape[3], width).T.to(x.device))
    if height != x.shape[2]:
        x = to_eight_bit(pillow_weights(x.shape[2], height).to(x.device) @ x)
    return (x / 255).to(images.dtype)


def crop_or_pad(images: Tensor, size: int, halves: Literal["floor", "even"] = "floor") -> Tensor:
    """The middle `size` x `size` pixels of (B, 3, H, W), black where the picture is smaller.

    Args:
        halves: where the margin is odd. "floor" as transformers and Pillow-based crops of this library, "even" as
            torchvision's CenterCrop, which rounds half a pixel to the even side.
    """
    height, width = images.shape[2:]
    left, top = max(size - width, 0), max(size - height, 0)
    if left or top:
        images = F.pad(images, (left // 2, left - left // 2, top // 2, top - top // 2))
    spare = images.shape[2] - size, images.shape[3] - size
    y, x = (s // 2 if halves == "floor" else round(s / 2) for s in spare)
    return images[:, :, y : y + size, x : x + size]


@dataclass(frozen=True)
class Preprocess:
    """Pictures (B, 3, H, W) in [0, 1] to a model's pixel values (B, 3, crop, crop).

    Attributes:
        size: length of the side that `fit` names, in pixels.
        crop: side of the result; None for `size`.
        fit: "shortest" scales the shortest side to `size` and crops the middle; "longest" scales the longest side and
            pads with black; "stretch" ignores the aspect.
        mean, std: of the normalisation.
        eight_bit: whether the reference resizes 8-bit pictures (True) or floats (False).
        halves: see `crop_or_pad`.
    """

    size: int
    crop: int | None = None
    fit: Literal["shortest", "longest", "stretch"] = "shortest"
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    eight_bit: bool = True
    halves: Literal["floor", "even"] = "floor"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize; "shortest" cuts the other side to whole pixels, "longest" rounds it."""
        if self.fit == "stretch":
            return self.size, self.size
        if self.fit == "longest":
            scale = self.size / max(height, width)
            return max(round(height * scale), 1), max(round(width * scale), 1)
        long = int(self.size * max(height, width) / min(height, width))
        return (self.size, long) if height <= width else (long, self.size)

    def pixels(self, images: Tensor) -> Tensor:
        """(B, 3, crop, crop) before normalisation, float32; in [0, 1] where `eight_bit`."""
        images = resize(images.float(), *self.resized(*images.shape[2:]), eight_bit=self.eight_bit)
        return crop_or_pad(images, self.crop or self.size, self.halves)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, crop, crop) float32, normalised."""
        pixels = self.pixels(images)
        return (pixels - pixels.new_tensor(self.mean)[:, None, None]) / pixels.new_tensor(self.std)[:, None, None]

    @classmethod
    def from_processor(cls, processor: Any) -> Preprocess:
        """The same steps as a CLIP-like image processor of transformers.

        Raises:
            ValueError: a step that this class does not know (another filter, another size rule, another scale).
        """
        size, crop = _plain(processor.size), _plain(getattr(processor, "crop_size", None))
        wrong: Sequence[str] = [
            *(["resample"] if int(processor.resample) != BICUBIC else []),
            *(["rescale_factor"] if abs(processor.rescale_factor * 255 - 1) > 1e-6 else []),
            *(step for step in ("do_resize", "do_rescale", "do_normalize") if not getattr(processor, step)),
            *(["do_pad"] if getattr(processor, "do_pad", None) else []),
        ]
        square = size.get("height") if size.get("height") == size.get("width") else None
        side = size.get("shortest_edge") or square
        if wrong or not side or set(size) - {"shortest_edge", "height", "width"}:
            raise ValueError(
                f"{type(processor).__name__} is not a bicubic resize to one side, a crop and a normalisation "
                f"(at odds: {', '.join(wrong) or f'size {size}'}); give a Preprocess of your own"
            )
        cropped = crop.get("height") if getattr(processor, "do_center_crop", False) else None
        fit = "shortest" if size.get("shortest_edge") else "stretch"
        return cls(side, cropped, fit, tuple(processor.image_mean), tuple(processor.image_std))


def _plain(size: Any) -> dict[str, int]:
    """A processor's size as a dict without its empty entries."""
    pairs = {} if size is None else dict(size) if isinstance(size, dict) else vars(size)
    return {name: int(value) for name, value in pairs.items() if value is not None}
