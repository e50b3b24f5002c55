"""Make the autoencoder's decoder forgiving: it learns to draw clean pictures from latents with errors.

The encoder stays as it is, and with it the latents and every model trained on them. A decoder that has seen exact
latents alone turns a diffusion model's small errors into wrong hues and frayed edges; noise on its latents in training
is the remedy of representation autoencoders (arXiv 2510.11690). Ours has two kinds, each with a scale drawn anew for
each picture, uniform up to the one given: a number for each cell and channel, and one for each channel of the whole
picture. The second moves hues, and so it is kept below the distance of neighbours. The loss is that of `autoencoder`,
the mean of log MSE.

`--encoder` trains the encoder too, its latents standardised over the batch before the noise is added. Without noise
nothing keeps the code even: the first encoder moved the latents three to four times as far for a thing on grey as for
the same thing on black, where a diffusion model's errors then outweighed the hue. With noise of one size and power of
one size for all, what pictures tell apart must be apart in the latents as well. Latents change, so models on them must
be trained again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from surveylib.worlds.shapes.pretrain.autoencoder import POOL, psnr, standardise
from surveylib.worlds.shapes.pretrain.latents import load_autoencoder, rows
from surveylib.worlds.shapes.pretrain.loop import LoopConfig, deciding, train
from surveylib.worlds.shapes.pretrain.pool import make_pool

CONFIG = LoopConfig(steps=4000, batch=16, lr=1e-3, warmup=100, clip=5.0, every=250)
CELLS, WHOLE = 0.5, 0.15  # largest standard deviations of the two noises; the latents have 1


def disturbed(latents: Tensor, cells: float, whole: float, generator: torch.Generator) -> Tensor:
    """Latents (B, 8, 8, 8) of unit variance plus noise by cell, and the same over the picture."""
    draw = {"generator": generator, "device": latents.device}
    for scale, shape in ((cells, latents.shape), (whole, (*latents.shape[:2], 1, 1))):
        latents = latents + scale * torch.rand(len(latents), 1, 1, 1, **draw) * torch.randn(shape, **draw)
    return latents


def standardised(latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) with mean zero and variance one in each channel over the batch; differentiable."""
    return F.batch_norm(latents, None, None, training=True)


def loss_of(
    vae: AutoencoderKL, pictures: Tensor, cells: float, whole: float, generator: torch.Generator, encoder: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction in log MSE from disturbed latents; pictures (B, 3, 64, 64) in [-1, 1].

    encoder: with gradient for the encoder, and latents standardised over the batch.
    """
    with torch.set_grad_enabled(encoder):
        latents = vae.encode(pictures).latent_dist.mean
    if encoder:
        latents = standardised(latents)
    decoded = vae.decode(disturbed(latents, cells, whole, generator)).sample
    mse = (decoded - pictures).square().flatten(1).mean(1)
    return (mse + 1e-5).log().mean(), {"psnr": psnr(decoded.detach(), pictures, span=2.0).mean().item()}


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKL, std: float = 0.01) -> None:
    """Give the posterior one standard deviation everywhere; nothing trains the encoder's own when the mean is used."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = 2 * math.log(std)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--batch", type=int, default=CONFIG.batch)
    parser.add_argument("--cells", type=float, default=CELLS, help="largest standard deviation of the noise by cell")
    parser.add_argument("--whole", type=float, default=WHOLE, help="and of the noise that is the same over a picture")
    parser.add_argument("--encoder", action="store_true", help="train the encoder too: the latents change")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    config = LoopConfig(**{**CONFIG.__dict__, "steps": args.steps, "batch": args.batch})
    vae = load_autoencoder(args.autoencoder).to(args.device, memory_format=torch.channels_last)
    for part in (vae.decoder, vae.post_quant_conv, *((vae.encoder, vae.quant_conv) if args.encoder else ())):
        part.requires_grad_(True)
    pool = make_pool(POOL, 1, args.out.parent / "pools")

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pictures = pool.floats(rows(len(pool), config.batch, config.seed, step)).to(args.device)
        return loss_of(vae, pictures, args.cells, args.whole, generator, args.encoder)

    with tqdm(total=config.steps, desc="decoder", mininterval=10) as bar:
        for row in train(vae, loss, config, args.out / "run", deciding(args)):
            bar.update(row["step"] - bar.n)
            if row["step"] % 50 == 0:
                bar.set_postfix(psnr=f"{row['psnr']:.2f}")
    vae.eval().cpu()
    if args.encoder:
        standardise(vae, pool, min(4096, len(pool)), pictures_stay=False)
        narrow_posterior(vae)
    vae.register_to_config(_name_or_path="")  # the folder is nobody's business
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
