"""Where a step-aware reward looks: a small network on latents, the diffusion UNet's features, or the predicted picture.

Each takes (x_t, t, the condition's tensors) and returns (B, `width`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.predictions import Prediction
from surveylib.rewards.learned.trunk import Trunk


@contextmanager
def as_constants(module: nn.Module) -> Iterator[None]:
    """Inside, a graph through the module reaches its inputs and not its weights: a policy's gradients stay its own."""
    changed = [p for p in module.parameters() if p.requires_grad]
    for p in changed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(True)


def time_embedding(t: Tensor, width: int) -> Tensor:
    """(B, width) sines and cosines of network times t (B,), with the frequencies of arXiv 1706.03762."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class LatentNetwork(nn.Module):
    """A convolutional network on latents whose channels are scaled and shifted by time and text: for the toy world."""

    name = "latent"

    def __init__(self, model: DiffusionModel, text: int, hidden: int = 96, blocks: int = 3):
        super().__init__()
        self.options = {"hidden": hidden, "blocks": blocks}
        self.model, self.hidden, self.width = [model], hidden, 2 * hidden  # in a list: not a part, not trained
        self.condition = nn.Sequential(
            nn.Linear(hidden + text, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, 2 * hidden)
        )
        self.first = nn.Conv2d(model.latent_shape[0], hidden, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, hidden) for _ in range(blocks))
        self.films = nn.ModuleList(nn.Linear(2 * hidden, 2 * hidden) for _ in range(blocks))
        self.convolutions = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(blocks))

    def forward(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor], pooled: Tensor) -> Tensor:
        """(B, width): mean and maximum over places."""
        network_time = self.model[0].schedule.network_time(t)
        condition = self.condition(torch.cat([time_embedding(network_time, self.hidden), pooled.float()], -1))
        hidden = self.first(x.float())
        for norm, film, convolution in zip(self.norms, self.films, self.convolutions):
            scale, shift = film(condition)[..., None, None].chunk(2, 1)
            hidden = hidden + convolution(nn.functional.silu(norm(hidden) * (1 + scale) + shift))
        return torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], -1)


class UNetFeatures(nn.Module):
    """LRM's features (arXiv 2502.01051): means over places at the end of each down stage and of the middle.

    The up half is not run. `tune=True` trains a copy of the UNet, as the paper does; otherwise the model's own is read
    and left as it is.
    """

    name = "unet"

    def __init__(self, model: DiffusionModel, text: int, tune: bool = False):
        super().__init__()
        self.options = {"tune": tune}
        network = model.network
        if not hasattr(network, "down_blocks") or getattr(network, "mid_block", None) is None:
            raise ValueError(f"{type(network).__name__} has no down and middle blocks: take features 'latent' or 'x0'")
        self.model, self.own = [model], copy.deepcopy(network).requires_grad_(True) if tune else None
        if tune:
            self.own.up_blocks = nn.ModuleList()  # never run, so not kept
            self.own.conv_norm_out = self.own.conv_out = None
        self.width = sum(network.config.block_out_channels) + network.config.block_out_channels[-1]

    def forward(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor], pooled: Tensor) -> Tensor:
        """(B, width)."""
        if self.own is not None:
            return self._pooled(self.own, x, t, tensors)
        with as_constants(self.model[0].network):
            return self._pooled(self.model[0].network, x, t, tensors)

    def _pooled(self, net: nn.Module, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        model = self.model[0]
        kind = next(net.parameters()).dtype
        text, hidden = tensors["prompt_embeds"].to(kind), x.to(kind)
        added = model._added(tensors)
        embedding = net.time_embedding(net.get_time_embed(sample=hidden, timestep=model.schedule.network_time(t)))
        extra = net.get_aug_embed(emb=embedding, encoder_hidden_states=text, added_cond_kwargs=added)
        embedding = embedding if extra is None else embedding + extra
        text = net.process_encoder_hidden_states(encoder_hidden_states=text, added_cond_kwargs=added)
        hidden, out = net.conv_in(hidden), []
        for block in net.down_blocks:
            crossed = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            hidden, kept = block(hidden_states=hidden, temb=embedding, **crossed)
            out.append(kept[len(block.resnets) - 1])  # the stage's end, before it is made smaller
        crossed = {"encoder_hidden_states": text} if getattr(net.mid_block, "has_cross_attention", False) else {}
        out.append(net.mid_block(hidden, embedding, **crossed))
        return torch.cat([part.mean((2, 3)).float() for part in out], -1)


class PredictedPicture(nn.Module):
    """SPM's input (arXiv 2406.04314): the picture of the predicted x0, seen by a CLIP trunk that knows the time.

    Deviation: the time scales and shifts the picture's embedding, where SPM modulates every layer. At the start it does
    nothing, as there.
    """

    name = "x0"

    def __init__(self, model: DiffusionModel, text: int, trunk: Trunk | None = None, hidden: int = 64):
        super().__init__()
        if trunk is None:
            raise ValueError("the 'x0' features need trunk=, a CLIP trunk (trunk.load_trunk)")
        self.options, self.model, self.hidden = {"hidden": hidden}, [model], hidden
        self.trunk, self.width = trunk, trunk.widths.projection
        self.film = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * self.width))
        nn.init.zeros_(self.film[-1].weight)
        nn.init.zeros_(self.film[-1].bias)

    def forward(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor], pooled: Tensor) -> Tensor:
        """(B, width)."""
        from surveylib.rewards.learned.personal import embed

        model = self.model[0]
        with as_constants(model.network):
            output = model.network_output(x, t, tensors, None)
        x0 = Prediction(x, t, output, model.prediction_kind, model.schedule).x0
        scale, shift = self.film(time_embedding(model.schedule.network_time(t), self.hidden)).chunk(2, -1)
        return embed(self.trunk, model.decode(x0.float())) * (1 + scale) + shift


FEATURES = {features.name: features for features in (LatentNetwork, UNetFeatures, PredictedPicture)}
