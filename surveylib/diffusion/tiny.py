"""Tiny random-weight pipelines of exactly the classes used at full scale.

Each is an ordinary diffusers pipeline (StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline,
FluxPipeline) with some 100,000 weights and tokenizers of single characters. They are built in well under a second, need
no network, and survive ``save_pretrained`` and ``from_pretrained``. Their pictures are noise. They serve the tests and
the scale ``rehearsal``, where the code path of full scale runs on them.

Every one has latents of shape (4, 8, 8) and pictures of 32x32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LATENT_SIZE = 8
RESOLUTION = 32  # pixels: three autoencoder blocks halve twice
TEXT_WIDTH = 32
TEXT_LENGTH = 77
T5_LENGTH = 512


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are single characters: any text is readable, the same ids in every process.

    (Training one on a few captions numbers equally frequent pieces in another order in every process.)
    """
    characters = sorted(ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *characters, *(character + "</w>" for character in characters)]
    tokenizer = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer


def t5_tokenizer() -> T5Tokenizer:
    """A T5 (unigram) tokenizer whose tokens are the printable ASCII characters."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=specials + [(chr(code), -4.0) for code in range(33, 127)], extra_ids=0)
    tokenizer.model_max_length = T5_LENGTH
    return tokenizer


def clip_text_model(
    tokenizer: CLIPTokenizer, projection: bool, factor: float = 20.0
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A two-layer CLIP text model of width 32; with `projection` its pooled output is projected (SDXL, SD3).

    factor: of the initial weights. CLIP initialises near zero; a random model should still tell prompts apart.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=64, projection_dim=TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=TEXT_LENGTH, hidden_act="quick_gelu",
        # Without the tokenizer's own ids the pooled embedding is taken at a wrong place, the same for all prompts.
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        initializer_factor=factor,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_encoder(tokenizer: T5Tokenizer, width: int) -> T5EncoderModel:
    """A one-layer T5 encoder; `width` must equal the transformer's ``joint_attention_dim``."""
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def autoencoder(scaling_factor: float, shift_factor: float | None = None) -> AutoencoderKL:
    """An autoencoder that shrinks pictures fourfold to 4 latent channels."""
    return AutoencoderKL(
        block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=RESOLUTION, scaling_factor=scaling_factor, shift_factor=shift_factor,
    ).eval()


def unet(cross_attention_dim: int, **config) -> UNet2DConditionModel:
    """A two-level UNet; `attention_head_dim` of this class is the number of heads."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim, attention_head_dim=2, norm_num_groups=4, **config,
    ).eval()


def _ddim(**overrides) -> DDIMScheduler:
    settings = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1,
    }
    return DDIMScheduler(**(settings | overrides))


def tiny_sd(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Class of SD1.5: UNet, one CLIP text model, DDIM scheduler with SD's beta schedule."""
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(0.18215), text_encoder=clip_text_model(tokenizer, projection=False), tokenizer=tokenizer,
        unet=unet(TEXT_WIDTH), scheduler=_ddim(prediction_type=prediction_type), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """Class of SDXL: two text models, pooled text and size conditions ("time ids")."""
    tokenizer = clip_tokenizer()
    small = 5.0  # SDXL reads the layer before the last, without its norm: at 20 embeddings reach 1000, rounding shows
    return StableDiffusionXLPipeline(
        vae=autoencoder(0.13025), text_encoder=clip_text_model(tokenizer, False, small), tokenizer=tokenizer,
        text_encoder_2=clip_text_model(tokenizer, True, small), tokenizer_2=clip_tokenizer(),
        unet=unet(
            2 * TEXT_WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH, transformer_layers_per_block=(1, 1),
            use_linear_projection=True,
        ),
        scheduler=_ddim(), force_zeros_for_empty_prompt=True, add_watermarker=False,
    )


def tiny_sd3(shift: float = 3.0) -> StableDiffusion3Pipeline:
    """Class of SD3 and SD3.5-medium: joint transformer with RMS-normed queries and keys, two CLIP models and a T5."""
    tokenizer, tokenizer_3 = clip_tokenizer(), t5_tokenizer()
    joint = 2 * TEXT_WIDTH  # the two CLIP embeddings side by side; T5 must have the same width
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIZE, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=joint, caption_projection_dim=32, pooled_projection_dim=joint,
        pos_embed_max_size=32, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=autoencoder(1.5305, 0.0609), text_encoder=clip_text_model(tokenizer, projection=True), tokenizer=tokenizer,
        text_encoder_2=clip_text_model(tokenizer, projection=True), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(tokenizer_3, joint), tokenizer_3=tokenizer_3,
    )


def tiny_flux(distilled: bool = True) -> FluxPipeline:
    """Class of FLUX.1: packed latents, CLIP pooled text and T5 tokens.

    `distilled` builds the dev variant (guidance enters as an embedding, sampling times shifted with the picture's
    size); False builds schnell (no guidance, no shift).
    """
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=TEXT_WIDTH, guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=distilled, shift=3.0 if distilled else 1.0, base_image_seq_len=256,
        max_image_seq_len=4096, base_shift=0.5, max_shift=1.15,
    )
    return FluxPipeline(
        scheduler=scheduler, vae=autoencoder(0.3611, 0.1159),
        text_encoder=clip_text_model(tokenizer, projection=False), tokenizer=tokenizer,
        text_encoder_2=t5_encoder(tokenizer_2, TEXT_WIDTH), tokenizer_2=tokenizer_2, transformer=transformer,
    )


def _turbo(pipeline: DiffusionPipeline, scheduler: type) -> DiffusionPipeline:
    """Give `pipeline` the few-step scheduler settings of SD-Turbo (Euler) or SDXL-Turbo (ancestral Euler)."""
    pipeline.scheduler = scheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing", steps_offset=1,
    )
    return pipeline


TINY: dict[str, Callable[[], DiffusionPipeline]] = {
    "tiny-sd": tiny_sd,
    "tiny-sdxl": tiny_sdxl,
    "tiny-sd3": tiny_sd3,
    "tiny-flux": tiny_flux,
    "tiny-flux-schnell": lambda: tiny_flux(distilled=False),
    "tiny-sd-turbo": lambda: _turbo(tiny_sd(), EulerDiscreteScheduler),
    "tiny-sdxl-turbo": lambda: _turbo(tiny_sdxl(), EulerAncestralDiscreteScheduler),
}


def tiny_pipeline(name: str, seed: int = 0) -> DiffusionPipeline:
    """Build the tiny pipeline `name`, one of `TINY`, with weights drawn from `seed` (the global state is kept).

    Raises ValueError for an unknown name.
    """
    if name not in TINY:
        raise ValueError(f"unknown tiny pipeline {name!r}; there are {', '.join(TINY)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = TINY[name]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
