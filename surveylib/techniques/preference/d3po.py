"""D3PO: direct preference optimisation of the denoising steps themselves (Yang et al., arXiv 2311.13231).

As in DDPO, denoising is a Markov decision process. Two pictures are drawn for a prompt from the same initial noise and
compared; every step of the two paths takes over the answer. With rho = p_theta(x_s | x_t, c) / p_ref(x_s | x_t, c),

    loss = -log sigmoid( beta log clamp(rho_w, 1 - e, 1 + e) - beta log clamp(rho_l, 1 - e, 1 + e) )

for the steps with the same index of the winner's and the loser's path.

Special: no reward model in the rule, only the answer which of two own pictures is better; online. Here the reward
stands for the person who answers, and only its sign counts. The probabilities are those of stored steps and exact; the
bound of Diffusion-DPO is not needed. Where rho leaves the clamp a step has no gradient any more, so e bounds how far
each step moves from the reference. Log-probabilities are means over dimensions, as in the official code.

Equal rewards (a tie) give the constant log 2 and no gradient.

Deviations from yk7333/d3po: an update averages over whole paths (there: over the samples of a timestep); steps without
noise are left out.
Chapter: techniques/06_direct_preference_optimisation.
"""

from __future__ import annotations

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
from surveylib.techniques.paths import decode_all, sample_paths, score_all
from surveylib.techniques.policy_gradient.replay import stored_steps
from surveylib.techniques.preference.implicit import check_beta

STREAMS = ("first", "second")  # names of the step noise of a pair's two paths


@dataclass(frozen=True)
class D3POConfig:
    """Settings of D3PO.

    beta: > 0, strength of the reference. clip: e in (0, 1); 0.1 belongs to reduction "mean". steps, eta, guidance: of
    the rollout; guidance None takes the model's own and is used in training too. reduction: of log-probabilities.
    """

    beta: float = 0.1
    clip: float = 0.1
    steps: int = 20
    eta: float = 1.0
    guidance: float | None = 5.0
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if not 0 < self.eta <= 1:
            raise TechniqueError(f"eta={self.eta} must be in (0, 1]: without noise no step has a probability, and the "
                                 "two pictures of a pair are the same")
        if not 0 < self.clip < 1 or self.steps < 2:
            raise TechniqueError(f"clip={self.clip} must be in (0, 1) and steps={self.steps} at least 2 (the last step "
                                 "may have no noise)")


def d3po_loss(change: Tensor, answer: Tensor, beta: float, clip: float) -> Tensor:
    """Losses (M,) of log rho (M, 2), first and second, and answers (M,): 1 first preferred, -1 second, 0 a tie."""
    kept = torch.log(change.exp().clamp(1 - clip, 1 + clip))
    return -F.logsigmoid(answer * beta * (kept[:, 0] - kept[:, 1]))


class D3PO(Technique):
    """D3PO with a reward that answers."""

    name = "d3po"
    needs = ("reward", "online")
    Config = D3POConfig

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Two rollouts a sample from one initial noise, both scored; all steps that have noise."""
        c = self.config
        condition = model.encode(draw.prompts)
        start = model.initial_noise(len(draw), draw.generators("start"))
        fields, rewards, pictures = [], [], []
        for stream in STREAMS:
            paths = sample_paths(model, condition, dynamics=DDIM(c.eta), steps=c.steps, guidance=c.guidance,
                                 generators=draw.generators(stream), reduction=c.reduction, start=start,
                                 batch=draw.batch)
            fields.append(stored_steps(paths)[0])
            pictures.append(decode_all(model, paths.x0, draw.batch))
            rewards.append(score_all(signal, pictures[-1], draw.prompts, draw.batch))
        steps = {name: torch.stack([field[name] for field in fields], 2) for name in ("x", "x_next")}
        steps |= {name: fields[0][name] for name in ("t", "s")}
        answer = torch.sign(rewards[0] - rewards[1])
        better = torch.where((answer >= 0).reshape(-1, *[1] * (pictures[0].ndim - 1)), *pictures)
        metrics = {"reward": torch.stack(rewards).mean().item(), "ties": (answer == 0).float().mean().item()}
        return Batch(condition, {"answer": answer}, steps, metrics, better)

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule on one step of both paths."""
        c, answer = self.config, items["answer"]
        with torch.no_grad(), model.reference():
            reference = self._log_prob(model, items)
        change = self._log_prob(model, items) - reference
        metrics = {"implicit_accuracy": 0.5 * (torch.sign(answer * (change[:, 0] - change[:, 1])) + 1),
                   "clipped": ((change.exp() - 1).abs() > c.clip).float().mean(1)}
        return d3po_loss(change, answer, c.beta, c.clip), {name: value.detach() for name, value in metrics.items()}

    def _log_prob(self, model: DiffusionModel, items: Items) -> Tensor:
        """(M, 2) of the stored steps under the weights in place."""
        t, s = (items[name].repeat_interleave(2) for name in ("t", "s"))
        log_prob, _ = step_log_prob(model, items.condition.repeat_interleave(2), DDIM(self.config.eta),
                                    x=items["x"].flatten(0, 1), t=t, s=s, x_next=items["x_next"].flatten(0, 1),
                                    guidance=self.config.guidance, reduction=self.config.reduction)
        return log_prob.unflatten(0, (-1, 2))


D3PO.PRESETS = {
    "full": Preset(
        D3POConfig(),
        Training(epochs=400, samples=20, lr=3e-5, lora_rank=4, micro_batch=10, sample_batch=10),
        model="sd1.5", reward="pickscore",
        source="arXiv 2311.13231 and yk7333/d3po (batch 10, 2 accumulated, 20 steps, beta and e 0.1); people answer "
               "there, a reward here; the rank of the adapter is ours",
        cost="40 pictures and 380 pairs of trained steps an epoch",
    ),
    "single": Preset(
        D3POConfig(),
        Training(epochs=100, samples=20, lr=3e-5, lora_rank=4, micro_batch=4, sample_batch=8),
        model="sd1.5", reward="pickscore", source="the full setting with fewer epochs, for one 24 GB card",
        cost="40 pictures and 380 pairs of trained steps an epoch",
    ),
    "toy": Preset(
        D3POConfig(steps=8, guidance=3.0),
        Training(epochs=20, samples=16, updates=2, lr=1e-3, lora_rank=16, micro_batch=32, sample_batch=32),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="not measured yet",
    ),
}
