"""D3PO: direct preference for denoising diffusion policy optimisation (Yang et al., arXiv 2311.13231).

DPO on the denoising steps, each seen as an action of a policy. Two rollouts of a prompt start from the same noise; the
preference for one of the pictures is taken as a preference for each of its steps. With h = +1 for the preferred path,
-1 for the other, and rho = p_theta(x_s | x_t, c) / p_ref(x_s | x_t, c) of a stored step, at each t

    loss = -log sigmoid( beta h_1 log clamp(rho_1, 1 - e, 1 + e) + beta h_2 log clamp(rho_2, 1 - e, 1 + e) )

Special: online and without a reward model: only the comparison is used, here that of a reward, there a person's.
Log-probabilities are means over dimensions, as in the official code; e = 0.1 and beta = 0.1 belong to that. The clamp
has no gradient outside its band, on both sides: a pair that went too far the wrong way is not called back.

Ties have h = 0 on both sides: the loss is log 2 and has no gradient.

Deviations from yk7333/d3po: an update averages over whole paths (there the optimiser may step after each time); the
last step has no noise and is left out; the two rollouts share their first noise by design, so that their steps alone
differ.
Chapter: techniques/06_direct_preference_optimisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.diffusion.dynamics import DDIM, Reduction
from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.rollout import step_log_prob
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.paths import Paths, decode_all, sample_paths, score_all
from surveylib.techniques.policy_gradient.replay import stored_steps
from surveylib.techniques.preference.diffusion_dpo import implicit_accuracy


@dataclass(frozen=True)
class D3POConfig:
    """Settings of D3PO.

    beta: > 0, strength of the reference. clip: e in (0, 1), the band of rho.
    steps, eta, guidance: of the rollouts; guidance None takes the model's own and is used in training too.
    reduction: of log-probabilities; beta 0.1 and clip 0.1 belong to "mean".
    """

    beta: float = 0.1
    clip: float = 0.1
    steps: int = 20
    eta: float = 1.0
    guidance: float | None = 5.0
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise TechniqueError(f"beta={self.beta} must be positive: at 0 the loss has no gradient. D3PO takes 0.1")
        if not 0 < self.clip < 1:
            raise TechniqueError(f"clip={self.clip} must be in (0, 1): the loss takes the logarithm of 1 - clip")
        if not 0 < self.eta <= 1:
            raise TechniqueError(f"eta={self.eta} must be in (0, 1]: without noise no step has a probability")
        if self.steps < 1:
            raise TechniqueError(f"steps={self.steps} must be at least 1")


def d3po_loss(log_prob: Tensor, reference: Tensor, h: Tensor, beta: float, clip: float) -> Tensor:
    """Loss (M,) of a step of M pairs.

    Args:
        log_prob, reference: (M, 2), of the first and the second path; the reference is a constant.
        h: (M,), +1 where the first is preferred, -1 where the second is, 0 for a tie.
    """
    # The clamp of rho, written on its logarithm: exp overflows far outside the band, and the gradient would be NaN.
    log_ratio = (log_prob - reference.detach()).clamp(math.log1p(-clip), math.log1p(clip))
    return -F.logsigmoid(beta * h * (log_ratio[:, 0] - log_ratio[:, 1]))


class D3PO(Technique):
    """D3PO; a sample of the draw is a pair of pictures, labelled by the reward."""

    name = "d3po"
    needs = ("reward", "online")
    Config = D3POConfig

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Two rollouts a sample from one start, compared by the reward; keeps every step that has noise."""
        condition = model.encode(draw.prompts)
        start = model.initial_noise(len(draw), draw.generators("start"))
        pair = [self._paths(model, condition, draw, start, stream) for stream in ("first", "second")]
        pictures = [decode_all(model, paths.x0, draw.batch) for paths in pair]
        first, second = (score_all(signal, found, draw.prompts, draw.batch) for found in pictures)
        h = torch.sign(first - second)
        one, two = (stored_steps(paths)[0] for paths in pair)
        steps = {name: torch.stack([one[name], two[name]], 2) for name in ("x", "x_next")}
        metrics = {"reward": 0.5 * (first + second).mean().item(), "ties": (h == 0).float().mean().item()}
        return Batch(condition, {"h": h}, steps | {"t": one["t"], "s": one["s"]}, metrics, pictures[0])

    def _paths(self, model: DiffusionModel, condition, draw: Draw, start: Tensor, stream: str) -> Paths:
        c = self.config
        return sample_paths(model, condition, dynamics=DDIM(c.eta), steps=c.steps, generators=draw.generators(stream),
                            guidance=c.guidance, reduction=c.reduction, start=start, batch=draw.batch)

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule, on stored steps of both paths."""
        c, h = self.config, items["h"]
        log_prob = self._log_prob(model, items)
        with torch.no_grad(), model.reference():
            reference = self._log_prob(model, items)
        change = (log_prob - reference).detach()
        signed = h[:, None] * change
        metrics = {"implicit_accuracy": implicit_accuracy(signed[:, 0], signed[:, 1]),
                   "margin": signed[:, 0] - signed[:, 1],
                   "clipped": ((change.exp() - 1).abs() > c.clip).float().mean(1)}
        return d3po_loss(log_prob, reference, h, c.beta, c.clip), metrics

    def _log_prob(self, model: DiffusionModel, items: Items) -> Tensor:
        c = self.config
        found, _ = step_log_prob(model, items.condition.repeat_interleave(2), DDIM(c.eta), x=items["x"].flatten(0, 1),
                                 t=items["t"].repeat_interleave(2), s=items["s"].repeat_interleave(2),
                                 x_next=items["x_next"].flatten(0, 1), guidance=c.guidance, reduction=c.reduction)
        return found.unflatten(0, (-1, 2))


D3PO.PRESETS = {
    "full": Preset(
        D3POConfig(),
        Training(epochs=400, samples=20, updates=1, lr=3e-5, lora_rank=4, micro_batch=4, sample_batch=10),
        model="sd1.5", reward="aesthetic",
        source="yk7333/d3po 40d3175 (beta, clip, steps, guidance, learning rate, epochs); one update on 20 pairs "
               "stands for its batches of 10 accumulated twice; the rank and the reward are ours",
        cost="40 pictures and 760 trained steps an epoch",
    ),
    "single": Preset(
        D3POConfig(),
        Training(epochs=100, samples=32, samples_per_prompt=4, updates=2, lr=1e-4, lora_rank=4, micro_batch=2,
                 sample_batch=8),
        model="sd1.5", reward="aesthetic", source="ours: the official setting cut to one 24 GB card",
        cost="64 pictures and 1,216 trained steps an epoch",
    ),
    "toy": Preset(
        D3POConfig(steps=8, guidance=3.0),
        Training(epochs=20, samples=16, samples_per_prompt=4, updates=2, lr=1e-3, lora_rank=16, micro_batch=32,
                 sample_batch=16),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="about 6 minutes on one core",
    ),
}
