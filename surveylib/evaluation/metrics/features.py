"""Features of pictures: any function from (B, 3, H, W) in [0, 1] to (B, d) serves every metric of distributions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.rewards.learned.trunk import SHAPES_CLIP, load_trunk

FeatureExtractor = Callable[[Tensor], Tensor]
FULL_SCALE_CLIP = "openai/clip-vit-large-patch14"


class MetricError(ValueError):
    """Features or pictures that a metric cannot be computed from."""


def clip_features(name: str | Path = SHAPES_CLIP) -> FeatureExtractor:
    """Unit image embeddings of a CLIP model as an extractor.

    Args:
        name: "shapes-clip", or a folder or hub name of a CLIPModel (`FULL_SCALE_CLIP` for photographs).

    Raises:
        FileNotFoundError: the model is not here; the message says how to get it.
    """
    if str(name) != SHAPES_CLIP:
        from surveylib.rewards.pretrained.clip_score import load

        return load(name).image_embeddings
    trunk = load_trunk(SHAPES_CLIP)

    def features(images: Tensor) -> Tensor:
        tokens = trunk.lower_images(images.to(trunk.mean.device))
        vision = trunk.clip.vision_model
        return F.normalize(trunk.clip.visual_projection(vision.post_layernorm(tokens[:, 0])), dim=-1)

    return features


@torch.no_grad()
def extract(features: FeatureExtractor, images: Tensor, batch: int = 256) -> Tensor:
    """(N, d) float64 on the CPU, `batch` pictures at a time.

    Raises:
        MetricError: no pictures, or an extractor that does not return (B, d) finite numbers.
    """
    if not len(images):
        raise MetricError("0 pictures: features need at least one")
    parts = []
    for part in images.split(batch):
        found = features(part)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(part):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise MetricError(f"the feature extractor returned {shape} for {len(part)} pictures; (B, d) is expected")
        parts.append(found.double().cpu())
    return check_features(torch.cat(parts), "the pictures")


def check_features(features: Tensor, what: str, least: int = 1, metric: str = "a metric") -> Tensor:
    """Features (N, d) as float64.

    Raises:
        MetricError: another shape, fewer than `least` rows, NaN or infinity; names the number there is and the one
        that is needed.
    """
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise MetricError(f"{metric} takes features (N, d) of {what}, got "
                          f"{tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__}")
    if len(features) < least:
        raise MetricError(f"{metric} needs at least {least} pictures; {what} are {len(features)}. "
                          "Draw more, or leave the metric out")
    features = features.double()
    if not features.isfinite().all():
        raise MetricError(f"features of {what} hold NaN or infinity")
    return features


def check_two(generated: Tensor, reference: Tensor, least: int, metric: str) -> tuple[Tensor, Tensor]:
    """Both sets, checked, of the same d."""
    generated = check_features(generated, "the generated pictures", least, metric)
    reference = check_features(reference, "the reference pictures", least, metric)
    if generated.shape[1] != reference.shape[1]:
        raise MetricError(f"{metric}: {generated.shape[1]} features of the generated and {reference.shape[1]} of the "
                          "reference pictures; take the same extractor")
    return generated, reference


def random_features(width: int = 16, seed: int = 0) -> FeatureExtractor:
    """Fixed random projections of 8 x 8 thumbnails: features that mean little, need no model and take any picture."""
    weight = torch.randn(3 * 8 * 8, width, generator=torch.Generator().manual_seed(seed)) / (3 * 8 * 8) ** 0.5

    def features(images: Tensor) -> Tensor:
        thumbnails = F.adaptive_avg_pool2d(images.float().cpu(), 8).flatten(1)
        return torch.cat([torch.tanh(thumbnails @ weight), torch.ones(len(images), 1)], 1)

    return features


def feature_extractor(name: str) -> FeatureExtractor:
    """The extractor of a name: "random", "shapes-clip", or a CLIPModel's folder or hub name."""
    return random_features() if name == "random" else clip_features(name)
