"""Pre-train the autoencoder of the Shapes models: 64 x 64 x 3 pictures to 8 x 8 x 8 latents.

A diffusers `AutoencoderKL`. The loss is the mean over pictures of log MSE (so that PSNR itself is optimised) plus a
small KL to the unit Gaussian. Afterwards the latents' mean and scale are folded into the 1 x 1 convolutions, so that
they come out with zero mean and unit variance in each channel and the pipeline's scaling factor is 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from surveylib.worlds.shapes.pretrain.latents import rows
from surveylib.worlds.shapes.pretrain.loop import LoopConfig, deciding, train
from surveylib.worlds.shapes.pretrain.pool import Pool, make_pool

CONFIG = LoopConfig(steps=7000, batch=16, lr=2e-3, warmup=100, clip=5.0, every=500)
KL_WEIGHT = 1e-3  # ours; against log MSE, per latent dimension
POOL = 40_000


def build() -> AutoencoderKL:
    """The architecture, with random weights."""
    channels = (16, 32, 64, 64)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def psnr(pictures: Tensor, target: Tensor, span: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture: 10 log10(span^2 / MSE). (B, ...) -> (B,)."""
    return 10 * torch.log10(span**2 / (pictures - target).square().flatten(1).mean(1).clamp(min=1e-10))


def loss_of(vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction in log MSE plus KL; pictures (B, 3, 64, 64) in [-1, 1]."""
    posterior = vae.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator, device=pictures.device)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    mse = (decoded - pictures).square().flatten(1).mean(1)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    decibel = -10 / torch.log(torch.tensor(10.0)) * mse.detach().log().mean() + 6.0206  # span 2 in [-1, 1]
    return (mse + 1e-5).log().mean() + KL_WEIGHT * kl, {"psnr": decibel.item(), "kl": kl.item()}


@torch.no_grad()
def standardise(vae: AutoencoderKL, pool: Pool, n: int = 4096, pictures_stay: bool = True) -> None:
    """Fold each latent channel's mean and standard deviation over `n` pictures into `quant_conv`.

    pictures_stay: `post_quant_conv` takes them back, so that pictures decode as before; False for a decoder that was
    trained on standardised latents."""
    means = torch.cat([vae.encode(pool.floats(rows)).latent_dist.mean for rows in torch.arange(n).split(256)])
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    channels = len(mean)
    conv, back = vae.quant_conv, vae.post_quant_conv
    conv.weight[:channels] /= std[:, None, None, None]
    conv.bias[:channels] = (conv.bias[:channels] - mean) / std
    conv.bias[channels:] -= 2 * std.log()  # the posterior's log variance shrinks with the scale
    if not pictures_stay:
        return
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight *= std[None, :, None, None]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    config = LoopConfig(**{**CONFIG.__dict__, "steps": args.steps})
    torch.manual_seed(config.seed)
    vae = build().to(args.device, memory_format=torch.channels_last)
    pool = make_pool(POOL, 1, args.out.parent / "pools")

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pictures = pool.floats(rows(len(pool), config.batch, config.seed, step)).to(args.device)
        return loss_of(vae, pictures, generator)

    with tqdm(total=config.steps, desc="autoencoder", mininterval=10) as bar:
        for row in train(vae, loss, config, args.out, deciding(args)):
            bar.update(row["step"] - bar.n)
            if row["step"] % 50 == 0:
                bar.set_postfix(psnr=f"{row['psnr']:.2f}", kl=f"{row['kl']:.2f}")
    vae.eval().cpu()
    standardise(vae, pool)
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
