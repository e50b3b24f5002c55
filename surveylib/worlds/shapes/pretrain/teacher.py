"""A trained noise network as the teacher of a velocity network on the same latents.

One sample of the flow loss has the target eps - x0, which is mostly noise: the network has to learn its mean given
x_sigma and the caption. A trained epsilon network knows that mean already. Scaled by 1 / sqrt((1-sigma)^2 + sigma^2),
x_sigma is a state of the variance-preserving process at the same signal-to-noise ratio, so that its epsilon answers
for the flow too:

    x0_hat = (x_sigma - sigma eps_hat) / (1 - sigma),        v_hat = eps_hat - x0_hat.

Both targets have (for a perfect teacher) the same mean; a mixture of them has a smaller variance. Noisier than the last
step of the teacher's schedule there is no answer, and the sample's own target stands.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel

from surveylib.worlds.shapes.pretrain.sd import build_scheduler


class VelocityTeacher(nn.Module):
    """Mean velocities by the text-conditional noise network of a Stable Diffusion folder, frozen."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, alphas_cumprod: Tensor):
        super().__init__()
        self.unet, self.text_encoder = unet.eval(), text_encoder.eval()
        self.requires_grad_(False)
        self.register_buffer("log_ratio", ((1 - alphas_cumprod) / alphas_cumprod).log() / 2)  # rises with the timestep

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VelocityTeacher:
        """The networks of `folder`, float32."""
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
        unet.set_attn_processor(AttnProcessor())  # in bfloat16 on a CPU faster than the fused kernel
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
        return cls(unet, text, build_scheduler().alphas_cumprod)

    def timestep(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Real-valued timesteps (B,) with sqrt((1 - alpha) / alpha) = sigma / (1 - sigma), and whether there are such.

        Less noise than that of timestep 0 is answered at 0, more than the last at the last.
        """
        wanted, table = torch.logit(sigma.double()), self.log_ratio.double()
        right = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        low, high = table[right - 1], table[right]
        place = (right - 1 + ((wanted - low) / (high - low)).clamp(0, 1)).to(sigma.dtype)
        return place, wanted <= table[-1]

    @torch.no_grad()
    def forward(self, noisy: Tensor, sigma: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(v_hat, known): velocities like `noisy` (B, C, H, W) at sigma (B,) for tokens (B, L), and (B,) booleans that
        say where the teacher's schedule reaches."""
        t, known = self.timestep(sigma)
        level = sigma.reshape(-1, 1, 1, 1)
        scaled = noisy / ((1 - level).square() + level.square()).sqrt()
        epsilon = self.unet(scaled, t, self.text_encoder(tokens).last_hidden_state).sample.float()
        x0 = (noisy - level * epsilon) / (1 - level)
        return epsilon - x0, known


def mixed_target(own: Tensor, teacher: Tensor, known: Tensor, share: float) -> Tensor:
    """`share` of the teacher's velocity and 1 - share of the sample's own, all (B, C, H, W); own where not known (B,).
    """
    weight = (share * known.to(own.dtype)).reshape(-1, 1, 1, 1)
    return torch.lerp(own, torch.where(known.reshape(-1, 1, 1, 1), teacher, own), weight)
