"""IPGO: indirect prompt gradient optimisation (Ye, Wedel, Zhang, arXiv 2503.21812).

Everything stays frozen but n tokens before and n tokens after the prompt's embedding V. Each token is a rotated point
of an m-dimensional space with orthonormal basis E (D x m):

    v_i = R(theta_i) (E z_i + b),   V' = [v_1 .. v_n ; V ; v'_1 .. v'_n]
    max  r(x_0(V'), prompt) - gamma |mean of the tokens of V' - mean of the tokens of V|_1 / D

under E'E = I (hard: E is the orthonormal factor of a free matrix), max |z| <= 1 and max |theta| <= pi (hard: every
number is projected after each step), conformity gamma (soft). R rotates pairs of coordinates by the token's two angles;
pairs are shifted by the token's number and the angle's, so that all coordinates mix. Gradients go through the last K
steps of the sampler.

Special: the text changes, not the picture's noise; about half a million numbers a prompt on SD1.5.

Deviations from the public notebook: the rotation runs (there a slice taken twice leaves it empty); range by projection
instead of a clamp inside the graph, in which a number that has left the range never returns; the prompt's own padding
tokens stay behind the suffix, so that prompts of any length share a batch and no inserted tokens means the base
picture; that base picture takes part in "keep the best"; DDIM instead of LMS. How R pairs coordinates is our reading.
Chapter: techniques/08_optimising_noise_and_prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.rollout import rollout
from surveylib.rewards.contract import Reward
from surveylib.techniques.contract import Preset, Sampler, Samples, TechniqueError
from surveylib.techniques.test_time.base import (
    NO_TRAINING,
    check_rollout,
    clip_each,
    counted,
    loss_scale,
    row_generators,
    texts,
)

SIDES = ("prefix", "suffix")


@dataclass(frozen=True)
class IPGOConfig:
    """Settings of IPGO.

    prefix, suffix: tokens before and after the prompt. rank: coefficients that a token brings; a side with n tokens has
    m = rank n columns in E. rotate: False leaves R out. gamma: of conformity.
    epochs: times the tokens are drawn with and scored; an optimiser step between two, so one less. 0 is the base
    sampler. lr: of Adam; times `decay` every `decay_every` epochs.
    clip_norm: of each prompt's gradient. last_steps: K. steps, guidance: of the rollout, DDIM without noise; guidance
    None takes the model's own. batch: prompts optimised together.
    """

    prefix: int = 10
    suffix: int = 10
    rank: int = 30
    rotate: bool = True
    gamma: float = 1e-3
    epochs: int = 50
    lr: float = 1e-3
    decay: float = 0.9
    decay_every: int = 10
    clip_norm: float = 1.0
    last_steps: int = 2
    steps: int = 50
    guidance: float | None = 7.5
    batch: int = 8

    def __post_init__(self) -> None:
        check_rollout(self.steps, 0.0, self.batch)
        if self.prefix < 0 or self.suffix < 0 or self.rank < 1 or self.epochs < 0:
            raise TechniqueError(f"prefix={self.prefix}, suffix={self.suffix}, epochs={self.epochs} must not be "
                                 f"negative, rank={self.rank} at least 1")
        if self.lr <= 0 or self.clip_norm <= 0 or not 0 <= self.gamma < math.inf or self.decay_every < 1:
            raise TechniqueError(f"lr={self.lr}, clip_norm={self.clip_norm}, decay_every={self.decay_every} must be "
                                 f"positive, gamma={self.gamma} not negative")
        if not 1 <= self.last_steps <= self.steps:
            raise TechniqueError(f"last_steps={self.last_steps} must lie between 1 and steps={self.steps}")


def orthonormal(free: Tensor) -> Tensor:
    """E (B, D, m) with E'E = I from a free matrix (B, D, m), m <= D: the Q of its QR, signs fixed by R's diagonal."""
    q, r = torch.linalg.qr(free)
    signs = torch.sign(r.diagonal(dim1=-2, dim2=-1))
    return q * torch.where(signs == 0, torch.ones_like(signs), signs)[:, None, :]


def rotated(tokens: Tensor, angles: Tensor) -> Tensor:
    """R(theta_i) v_i for tokens (B, n, D), D even, and angles (B, n, 2): coordinates (2 k + i + j, 2 k + 1 + i + j) of
    token i turn by its angle j, j = 0 then 1. Lengths stay."""
    _, n, d = tokens.shape
    number = torch.arange(n, device=tokens.device)[:, None]
    for j in range(angles.shape[-1]):
        places = (torch.arange(d, device=tokens.device) + number + j) % d  # (n, D)
        shifted = tokens.gather(2, places.expand_as(tokens))
        x, y = shifted[..., 0::2], shifted[..., 1::2]
        cos, sin = angles[..., j, None].cos(), angles[..., j, None].sin()
        turned = torch.stack([x * cos - y * sin, x * sin + y * cos], -1).flatten(-2)
        tokens = torch.zeros_like(tokens).scatter(2, places.expand_as(tokens), turned)
    return tokens


def inserted(embeds: Tensor, lengths: Sequence[int], prefix: Tensor, suffix: Tensor) -> Tensor:
    """V' (B, L, D): [prefix ; the prompt's tokens ; suffix ; its padding], cut at L.

    embeds: (B, L, D). lengths: tokens of each prompt without padding. prefix, suffix: (B, n, D).
    """
    rows = [torch.cat([before, row[:n], after, row[n:]])[: len(row)]
            for row, n, before, after in zip(embeds, lengths, prefix, suffix)]
    return torch.stack(rows)


def nonconformity(embeds: Tensor, lengths: Sequence[int], prefix: Tensor, suffix: Tensor) -> Tensor:
    """Mean over D of |mean of the tokens of V' - mean of the tokens of V|, (B,); padding does not count."""
    values = []
    for row, n, before, after in zip(embeds, lengths, prefix, suffix):
        prompt = row[:n]
        values.append((torch.cat([before, prompt, after]).mean(0) - prompt.mean(0)).abs().mean())
    return torch.stack(values)


class Tokens:
    """The trained numbers of one side of B prompts. free: (B, D, m), bias: (B, D), z: (B, n, m), angles: (B, n, 2)."""

    def __init__(self, count: int, rank: int, dim: int, generators: list[torch.Generator]) -> None:
        m = rank * count
        if m > dim or dim % 2:
            raise TechniqueError(f"{count} tokens of rank {rank} need {m} orthonormal columns; embeddings have {dim} "
                                 "dimensions here (an even number is needed): lower rank or the number of tokens")

        def uniform(shape: tuple[int, ...], limit: float) -> Tensor:
            return torch.stack([limit * (2 * torch.rand(shape, generator=g) - 1) for g in generators])

        self.free = torch.stack([torch.randn(dim, m, generator=g) for g in generators])
        self.bias = uniform((dim,), 1 / math.sqrt(max(m, 1)))
        self.z, self.angles = uniform((count, m), 1.0), uniform((count, 2), math.pi)

    def parameters(self) -> list[Tensor]:
        """All four."""
        return [self.free, self.bias, self.z, self.angles]

    def to(self, device: torch.device) -> Tokens:
        """On a device, ready for gradients."""
        for name in ("free", "bias", "z", "angles"):
            setattr(self, name, getattr(self, name).to(device).requires_grad_())
        return self

    def values(self, rotate: bool = True) -> Tensor:
        """(B, n, D)."""
        if not self.z.shape[1]:
            return self.bias.new_zeros(len(self.bias), 0, self.bias.shape[1])
        flat = self.z @ orthonormal(self.free).transpose(1, 2) + self.bias[:, None]
        return rotated(flat, self.angles) if rotate else flat

    @torch.no_grad()
    def project(self) -> None:
        """Every number back into |z| <= 1 and |theta| <= pi."""
        self.z.clamp_(-1, 1)
        self.angles.clamp_(-math.pi, math.pi)


class IPGO(Sampler):
    """Indirect prompt gradient optimisation. trace: one entry an evaluation, the base picture first: "reward" (B,),
    "nonconformity" (B,)."""

    name = "ipgo"
    needs = ("reward", "gradient")
    families = ("vp",)
    Config = IPGOConfig

    def check(self, model: DiffusionModel, reward: Reward) -> None:
        """As in `Sampler.check`; the model must be a pipeline with one sequence of text tokens."""
        super().check(model, reward)
        if "prompt_embeds" not in getattr(model, "embedded_names", ()) or not hasattr(model.pipeline, "tokenizer"):
            raise TechniqueError(f"ipgo writes tokens around a text embedding, and {type(model).__name__} has none: "
                                 "load a Stable Diffusion or SDXL pipeline")

    def sample(self, model: DiffusionModel, prompts: Sequence[str], reward: Reward, *, seed: int = 0) -> Samples:
        """See `Sampler.sample`.

        Raises:
            TechniqueError: also where a prompt and the tokens around it exceed the text model's length.
        """
        self.check(model, reward)
        prompts = texts(prompts)
        with counted(model, reward) as ledger:
            condition = model.encode(prompts)
            lengths = self._lengths(model, condition)
            runs = [self._optimise(model, condition[rows], [lengths[i] for i in rows], reward, seed, rows.tolist())
                    for rows in torch.arange(len(prompts)).split(self.config.batch)]
        pictures, latents, rewards = (torch.cat(parts) for parts in zip(*(found for found, _ in runs)))
        trace = [{"evaluation": i} | {name: torch.cat([entry[name] for entry in entries]) for name in entries[0]}
                 for i, entries in enumerate(zip(*(trace for _, trace in runs)))]
        return Samples(pictures, latents, rewards, trace, ledger)

    def _lengths(self, model: DiffusionModel, condition: Condition) -> list[int]:
        """Tokens of each prompt, start and end included."""
        room = condition.tensors["prompt_embeds"].shape[1]
        added = self.config.prefix + self.config.suffix
        lengths = [len(model.pipeline.tokenizer(prompt, truncation=True, max_length=room).input_ids)
                   for prompt in condition.prompts]
        for prompt, length in zip(condition.prompts, lengths):
            if length + added > room:
                raise TechniqueError(f"{prompt!r} has {length} tokens; with {added} around it they exceed the {room} "
                                     "of the text model: shorten it, or lower prefix and suffix")
        return lengths

    def _optimise(self, model: DiffusionModel, condition: Condition, lengths, reward: Reward, seed: int, rows):
        c = self.config
        embeds = condition.tensors["prompt_embeds"].float()
        noise = model.initial_noise(len(rows), row_generators(seed, rows, "rollout"))
        sides = [Tokens(count, c.rank, embeds.shape[2], row_generators(seed, rows, side)).to(embeds.device)
                 for side, count in zip(SIDES, (c.prefix, c.suffix))]
        parameters = [p for side in sides for p in side.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=c.lr)
        with torch.no_grad():
            found = self._picture(model, condition, noise, reward)
        trace: list[dict[str, Any]] = [{"reward": found[2].cpu(), "nonconformity": torch.zeros(len(rows))}]
        for epoch in range(c.epochs if c.prefix + c.suffix else 0):
            prefix, suffix = (side.values(c.rotate) for side in sides)
            edited = inserted(embeds, lengths, prefix, suffix)
            now = self._picture(model, replace(condition, tensors={**condition.tensors, "prompt_embeds": edited}),
                                noise, reward)
            distance = nonconformity(embeds, lengths, prefix, suffix)
            loss = (c.gamma * distance - now[2]).sum()
            better = now[2].detach() > found[2]
            found = tuple(torch.where(better.reshape(-1, *[1] * (old.ndim - 1)), new.detach(), old)
                          for new, old in zip(now, found))
            trace.append({"reward": now[2].detach().cpu(), "nonconformity": distance.detach().cpu()})
            if epoch + 1 < c.epochs:
                self._step(model, optimiser, parameters, loss, epoch)
                for side in sides:
                    side.project()
        return found, trace

    def _step(self, model, optimiser, parameters: list[Tensor], loss: Tensor, epoch: int) -> None:
        c, scale = self.config, loss_scale(model)
        trained = [p for p in parameters if p.numel()]
        gradients = torch.autograd.grad(scale * loss, trained, allow_unused=True)
        flat = torch.cat([(torch.zeros_like(p) if g is None else g / scale).flatten(1)
                          for p, g in zip(trained, gradients)], 1)
        pieces = clip_each(flat, c.clip_norm).split([p[0].numel() for p in trained], 1)
        for parameter, piece in zip(trained, pieces):
            parameter.grad = piece.reshape(parameter.shape)
        for group in optimiser.param_groups:
            group["lr"] = c.lr * c.decay ** (epoch // c.decay_every)
        optimiser.step()

    def _picture(self, model, condition: Condition, noise: Tensor, reward: Reward) -> tuple[Tensor, Tensor, Tensor]:
        """(pictures, latents, rewards), with gradient through the last K steps where gradients are on."""
        c = self.config
        live = range(c.steps - c.last_steps, c.steps) if torch.is_grad_enabled() else "none"
        *_, last = rollout(model, condition, dynamics=DDIM(0.0), steps=c.steps, guidance=c.guidance, x=noise,
                           gradient=live)
        pictures = model.decode(last.x_next, clamp=True)
        return pictures, last.x_next, reward(pictures, condition.prompts)


IPGO.PRESETS = {
    "full": Preset(IPGOConfig(batch=1), NO_TRAINING, model="sd1.5", reward="aesthetic",
                   source="arXiv 2503.21812, public notebook: 10 + 10 tokens, rank 30, Adam 1e-3, 50 epochs, K 2, "
                          "CFG 7.5",
                   cost="51 x 50 steps x 2 branches = 5,100 network calls, 196 of them with gradient, a picture"),
    "single": Preset(IPGOConfig(epochs=20, steps=30, batch=2), NO_TRAINING, model="sd1.5", reward="aesthetic",
                     source="ours: fewer epochs and steps", cost="1,260 network calls a picture"),
    "rehearsal": Preset(IPGOConfig(prefix=2, suffix=2, rank=4, epochs=2, steps=3, batch=2), NO_TRAINING, model="sd1.5",
                        reward="aesthetic", source="ours: single, with tokens that fit embeddings of 32 numbers",
                        cost="18 network calls a picture"),
    "toy": Preset(IPGOConfig(prefix=3, suffix=3, rank=8, lr=2e-2, epochs=30, steps=10, guidance=3.0), NO_TRAINING,
                  model="shapes-sd", reward="shapes-pickscore", source="ours",
                  cost="620 network calls, 116 of them with gradient, a picture"),
}
