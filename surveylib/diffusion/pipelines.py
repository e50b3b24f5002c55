"""Adapters: the `DiffusionModel` contract over four diffusers pipelines.

==========================  ==================================  ===========================================
pipeline                    adapter                             networks of this class
==========================  ==================================  ===========================================
StableDiffusionPipeline     `StableDiffusion`                   shapes-sd, SD1.5, SD-Turbo
StableDiffusionXLPipeline   `StableDiffusionXL`                 SDXL, SDXL-Turbo
StableDiffusion3Pipeline    `StableDiffusion3`                  shapes-sd3, SD3, SD3.5
FluxPipeline                `Flux`                              FLUX.1-dev, FLUX.1-schnell
==========================  ==================================  ===========================================

`from_pipeline` picks the adapter. The pipeline stays usable as ``model.pipeline`` and shares all weights. Given the
same latents, an adapter with the pipeline's deterministic solver makes the pipeline's own picture (tests hold this).
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from surveylib.diffusion.clamp import straight_through_clamp
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.predictions import kind_of_scheduler
from surveylib.diffusion.schedules import Schedule, schedule_from_diffusers

SETTINGS = ("default_guidance", "default_steps", "max_sequence_length", "resolution")


class PipelineModel(DiffusionModel):
    """What the four adapters share. A subclass says how text is embedded (`embed`) and how the network is called
    (`network_output`), and where needed overrides ``part``, ``patch``, ``embedded_names`` and the other small hooks.

    Args:
        pipeline: the diffusers pipeline. It is put in ``eval()``; text encoders and autoencoder are frozen.
        name: how rows and messages call the model.
        default_guidance: scale used where a call says ``guidance=None``; default: the pipeline's own.
        default_steps: network calls of a sampling run; default: the pipeline's own.
        max_sequence_length: tokens given to T5 (SD3 and FLUX only); default: the pipeline's own.
        resolution: height and width of the pictures in pixels, a number or a pair; default: the pipeline's own.

    Attributes beyond those of `DiffusionModel`: ``pipeline``, ``name``, ``default_steps``, ``resolution`` (H, W),
    ``vae``.

    Raises:
        ValueError: a setting or a pipeline's configuration that this adapter cannot honour.
    """

    vocabulary: frozenset[str] | None = None  # words the model has seen, lower case; `encode` warns of others
    part = "unet"  # the pipeline's name for the network
    patch = 1  # latents must be divisible by it
    embedded_names: tuple[str, ...] = ("prompt_embeds",)  # tensors of a condition

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        name: str | None = None,
        default_guidance: float | None = None,
        default_steps: int | None = None,
        max_sequence_length: int | None = None,
        resolution: int | Sequence[int] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self._named: set[str] = set()  # words that were warned of
        self.name = name or type(pipeline).__name__
        self.network: nn.Module = getattr(pipeline, self.part)
        self.vae = pipeline.vae
        own = inspect.signature(type(pipeline).__call__).parameters
        self.default_guidance = float(own["guidance_scale"].default if default_guidance is None else default_guidance)
        self.default_steps = int(own["num_inference_steps"].default if default_steps is None else default_steps)
        if max_sequence_length is not None and "max_sequence_length" not in own:
            raise ValueError(f"max_sequence_length is the length of T5 text; {type(pipeline).__name__} has no T5")
        if "max_sequence_length" in own:
            self.max_sequence_length = int(max_sequence_length or own["max_sequence_length"].default)
        self.resolution = self._check_resolution(resolution)
        scale = pipeline.vae_scale_factor
        self.latent_shape = (self.latent_channels(), self.resolution[0] // scale, self.resolution[1] // scale)
        self.schedule = self.make_schedule()
        self.prediction_kind = kind_of_scheduler(pipeline.scheduler)
        self._freeze()

    # -- what a subclass says --------------------------------------------------------------------------------------
    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        """Tensors of the texts, batch first, through the pipeline's own ``encode_prompt``."""
        raise NotImplementedError

    def embed_negative(self, texts: list[str]) -> dict[str, Tensor]:
        """The same for negative prompts, where the pipeline treats them otherwise."""
        return self.embed(texts)

    def default_size(self) -> int | Sequence[int]:
        """Height and width of the latents if no resolution is given."""
        return self.network.config.sample_size

    def latent_channels(self) -> int:
        """Channels of a latent (B, C, H, W), before any packing."""
        channels, outputs = self.network.config.in_channels, self.network.config.out_channels
        if channels != (outputs or channels):
            raise ValueError(f"this network takes {channels} channels and gives {outputs}: inpainting, image-to-image "
                             "and variance-predicting networks are not supported")
        return channels

    def dynamic_shift(self) -> float | None:
        """The flow schedule's shift where the scheduler derives it from the picture's size, else None."""
        config = self.pipeline.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return None
        tokens = math.prod(self.latent_shape[1:]) // self.patch**2
        mu = calculate_shift(
            tokens, config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5), config.get("max_shift", 1.15),
        )
        return mu if config.get("time_shift_type") == "linear" else math.exp(mu)

    def make_schedule(self) -> Schedule:
        """The schedule that the pipeline's scheduler describes."""
        return schedule_from_diffusers(self.pipeline.scheduler, shift=self.dynamic_shift())

    # -- the contract ----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative: Sequence[str] | str | None = "") -> Condition:
        """Condition of B prompts. Each different text is embedded once.

        Args:
            prompts: B texts (a single string counts as one).
            negative: one text for all, or B of them. "" is the pipeline's own meaning of "no negative prompt" (zeros in
                SDXL, the empty text elsewhere). None leaves the unconditional branch out: then guidance must be 1.

        Raises:
            ValueError: no prompts, or another number of negatives. TypeError: a prompt that is no text.

        Warns:
            UserWarning naming words outside the model's ``vocabulary``, where it has one (the shipped models do), each
            word once for a loaded model.
        """
        prompts, negatives = _texts(prompts, "prompts"), []
        if negative is not None and self.guidance_mode != "embedded":
            negatives = [negative] * len(prompts) if isinstance(negative, str) else _texts(negative, "negative")
            if len(negatives) != len(prompts):
                raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one text, or as "
                                 "many")
        self.warn_of_words([*prompts, *negatives], stacklevel=3)  # `no_grad` is a frame
        tensors = _each_once(self.embed, prompts)
        return Condition(tensors, prompts, _each_once(self.embed_negative, negatives) if negatives else None)

    def warn_of_words(self, texts: Sequence[str], stacklevel: int = 1) -> None:
        """Warn, once for all texts, of words that the model has never seen; nothing for a model without ``vocabulary``.

        Words that were named before are not named again. `encode` does this for its texts.

        Warns:
            UserWarning naming the words.
        """
        if self.vocabulary is None:
            return
        words = dict.fromkeys(word for text in dict.fromkeys(texts) for word in re.findall(r"[^\s,.]+", text.lower()))
        strange = [word for word in words if word not in self.vocabulary and word not in self._named]
        if strange:
            self._named.update(strange)
            warnings.warn(f"words that {self.name} never saw: {', '.join(strange)}. It draws something else for them. "
                          f"It knows {', '.join(sorted(self.vocabulary))}", stacklevel=stacklevel + 1)

    def decode(self, latents: Tensor, clamp: bool = False) -> Tensor:
        """Pictures (B, 3, H, W), float32 in [0, 1], differentiable; slightly outside unless ``clamp``.

        The clamp is straight through: a plain one has no gradient where a picture is saturated.

        Raises ValueError for latents of another shape or on another device.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_shape[0] or not latents.is_floating_point():
            raise ValueError(f"latents of shape {tuple(latents.shape)}, {latents.dtype}, do not fit: {self.name} "
                             f"decodes floating point (batch, {', '.join(map(str, self.latent_shape))})")
        self._check_device(latents, "the latents are")
        images = self.vae.decode(self._to_vae(latents).to(self.vae.dtype), return_dict=False)[0]
        images = images.float() / 2 + 0.5
        return straight_through_clamp(images) if clamp else images

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, *latent_shape), float32, of pictures (B, 3, H, W) in [0, 1]: the mean of the encoder's posterior.

        Raises ValueError for pictures of another shape, type or range.
        """
        if images.ndim != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) != self.resolution:
            raise ValueError(f"pictures of shape {tuple(images.shape)} do not fit: {self.name} encodes "
                             f"(batch, 3, {self.resolution[0]}, {self.resolution[1]})")
        if not images.is_floating_point() or images.amin() < -0.5 or images.amax() > 1.5:
            raise ValueError(f"pictures must be floating point in [0, 1], got {images.dtype} from {images.amin():.3g} "
                             f"to {images.amax():.3g}; bytes: images / 255, [-1, 1]: images / 2 + 0.5")
        self._check_device(images, "the pictures are")
        encoded = self.vae.encode((images * 2 - 1).to(self.vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return self._from_vae(latents.float())

    def initial_noise(self, n: int, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """(n, *latent_shape), float32: what the pipeline starts from, as x_t at ``schedule.start``.

        Standard normal, except where the pipeline has an Euler scheduler with trailing or linspace spacing (the turbo
        models): that starts from s(T-1) eps, which is a little smaller. Schedulers whose ``init_noise_sigma`` is 1
        (DDIM, DPM-Solver) start from eps, whatever their spacing.
        """
        noise = super().initial_noise(n, generator)
        scheduler = self.pipeline.scheduler
        over_a = float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0  # its latents are x_t / a: s/a there, s here
        if over_a and scheduler.config.get("timestep_spacing") in ("trailing", "linspace"):
            noise = noise * float(self.schedule.coefficients(self.schedule.start)[1])
        return noise

    def check(self, x: Tensor, condition: Condition) -> None:
        """As in `DiffusionModel`, and: all on this model's device, and the condition made by this kind of model."""
        super().check(x, condition)
        self._check_device(x, "x is")
        if set(condition.tensors) != set(self.embedded_names):
            raise ValueError(f"the condition holds {sorted(condition.tensors)}, {self.name} needs "
                             f"{sorted(self.embedded_names)}: encode the prompts with this model")
        self._check_device(next(iter(condition.tensors.values())), "the condition is")
        config = getattr(self.network, "config", {})
        width = config.get("joint_attention_dim") or config.get("cross_attention_dim")
        found = condition.tensors[self.embedded_names[0]].shape[-1]
        if isinstance(width, int) and found != width:
            raise ValueError(f"the condition's text features are {found} wide, {self.name} takes {width}: another "
                             "model made them, encode the prompts with this one")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PipelineModel:
        """Move the whole pipeline; returns the model itself."""
        self.pipeline.to(*(target for target in (device, dtype) if target is not None))
        self._keep_vae_float32()
        return self

    # -- inner parts -----------------------------------------------------------------------------------------------
    def _check_device(self, tensor: Tensor, what: str) -> None:
        if tensor.device != self.device:
            raise ValueError(f"{what} on {tensor.device}, {self.name} is on {self.device}: move it with "
                             f".to({str(self.device)!r})")

    def _check_resolution(self, resolution: int | Sequence[int] | None) -> tuple[int, int]:
        scale = self.pipeline.vae_scale_factor
        if resolution is None:
            size = self.default_size()
            height, width = (size, size) if isinstance(size, int) else size
            return height * scale, width * scale
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        step = scale * self.patch
        if height < step or width < step or height % step or width % step:
            raise ValueError(f"resolution {height}x{width} must be multiples of {step} pixels for {self.name}")
        return int(height), int(width)

    def _freeze(self) -> None:
        for key, part in self.pipeline.components.items():
            if isinstance(part, nn.Module):
                part.eval()
                if key != self.part:
                    part.requires_grad_(False)
        self._keep_vae_float32()

    def _keep_vae_float32(self) -> None:
        if self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast"):
            self.vae.float()  # SDXL's autoencoder overflows in float16; its config says so

    def _to_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._latent_statistics(latents)
        return latents * (std / self.vae.config.scaling_factor) + mean

    def _from_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._latent_statistics(latents)
        return (latents - mean) * (self.vae.config.scaling_factor / std)

    def _latent_statistics(self, latents: Tensor) -> tuple[Any, Any]:
        """(mean, std) of the autoencoder's latents by channel, or (shift, 1)."""
        config = self.vae.config
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            return tuple(latents.new_tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return config.get("shift_factor") or 0.0, 1.0


class StableDiffusion(PipelineModel):
    """StableDiffusionPipeline: SD1.x, SD2.x, SD-Turbo, shapes-sd. A UNet with one text model."""

    def __init__(self, pipeline: DiffusionPipeline, **settings: Any) -> None:
        super().__init__(pipeline, **settings)
        if self.network.config.time_cond_proj_dim is not None:  # latent consistency models
            self.guidance_mode = "embedded"

    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        return {"prompt_embeds": self.pipeline.encode_prompt(texts, self.device, 1, False)[0]}

    def _guidance_embedding(self, guidance: Tensor | None) -> Tensor | None:
        if guidance is None:
            return None
        width = self.network.config.time_cond_proj_dim
        return self.pipeline.get_guidance_scale_embedding(guidance - 1, embedding_dim=width).to(self.dtype)

    def network_output(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """One UNet call; kind as the scheduler's ``prediction_type`` says."""
        return self.network(
            x.to(self.dtype),
            self.schedule.network_time(t),
            encoder_hidden_states=tensors["prompt_embeds"].to(self.dtype),
            timestep_cond=self._guidance_embedding(guidance),
            added_cond_kwargs=self._added(tensors),
            return_dict=False,
        )[0]

    def _added(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return None


class StableDiffusionXL(StableDiffusion):
    """StableDiffusionXLPipeline: SDXL, SDXL-Turbo. A UNet with two text models, pooled text and size conditions."""

    embedded_names = ("prompt_embeds", "pooled_embeds", "time_ids")

    def _time_ids(self, n: int) -> Tensor:
        """(n, 6): original height and width, top and left of the crop, target height and width."""
        ids = torch.tensor([*self.resolution, 0, 0, *self.resolution], device=self.device, dtype=self.dtype)
        return ids.repeat(n, 1)

    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(texts, device=self.device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled_embeds": pooled, "time_ids": self._time_ids(len(texts))}

    def embed_negative(self, texts: list[str]) -> dict[str, Tensor]:
        tensors = self.embed(texts)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([text == "" for text in texts], device=self.device)
            for name in ("prompt_embeds", "pooled_embeds"):
                tensors[name] = tensors[name].masked_fill(empty.view(-1, *[1] * (tensors[name].ndim - 1)), 0)
        return tensors

    def _added(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"text_embeds": tensors["pooled_embeds"].to(self.dtype), "time_ids": tensors["time_ids"].to(self.dtype)}


class StableDiffusion3(PipelineModel):
    """StableDiffusion3Pipeline: SD3, SD3.5, shapes-sd3. Flow matching; two CLIP models and T5.

    ``max_sequence_length`` is the number of T5 tokens (padded, unmasked), so it changes the picture.
    """

    part = "transformer"
    embedded_names = ("prompt_embeds", "pooled_embeds")

    def __init__(self, pipeline: DiffusionPipeline, **settings: Any) -> None:
        self.patch = pipeline.transformer.config.patch_size
        super().__init__(pipeline, **settings)

    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        # A T5 length below CLIP's is chosen on purpose: that T5 text is cut there is no news, that CLIP's is stays so.
        logger = logging.getLogger(type(self.pipeline).__module__)
        short = self.max_sequence_length < self.pipeline.tokenizer_max_length

        def is_news(record: logging.LogRecord) -> bool:
            return not (short and "max_sequence_length" in record.getMessage())

        logger.addFilter(is_news)
        try:
            embeds, _, pooled, _ = self.pipeline.encode_prompt(
                texts, None, None, device=self.device, do_classifier_free_guidance=False,
                max_sequence_length=self.max_sequence_length,
            )
        finally:
            logger.removeFilter(is_news)
        return {"prompt_embeds": embeds, "pooled_embeds": pooled}

    def network_output(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """One transformer call: the velocity eps - x0."""
        return self.network(
            hidden_states=x.to(self.dtype),
            timestep=self.schedule.network_time(t),
            encoder_hidden_states=tensors["prompt_embeds"].to(self.dtype),
            pooled_projections=tensors["pooled_embeds"].to(self.dtype),
            return_dict=False,
        )[0]


class Flux(PipelineModel):
    """FluxPipeline: FLUX.1-dev (guidance-distilled: the scale is an input) and FLUX.1-schnell (no guidance).

    Latents outside are (B, C, H, W); packing 2x2 patches into tokens happens inside. With schnell a guidance other than
    1 is classifier-free guidance with two branches (the pipeline's ``true_cfg_scale``).
    """

    part = "transformer"
    patch = 2
    embedded_names = ("prompt_embeds", "pooled_embeds")

    def __init__(self, pipeline: DiffusionPipeline, **settings: Any) -> None:
        if pipeline.transformer.config.guidance_embeds:
            self.guidance_mode = "embedded"
        else:
            settings = {**settings, "default_guidance": settings.get("default_guidance") or 1.0}
        super().__init__(pipeline, **settings)

    def default_size(self) -> int:
        return self.pipeline.default_sample_size

    def latent_channels(self) -> int:
        return super().latent_channels() // 4

    def make_schedule(self) -> Schedule:
        return schedule_from_diffusers(self.pipeline.scheduler, shift=self.dynamic_shift(), spacing="uniform")

    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            texts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "pooled_embeds": pooled}

    def network_output(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """One transformer call: the velocity eps - x0."""
        n, channels, height, width = x.shape
        text = tensors["prompt_embeds"].to(self.dtype)
        packed = self.pipeline._pack_latents(x.to(self.dtype), n, channels, height, width)  # (B, HW/4, 4C)
        output = self.network(
            hidden_states=packed,
            timestep=self.schedule.network_time(t).to(self.dtype) / 1000,
            guidance=guidance,
            pooled_projections=tensors["pooled_embeds"].to(self.dtype),
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=self.pipeline._prepare_latent_image_ids(n, height // 2, width // 2, x.device, self.dtype),
            return_dict=False,
        )[0]
        return self.pipeline._unpack_latents(output, *self.resolution, self.pipeline.vae_scale_factor)


ADAPTERS: dict[str, type[PipelineModel]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}


def from_pipeline(pipeline: DiffusionPipeline, **settings: Any) -> PipelineModel:
    """The adapter of a diffusers pipeline; `settings` as of `PipelineModel`.

    Raises:
        ValueError: a pipeline class without an adapter; the error lists those that have one.
    """
    kind = type(pipeline).__name__
    if kind not in ADAPTERS:
        raise ValueError(f"no adapter for {kind}; there are adapters for {', '.join(ADAPTERS)}. Another pipeline needs "
                         "a subclass of DiffusionModel: see the page 'Bring your own model'")
    return ADAPTERS[kind](pipeline, **settings)


def _texts(texts: Sequence[str] | str, what: str) -> list[str]:
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise ValueError(f"{what}: an empty list; give at least one text")
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise TypeError(f"{what} must be texts, got {wrong[0]!r} of type {type(wrong[0]).__name__}")
    return texts


def _each_once(embed, texts: list[str]) -> dict[str, Tensor]:
    """``embed`` of the distinct texts, spread back over all of them."""
    distinct = list(dict.fromkeys(texts))
    tensors = embed(distinct)
    if len(distinct) == len(texts):
        return tensors
    rows = torch.tensor([distinct.index(text) for text in texts])
    return {name: value[rows.to(value.device)] for name, value in tensors.items()}
