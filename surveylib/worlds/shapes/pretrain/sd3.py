"""Pre-train `shapes-sd3`: a small StableDiffusion3Pipeline, flow matching on the autoencoder's latents.

The loss is rectified flow's: || v_theta(x_sigma, sigma, c) - (eps - x0) ||^2 with x_sigma = (1 - sigma) x0 + sigma eps
and logit-normal sigma (arXiv 2403.03206); `--shift S` raises its logit by log S, which trains more where the noise is
strong and the caption decides. Text enters by two CLIP encoders, both trained together with the
transformer: that of a trained Stable Diffusion folder (`--teacher`, `shapes-sd`) with one layer more, and a smaller one
from nothing. The pipeline reads the last but one layer, which then is the last of the teacher's.

`--share W` replaces W of the target eps - x0 by the teacher's mean velocity (`teacher`): on a CPU there is no time for
the many samples that average the noise of the target away.

The third encoder, a one-layer T5, is there because the class wants one; its last norm is zero, so all its tokens are
the zero vector. n equal tokens act in the joint attention as one token whose logit is raised by log n: that is how
training covers any padding length at the price of one token (`copies_of_last_token`), so that a plain call, which pads
to 256, and ours, which pads to 8, both draw what was trained.

`--init FOLDER` goes on from a pipeline with a fresh optimiser. `--oversample WHAT N` takes each training picture whose
caption is of a category, or has a word, N times an epoch.

The pipeline draws with shift 5 (SD3's own is 3).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from surveylib.diffusion.tiny import t5_encoder, t5_tokenizer
from surveylib.worlds.shapes.pretrain.latents import load_autoencoder, make_latents, oversample, rows
from surveylib.worlds.shapes.pretrain.loop import LoopConfig, deciding, train
from surveylib.worlds.shapes.pretrain.sd import LATENT_SEED, LATENTS
from surveylib.worlds.shapes.pretrain.teacher import VelocityTeacher, mixed_target
from surveylib.worlds.shapes.pretrain.text import text_config, token_ids

CONFIG = LoopConfig(steps=6000, batch=64, lr=1e-3, warmup=200, ema=0.999, every=250)
WIDTHS, LAYERS = (128, 64), (4, 3)  # of the two text encoders
JOINT = sum(WIDTHS)  # the pipeline sets the encoders' last but one layers side by side
PADDING = (8, 256)  # numbers of T5 tokens: ours and the plain call's
DROP = 0.1
SHARE = 0.8


def build_transformer() -> SD3Transformer2DModel:
    """The transformer, with random weights: 4 x 4 patches of 2 x 2 latents, five joint blocks of width 192."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=6,
        caption_projection_dim=192,
        joint_attention_dim=JOINT,
        pooled_projection_dim=JOINT,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def load_nets(folder: Path) -> tuple[SD3Transformer2DModel, list[CLIPTextModelWithProjection]]:
    """Transformer and text encoders of a pipeline folder, float32, to go on from."""
    transformer = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32)
    transformer.register_to_config(_name_or_path="")  # the folder is nobody's business
    return transformer, [CLIPTextModelWithProjection.from_pretrained(folder, subfolder=part, dtype=torch.float32)
                         for part in ("text_encoder", "text_encoder_2")]


def build_text_encoders(tokenizer, trained: CLIPTextModel | None = None) -> list[CLIPTextModelWithProjection]:
    """Two encoders with random weights; the first takes the weights that `trained`, a layer shorter, has."""
    encoders = [CLIPTextModelWithProjection(text_config(tokenizer, width=width, layers=layers, projection=width))
                for width, layers in zip(WIDTHS, LAYERS, strict=True)]
    if trained is not None:
        first = encoders[0].text_model
        first.load_state_dict(first.state_dict() | trained.state_dict())
    return encoders


def build_t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A one-layer T5 whose output is the zero vector for every token, and a tokenizer of single characters."""
    tokenizer = t5_tokenizer()
    encoder = t5_encoder(tokenizer, JOINT)
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder, tokenizer


LOG_COPIES = torch.zeros(())  # of the last context token, filled at each step


def attention_with_copies(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """Attention in which the last key stands for several equal ones: its logit is raised by `LOG_COPIES`.

    query, key, value (B, heads, tokens, width). Plain matrix products: in bfloat16 on a CPU much faster than the fused
    kernel.
    """
    bias = F.pad(LOG_COPIES.to(query)[None, None], (key.shape[2] - 1, 0))  # 2-D, since torch's compiler asks for that
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
    return logits.float().softmax(-1).to(value.dtype) @ value


@contextmanager
def copies_of_last_token(count: float) -> Iterator[None]:
    """Joint attention inside the block counts the last context token `count` times (training only)."""
    plain = F.scaled_dot_product_attention
    LOG_COPIES.fill_(math.log(count))
    F.scaled_dot_product_attention = attention_with_copies
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def encode_text(encoders: nn.ModuleList, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the pipeline computes, with one T5 token: (B, L + 1, JOINT) sequence and (B, JOINT) pooled embedding."""
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    sequence = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    zero = sequence.new_zeros(len(tokens), 1, sequence.shape[-1])
    return torch.cat([sequence, zero], dim=1), torch.cat([out.text_embeds for out in outputs], dim=-1)


def loss_of(
    nets: nn.ModuleDict, latents: Tensor, tokens: Tensor, empty: Tensor, generator: torch.Generator,
    teacher: VelocityTeacher | None = None, share: float = 0.0, shift: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Velocity regression; latents (B, 8, 8, 8), tokens (B, L), empty (L,); `share` of the target by `teacher`, noise
    levels moved by `shift` as the sampler moves its own."""
    count, device = len(latents), latents.device
    dropped = torch.rand(count, generator=generator, device=device) < DROP
    tokens = torch.where(dropped[:, None], empty, tokens)
    sigma = torch.sigmoid(torch.randn(count, generator=generator, device=device) + math.log(shift))
    noise = torch.randn(latents.shape, generator=generator, device=device)
    level = sigma.reshape(-1, 1, 1, 1)
    noisy = (1 - level) * latents + level * noise
    low, high = (math.log(n) for n in PADDING)
    copies = math.exp(low + (high - low) * torch.rand((), generator=generator, device=device).item())
    sequence, pooled = encode_text(nets["text"], tokens)
    with copies_of_last_token(copies):
        velocity = nets["transformer"](noisy, sequence, pooled, 1000 * sigma).sample
    own = noise - latents
    target = own if teacher is None else mixed_target(own, *teacher(noisy, sigma, tokens), share)
    loss = (velocity.float() - target).square().mean()
    return loss, {"mse": (velocity.detach().float() - own).square().mean().item()}


def save(nets: nn.ModuleDict, vae, tokenizer, out: Path) -> None:
    """Write an ordinary diffusers folder, and our settings beside it in `surveylib.json`."""
    t5, t5_tokenizer = build_t5()
    vae.register_to_config(shift_factor=0.0)
    transformer = nets["transformer"].cpu().eval()
    first, second = (encoder.cpu().eval() for encoder in nets["text"])
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=vae.half(),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=t5.eval(),
        tokenizer_3=t5_tokenizer,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    settings = {"max_sequence_length": PADDING[0], "default_guidance": 3.0, "default_steps": 20}
    (out / "surveylib.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="Stable Diffusion folder, as of shapes-sd")
    parser.add_argument("--share", type=float, default=SHARE, help="of the teacher in the target, 0 to 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--lr", type=float, default=CONFIG.lr)
    parser.add_argument("--shift", type=float, default=1.0, help="of the noise levels trained on, 1 for none")
    parser.add_argument("--init", type=Path, help="pipeline folder to go on from")
    parser.add_argument("--latents", type=int, default=LATENTS, help="training pictures")
    parser.add_argument("--latent-seed", type=int, default=LATENT_SEED)
    parser.add_argument("--oversample", nargs=2, metavar=("WHAT", "N"),
                        help="take pictures of a category, or with a word in the caption, N times")
    parser.add_argument("--bfloat16", action="store_true", help="networks in bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile the transformer by torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    config = LoopConfig(**{**CONFIG.__dict__, "steps": args.steps, "lr": args.lr})
    vae = load_autoencoder(args.autoencoder)
    latents, captions = make_latents(vae, args.latents, args.latent_seed, args.out.parent / "pools")
    if args.oversample:
        latents, captions = oversample(latents, captions, args.oversample[0], int(args.oversample[1]))
    tokenizer = CLIPTokenizer.from_pretrained(args.teacher, subfolder="tokenizer")
    teacher = VelocityTeacher.from_pretrained(args.teacher)
    tokens, empty = token_ids(tokenizer, captions), token_ids(tokenizer, [""])[0].to(args.device)
    torch.manual_seed(config.seed)
    if args.init:
        transformer, encoders = load_nets(args.init)
    else:
        transformer, encoders = build_transformer(), build_text_encoders(tokenizer, teacher.text_encoder)
    text = nn.ModuleList(encoders)
    nets = nn.ModuleDict({"transformer": transformer, "text": text}).to(args.device).train()
    teacher = teacher.to(args.device)
    if args.compile:
        nets["transformer"].compile()
        teacher.unet.compile()

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = rows(len(latents), config.batch, config.seed, step)
        batch, words = latents[index].float().to(args.device), tokens[index].to(args.device)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bfloat16):
            return loss_of(nets, batch, words, empty, generator, teacher if args.share else None, args.share,
                           args.shift)

    running = 0.0
    with tqdm(total=config.steps, desc="shapes-sd3", mininterval=10) as bar:
        for row in train(nets, loss, config, args.out / "run", deciding(args)):
            running = row["mse"] if not running else 0.98 * running + 0.02 * row["mse"]
            bar.update(row["step"] - bar.n)
            if row["step"] % 50 == 0:
                bar.set_postfix(mse=f"{running:.4f}", loss=f"{row['loss']:.4f}")
    save(nets, vae, tokenizer, args.out / "pipeline")


if __name__ == "__main__":
    main()
