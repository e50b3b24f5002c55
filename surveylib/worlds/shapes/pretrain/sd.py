"""Pre-train `shapes-sd`: a small StableDiffusionPipeline, epsilon prediction on the autoencoder's latents.

Text encoder and UNet are trained together from nothing. The loss is the noise regression of DDPM (arXiv 2006.11239),
weighted in two phases. First min-SNR weights, gamma = 5 (arXiv 2303.09556), w(t) = min(SNR, 5) / SNR: the network
learns how pictures look close by. Then, from step `SWITCH`, w(t) = min(SNR + 1, 5) / SNR, which is the weight of
velocity regression where the noise is strong: what the caption says is decided there, and plain noise regression
hardly counts it (at SNR 0.01 the noise can be read off the input to 1 %). A tenth of the captions is dropped for
classifier-free guidance (arXiv 2207.12598).

`--attributes W` adds W times the cross entropy of `attributes.CaptionHeads` on the text features; the heads are
dropped at the end. Noise regression alone left neighbouring hues with almost equal features.

`--init FOLDER` goes on from a pipeline folder with a fresh optimiser and the second weights from its first step: that
is how the shipped model was trained on. On a CPU with bfloat16 units `--bfloat16` and `--compile` (which wants a C++
compiler, and about three minutes at the start) together halve a step.

`--oversample WHAT N` takes each training picture whose caption has the word, or is of the category, N times an epoch.
On the first autoencoder it did not mend the hues on black: their cause lay in the code (see `decoder`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from surveylib.worlds.shapes.pretrain.attributes import CaptionHeads, attribute_targets
from surveylib.worlds.shapes.pretrain.latents import load_autoencoder, make_latents, oversample, rows
from surveylib.worlds.shapes.pretrain.loop import LoopConfig, deciding, train
from surveylib.worlds.shapes.pretrain.text import build_tokenizer, text_config, token_ids

CONFIG = LoopConfig(steps=9500, batch=64, lr=1e-3, warmup=200, ema=0.999, every=250)
LATENTS, LATENT_SEED = 80_000, 2
DROP = 0.1
GAMMA = 5.0
SWITCH = 1500


def build_unet() -> UNet2DConditionModel:
    """The UNet, with random weights: two levels, text attention on both and in the middle."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads, not their width (a historical name in diffusers)
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's schedule, with a trailing grid: it starts where the noise is strongest, as training did
    (arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def weight(snr: Tensor, step: int) -> Tensor:
    """Weight of the squared noise error at signal-to-noise ratios `snr`, by phase."""
    return snr.clamp(max=GAMMA) / snr if step < SWITCH else (snr + 1).clamp(max=GAMMA) / snr


def loss_of(
    nets: nn.ModuleDict, latents: Tensor, tokens: Tensor, empty: Tensor, alphas_cumprod: Tensor, generator, step: int,
    attributes: tuple[Tensor, float] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Weighted noise regression; latents (B, 8, 8, 8), tokens (B, L), empty (L,); attributes: targets (B, 10) of the
    captions and the weight of their cross entropy, for `nets["heads"]`."""
    count, device = len(latents), latents.device
    dropped = torch.rand(count, generator=generator, device=device) < DROP
    tokens = torch.where(dropped[:, None], empty, tokens)
    t = torch.randint(0, len(alphas_cumprod), (count,), generator=generator, device=device)
    noise = torch.randn(latents.shape, generator=generator, device=device)
    alpha = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    text = nets["text_encoder"](tokens).last_hidden_state
    predicted = nets["unet"](noisy.contiguous(memory_format=torch.channels_last), t, text).sample
    errors = (predicted.float() - noise).square().flatten(1).mean(1)
    snr = (alpha / (1 - alpha)).flatten()
    loss, metrics = (errors * weight(snr, step)).mean(), {"mse": errors.mean().item()}
    if attributes is not None:
        targets, share = attributes
        kept = ~dropped
        end = tokens.eq(nets["text_encoder"].config.eos_token_id).int().argmax(-1)
        reading = nets["heads"](text[kept], tokens[kept], end[kept], targets[kept])
        loss, metrics = loss + share * reading, metrics | {"reading": reading.item()}
    return loss, metrics


def save(nets: nn.ModuleDict, vae, tokenizer, out: Path) -> None:
    """Write an ordinary diffusers folder: float16 on disk for UNet and autoencoder, float32 for the text encoder."""
    nets["unet"].set_attn_processor(AttnProcessor2_0())
    for part in (vae, nets["unet"]):
        part.register_to_config(_name_or_path="")  # the folders these came from are nobody's business
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=nets["text_encoder"].cpu().eval(),
        tokenizer=tokenizer,
        unet=nets["unet"].cpu().eval().half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)


def build_nets(tokenizer, init: Path | None = None) -> nn.ModuleDict:
    """UNet and text encoder, random or from the pipeline folder `init`, float32, ready to train."""
    if init is None:
        unet, text_encoder = build_unet(), CLIPTextModel(text_config(tokenizer, width=128, layers=3))
    else:
        unet = UNet2DConditionModel.from_pretrained(init, subfolder="unet", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(init, subfolder="text_encoder", dtype=torch.float32)
    # Attention by plain matrix products: the same numbers, and much faster than the fused kernel in bfloat16 on a CPU.
    unet.set_attn_processor(AttnProcessor())
    return nn.ModuleDict({"unet": unet.to(memory_format=torch.channels_last), "text_encoder": text_encoder}).train()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--lr", type=float, default=CONFIG.lr)
    parser.add_argument("--init", type=Path, help="pipeline folder to go on from")
    parser.add_argument("--latents", type=int, default=LATENTS, help="training pictures")
    parser.add_argument("--latent-seed", type=int, default=LATENT_SEED)
    parser.add_argument("--attributes", type=float, default=0.0, help="weight of the cross entropy on text features")
    parser.add_argument("--oversample", nargs=2, metavar=("WHAT", "N"),
                        help="take pictures of a category, or with a word in the caption, N times")
    parser.add_argument("--bfloat16", action="store_true", help="networks in bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile the UNet by torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    config = LoopConfig(**{**CONFIG.__dict__, "steps": args.steps, "lr": args.lr})
    vae = load_autoencoder(args.autoencoder)
    latents, captions = make_latents(vae, args.latents, args.latent_seed, args.out.parent / "pools")
    if args.oversample:
        latents, captions = oversample(latents, captions, args.oversample[0], int(args.oversample[1]))
    if args.init:
        tokenizer = CLIPTokenizer.from_pretrained(args.init, subfolder="tokenizer")
    else:
        tokenizer = build_tokenizer(captions[:20_000])
    tokens, empty = token_ids(tokenizer, captions), token_ids(tokenizer, [""])[0].to(args.device)
    torch.manual_seed(config.seed)
    nets = build_nets(tokenizer, args.init)
    if args.attributes:
        nets["heads"] = CaptionHeads(nets["text_encoder"].config.hidden_size, len(tokenizer))
        targets = attribute_targets(captions).to(args.device)
    nets = nets.to(args.device)
    if args.compile:
        nets["unet"].compile()
    alphas_cumprod = build_scheduler().alphas_cumprod.to(args.device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = rows(len(latents), config.batch, config.seed, step)
        batch = latents[index].float().to(args.device)
        phase = step + SWITCH if args.init else step
        said = (targets[index], args.attributes) if args.attributes else None
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bfloat16):
            return loss_of(nets, batch, tokens[index].to(args.device), empty, alphas_cumprod, generator, phase, said)

    running = 0.0
    with tqdm(total=config.steps, desc="shapes-sd", mininterval=10) as bar:
        for row in train(nets, loss, config, args.out / "run", deciding(args)):
            running = row["mse"] if not running else 0.98 * running + 0.02 * row["mse"]
            bar.update(row["step"] - bar.n)
            if row["step"] % 50 == 0:
                bar.set_postfix(mse=f"{running:.4f}")
    save(nets, vae, tokenizer, args.out / "pipeline")


if __name__ == "__main__":
    main()
