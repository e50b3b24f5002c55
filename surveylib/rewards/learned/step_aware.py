"""Rewards of noisy latents: SPM of SPO (arXiv 2406.04314) and LRM of LPO (arXiv 2502.01051).

    s(x_t, t, c) = exp(tau) cos(W_v f(x_t, t, c), W_t g(c)),     x_t = a(t) x0 + s(t) eps
    L = KL(p || softmax(s(x_t^1, t, c), s(x_t^2, t, c)))          (PickScore's loss, same t for both pictures of a pair)

f: see `step_features`. LRM scores x_t itself by the UNet's features; SPM scores the picture predicted from it. Noise
is drawn for each picture by itself, as in LRM's code; t is uniform. g is the pooled text of the diffusion model's own
text encoder, frozen (ours; LRM trains it). No guidance is used in the features. A step-level method compares several
x_{t-1} of the same x_t by `score_latents`. Chapter: "Learning a reward".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import Reward, RewardError, check_prompts, check_scores
from surveylib.rewards.learned.pickscore import LOGIT_SCALE, preference_loss
from surveylib.rewards.learned.step_features import FEATURES
from surveylib.rewards.learned.trunk import Trunk, fingerprint, load_trunk


class StepHead(nn.Module):
    """Both projections and the logit scale."""

    name = "step-aware"
    outputs = ("score",)

    def __init__(self, image: int, text: int, projection: int = 64):
        super().__init__()
        self.options = {"projection": projection}
        self.visual, self.textual = nn.Linear(image, projection, bias=False), nn.Linear(text, projection, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, 1)."""
        cosine = F.cosine_similarity(self.visual(image), self.textual(text), dim=-1)
        return (self.logit_scale.exp().clamp(max=100) * cosine)[:, None]

    def reward(self, outputs: Tensor) -> Tensor:
        """(B,)."""
        return outputs[:, 0]

    def range(self) -> tuple[float, float]:
        """Minus and plus the logit scale."""
        scale = min(self.logit_scale.exp().item(), 100.0)
        return -scale, scale

    def loss(self, first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
        """(M,)."""
        return preference_loss(first[:, 0], second[:, 0], preference)


class StepAwareModel(nn.Module):
    """What `train.train_reward` trains for noisy latents; used as `RewardModel` is.

    Args:
        diffusion: whose latents, times and text are used (an adapter of a pipeline). It is never changed.
        features: a name of `FEATURES`: "latent" (toy), "unet" (LRM) or "x0" (SPM).
        trunk: for "x0" only.
        options: of the features.

    Raises:
        ValueError: unknown features, or ones that do not fit the model.
    """

    kind = "step-aware"
    needs_prompt = True

    def __init__(
        self, diffusion: DiffusionModel, features: str = "latent", trunk: Trunk | None = None, projection: int = 64,
        **options,
    ):  # fmt: skip
        super().__init__()
        if features not in FEATURES:
            raise ValueError(f"unknown features {features!r}; known: {', '.join(FEATURES)}")
        self.diffusion = [diffusion]  # in a list: not a part, not trained
        self.names = tuple(diffusion.embedded_names)
        text = self.prepare_texts([""])[-1].shape[-1]
        extra = {"trunk": trunk} if features == "x0" else {}
        self.features = FEATURES[features](diffusion, text, **extra, **options)
        self.head = StepHead(self.features.width, text, projection)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def prepare_images(self, images: Tensor) -> Tensor:
        """Clean latents of pictures (B, 3, H, W) in [0, 1]."""
        return self.diffusion[0].encode_images(images)

    @torch.no_grad()
    def prepare_texts(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """The condition's tensors, and the pooled text last."""
        model = self.diffusion[0]
        tensors = model.encode(list(prompts), negative=None).tensors
        if "pooled_embeds" in tensors:
            pooled = tensors["pooled_embeds"]
        else:
            tokenizer, length = model.pipeline.tokenizer, tensors["prompt_embeds"].shape[1]
            ids = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length)
            end = (torch.tensor(ids.input_ids) == tokenizer.eos_token_id).int().argmax(-1).to(model.device)
            pooled = tensors["prompt_embeds"][torch.arange(len(end), device=model.device), end]
        return *(tensors[name] for name in self.names), pooled.float()

    def at(self, x_t: Tensor, t: Tensor, *texts: Tensor) -> Tensor:
        """Outputs (B, 1) at x_t (B, C, h, w) and times t (B,)."""
        tensors, pooled = dict(zip(self.names, texts)), texts[-1]
        return self.head(self.features(x_t, t, tensors, pooled), pooled)

    def times(self, n: int) -> Tensor:
        """(n,) training times: uniform over the schedule's, whole steps in a vp schedule, without the clean end."""
        schedule, device = self.diffusion[0].schedule, self.shift.device
        count = schedule.num_train_timesteps
        steps = torch.randint(count, (n,), device=device)
        return steps.float() if schedule.family == "vp" else (steps + 1) / count

    def forward(self, first: Tensor, second: Tensor | None, *texts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs of both pictures of B pairs from their clean latents, noised at one random time a pair."""
        both = first if second is None else torch.cat([first, second])
        copies = len(both) // len(first)
        t = self.times(len(first)).repeat(copies)
        x_t = self.diffusion[0].schedule.add_noise(both, torch.randn_like(both), t.cpu()).to(both.dtype)
        outputs = self.at(x_t, t, *(text.repeat(copies, *[1] * (text.ndim - 1)) for text in texts))
        return (outputs, None) if second is None else outputs.chunk(2)

    def reward_of(self, outputs: Tensor) -> Tensor:
        """(B,) rewards."""
        return (self.head.reward(outputs) - self.shift) / self.scale

    def as_reward(self, name: str = "step-aware") -> Reward:
        """This model behind the contract of all rewards."""
        return StepAwareReward(self, name)

    def trained(self) -> dict[str, Tensor]:
        """Everything but the diffusion model and what is frozen of a trunk."""
        frozen = "features.trunk."
        kept = {n: v for n, v in self.named_parameters() if v.requires_grad or not n.startswith(frozen)}
        return {**kept, "shift": self.shift, "scale": self.scale}

    def describe(self) -> dict:
        """JSON values from which `store.load_learned` builds the same model."""
        diffusion, trunk = self.diffusion[0], getattr(self.features, "trunk", None)
        named = trunk and {"name": trunk.name, "fingerprint": trunk.fingerprint, "unlock": list(trunk.unlock)}
        return {"kind": self.kind, "head": self.head.name, "features": self.features.name, "trunk": named,
                "options": {**self.features.options, **self.head.options},
                "diffusion": {"name": diffusion.name, "fingerprint": fingerprint(diffusion.network)}}


class StepAwareReward(Reward):
    """A trained `StepAwareModel` behind the contract: `score_latents` for noisy latents, `score` for pictures.

    `score` judges the picture's clean latents at the smallest training time. Both are differentiable in their input.
    """

    differentiable, step_aware = True, True

    def __init__(self, model: StepAwareModel, name: str = "step-aware"):
        self.model, self.name = model, name
        low, high = model.head.range()
        self.range = (low * (1 + 1e-4), high * (1 + 1e-4))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) of pictures (B, 3, H, W) in [0, 1]."""
        diffusion = self.model.diffusion[0]
        latents = diffusion.encode_images(images.to(self.model.shift.device))
        least = 0.0 if diffusion.schedule.family == "vp" else 1 / diffusion.schedule.num_train_timesteps
        return self._at(latents, torch.full((len(latents),), least, device=latents.device), prompts)

    def _at(self, x_t: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.model.reward_of(self.model.at(x_t, t, *self.model.prepare_texts(prompts))).float()

    def score_latents(self, x_t: Tensor, t: Tensor | float, prompts: Sequence[str]) -> Tensor:
        """Checked scores (B,) of noisy latents.

        Args:
            x_t: (B, C, h, w). t: a number or (B,), in the units of the diffusion model's schedule. prompts: B texts.

        Raises:
            RewardError: latents of another shape or not finite, times that do not fit, another number of prompts.
        """
        shape = self.model.diffusion[0].latent_shape
        if x_t.ndim != 4 or tuple(x_t.shape[1:]) != tuple(shape) or not x_t.is_floating_point():
            raise RewardError(f"reward {self.name!r}: latents must be floating (B, {', '.join(map(str, shape))}), "
                              f"not {x_t.dtype} {tuple(x_t.shape)}")
        if not x_t.isfinite().all():
            raise RewardError(f"reward {self.name!r}: NaN or infinity in the latents")
        times = torch.as_tensor(t, dtype=torch.float32, device=x_t.device)
        if times.ndim > 1 or (times.ndim == 1 and len(times) != len(x_t)):
            raise RewardError(f"reward {self.name!r}: times {tuple(times.shape)} for {len(x_t)} latents; give (B,)")
        prompts = check_prompts(prompts, len(x_t), self)
        return check_scores(self._at(x_t, times.expand(len(x_t)), prompts), len(x_t), self.name)

    @classmethod
    def from_stored(cls, description: dict, tensors: dict[str, Tensor], folder: Path) -> StepAwareReward:
        """From what `store.save_learned` wrote.

        Raises:
            ValueError: the diffusion model or the trunk has other weights than in training.
        """
        from surveylib.rewards.learned.store import fill

        diffusion, trunk = load_model(description["diffusion"]["name"]), description["trunk"]
        if fingerprint(diffusion.network) != description["diffusion"]["fingerprint"]:
            raise ValueError(f"{diffusion.name} is not the one that {folder} was trained with: train the reward again")
        clip = trunk and load_trunk(trunk["name"], tuple(trunk["unlock"]))
        if clip and clip.fingerprint != trunk["fingerprint"]:
            raise ValueError(f"{clip.name} is not the one that {folder} was trained with: train the reward again")
        model = StepAwareModel(diffusion, description["features"], clip, **description["options"])
        fill(model, tensors, folder)
        return cls(model.requires_grad_(False).eval(), description["name"])
