"""The CLIP trunk under every learned reward, cut in two so that what is frozen runs once.

`Trunk` wraps any transformers CLIPModel. The lowest layers of both towers are frozen; `lower_images` and `lower_texts`
compute up to the cut, and their results can be cached. `upper` computes the rest, with gradients where wanted. With no
layer unlocked the cut lies at the end of both towers: a frozen trunk, of which every picture is computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

import surveylib.worlds.shapes as shapes
from surveylib.diffusion.zoo import git_checkout, no_progress_bars
from surveylib.worlds.shapes.caption_choice import CLIP_TEXTS, CLIP_WEIGHTS, check_clip

SHAPES_CLIP = "shapes-clip"
TRAIN_SHAPES_CLIP = "python -m surveylib.worlds.shapes.pretrain.clip --out runs/shapes-clip"


@dataclass(frozen=True)
class Features:
    """What a head sees of B pictures beside their prompts.

    Attributes:
        image: (B, D) projected embedding of the picture, of any length. text: (B, D) of the prompt.
        image_tokens: (B, P, W_v) last states of the vision tower. text_tokens: (B, L, W_t) of the text tower.
        end: (B,) position of each prompt's end-of-text token.
    """

    image: Tensor
    text: Tensor
    image_tokens: Tensor
    text_tokens: Tensor
    end: Tensor

    @property
    def text_mask(self) -> Tensor:
        """(B, L) bool, True up to and with the end-of-text token."""
        places = torch.arange(self.text_tokens.shape[1], device=self.end.device)
        return places[None] <= self.end[:, None]


@dataclass(frozen=True)
class Widths:
    """Sizes that a head is built for: `projection` D, tokens of the `vision` and the `text` tower."""

    projection: int
    vision: int
    text: int


class Trunk(nn.Module):
    """A CLIPModel with its processor, cut below the unlocked layers.

    Args:
        clip: the model. It is frozen here, except the unlocked layers.
        processor: its CLIPProcessor (tokenizer; picture size, mean and std).
        name: a shipped name, hub id or folder from which `load_trunk` gets the same weights again.
        unlock: how many layers, counted from the end, are trained: (vision, text). Where a tower has one unlocked, its
            final norm and projection are too. (0, 0) freezes everything; HPSv2 unlocks (20, 11) of CLIP-H.

    Raises:
        ValueError: more layers unlocked than there are, or fewer than none.
    """

    def __init__(self, clip: CLIPModel, processor: CLIPProcessor, name: str = "", unlock: tuple[int, int] = (0, 0)):
        super().__init__()
        self.clip, self.processor, self.name = clip.eval(), processor, name
        self.unlock = (int(unlock[0]), int(unlock[1]))
        self.fingerprint = fingerprint(clip)
        self._unlock()
        image = processor.image_processor
        size = image.crop_size if getattr(image, "do_center_crop", False) else image.size
        self.size = int(size["height"] if "height" in size else size["shortest_edge"])
        self.register_buffer("mean", torch.tensor(image.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image.image_std).view(1, 3, 1, 1), persistent=False)

    def _unlock(self) -> None:
        clip = self.clip.requires_grad_(False)
        towers = {"vision": (clip.vision_model, clip.vision_model.post_layernorm, clip.visual_projection),
                  "text": (clip.text_model, clip.text_model.final_layer_norm, clip.text_projection)}
        for count, (name, (tower, norm, projection)) in zip(self.unlock, towers.items()):
            layers = tower.encoder.layers
            if not 0 <= count <= len(layers):
                raise ValueError(f"cannot unlock {count} {name} layers: this trunk has {len(layers)}; give 0 to that")
            if count:
                for module in (*layers[len(layers) - count :], norm, projection):
                    module.requires_grad_(True)

    @property
    def widths(self) -> Widths:
        """Sizes of `Features`."""
        config = self.clip.config
        return Widths(config.projection_dim, config.vision_config.hidden_size, config.text_config.hidden_size)

    def preprocess(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] as the tower wants them: shorter side resized (bicubic, antialiased), middle
        cut out, mean and std. Differentiable."""
        height, width = images.shape[-2:]
        if min(height, width) != self.size:
            scale = self.size / min(height, width)
            shape = (max(self.size, round(height * scale)), max(self.size, round(width * scale)))
            images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False)
        top, left = ((side - self.size) // 2 for side in images.shape[-2:])
        return (images[..., top : top + self.size, left : left + self.size] - self.mean) / self.std

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) token numbers, padded to the tower's length, on the trunk's device."""
        length = self.clip.config.text_config.max_position_embeddings
        batch = self.processor.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return batch.input_ids.to(self.mean.device)

    def lower_images(self, images: Tensor) -> Tensor:
        """(B, P, W_v): pictures (B, 3, H, W) in [0, 1] up to the cut of the vision tower."""
        tower = self.clip.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(self.preprocess(images)))
        for layer in tower.encoder.layers[: len(tower.encoder.layers) - self.unlock[0]]:
            hidden = layer(hidden, None)
        return hidden

    def lower_texts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, L, W_t) up to the cut of the text tower, and (B,) the places of the end-of-text tokens."""
        tower, ids = self.clip.text_model, self.tokens(prompts)
        hidden = tower.embeddings(input_ids=ids)
        mask = causal(hidden)
        for layer in tower.encoder.layers[: len(tower.encoder.layers) - self.unlock[1]]:
            hidden = layer(hidden, mask)
        # transformers keeps the number 2 in old configurations; there the end token is the highest number
        end = ids.argmax(-1) if tower.eos_token_id == 2 else (ids == tower.eos_token_id).int().argmax(-1)
        return hidden, end

    def upper(self, images: Tensor, texts: Tensor, end: Tensor) -> Features:
        """From the cut of both towers to `Features`; batch sizes equal."""
        vision, text = self.clip.vision_model, self.clip.text_model
        for layer in vision.encoder.layers[len(vision.encoder.layers) - self.unlock[0] :]:
            images = layer(images, None)
        mask = causal(texts)
        for layer in text.encoder.layers[len(text.encoder.layers) - self.unlock[1] :]:
            texts = layer(texts, mask)
        texts = text.final_layer_norm(texts)
        pooled = texts[torch.arange(len(texts), device=texts.device), end]
        return Features(
            self.clip.visual_projection(vision.post_layernorm(images[:, 0])),
            self.clip.text_projection(pooled), images, texts, end,
        )  # fmt: skip

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Features:
        """`Features` of pictures (B, 3, H, W) in [0, 1] and B prompts; gradients reach the pixels."""
        return self.upper(self.lower_images(images), *self.lower_texts(prompts))


def causal(hidden: Tensor) -> Tensor:
    """(1, 1, L, L) additive mask: a token sees itself and the ones before it."""
    length = hidden.shape[1]
    mask = torch.full((length, length), torch.finfo(hidden.dtype).min, dtype=hidden.dtype, device=hidden.device)
    return mask.triu(1)[None, None]


def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits of the weights: of each parameter its name, shape and first 64 numbers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def shapes_clip_folder() -> Path:
    """Folder of the shipped `shapes-clip`, after a look through its files.

    Raises:
        FileNotFoundError: a file is not there; the message names it and gives the commands that restore or train it.
        ModelUnavailable: a file is damaged; the message names it and the command that restores it.
    """
    folder = Path(shapes.__file__).parent / "checkpoints" / SHAPES_CLIP
    gone = [folder / name for name in (*CLIP_TEXTS, CLIP_WEIGHTS) if not (folder / name).is_file()]
    if gone:
        raise FileNotFoundError(f"missing: {gone[0]}, a file of {SHAPES_CLIP}. {git_checkout(gone[0])}\nOr train it "
                                f"({TRAIN_SHAPES_CLIP}) and copy its folder `model` to {folder}")
    return check_clip(folder)


def load_trunk(name: str | Path = SHAPES_CLIP, unlock: tuple[int, int] = (0, 0)) -> Trunk:
    """The trunk of a name: "shapes-clip", a folder, or a hub id such as "laion/CLIP-ViT-H-14-laion2B-s32B-b79K".

    Raises:
        FileNotFoundError: a file of shapes-clip is missing. ModelUnavailable: one is damaged.
        OSError: a folder or hub id has no CLIPModel.
        ValueError: `unlock` does not fit.
    """
    source = shapes_clip_folder() if str(name) == SHAPES_CLIP else name
    with no_progress_bars():
        clip = CLIPModel.from_pretrained(source)
    return Trunk(clip, CLIPProcessor.from_pretrained(source), str(name), unlock)
