"""KL ledger: how far the policy's way of sampling has moved from the reference's.

    KL(path) = E_{x ~ policy} sum_t |mu_theta(x_t, t) - mu_ref(x_t, t)|^2 / (2 sigma_t^2)

along the policy's own stochastic rollouts, with the standard deviation sigma_t of the sampler (DPOK, arXiv 2305.16381).
Both start from the same noise. The sum is, sample by sample, an unbiased estimate of the KL
between the two laws of the whole path, and by the data-processing inequality at least the KL of the pictures in
expectation. Steps without noise are left out: between two different points the KL is infinite there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import Dynamics, kl_divergence
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.rollout import rollout


@torch.no_grad()
def path_kl(
    model: DiffusionModel,
    prompts: Condition | Sequence[str],
    *,
    dynamics: Dynamics,
    steps: int | Tensor,
    generators: Sequence[torch.Generator],
    guidance: float | None = None,
    batch: int = 64,
    reference: str = "reference",
) -> Tensor:
    """KL of each sample's path, (B,) in nats, float64 on the CPU.

    Args:
        model: holds the policy, and the reference as adapter-off or under the name `reference`.
        prompts: B prompts, or their condition. generators: B, one a sample.
        dynamics: a stochastic one. steps, guidance: as in `rollout`; the reference is guided by the same scale.
        batch: samples in one rollout.

    Raises:
        ValueError: deterministic dynamics, or another number of generators. KeyError: no reference weights.
    """
    condition = prompts if isinstance(prompts, Condition) else model.encode(list(prompts))
    if len(generators) != len(condition):
        raise ValueError(f"{len(generators)} generators for {len(condition)} prompts: give one a sample")
    parts = []
    for rows in torch.arange(len(condition)).split(batch):
        here, total, noisy = condition[rows], torch.zeros(len(rows), dtype=torch.float64), 0
        path = rollout(model, here, dynamics=dynamics, steps=steps, guidance=guidance,
                       generator=[generators[i] for i in rows.tolist()])
        for step in path:
            if step.transition.deterministic:
                continue
            with model.weights(reference):
                prediction = model.predict(step.x, step.t, here, guidance)
            other = dynamics.transition(prediction, step.s)
            total += kl_divergence(step.transition, other, "sum").double().cpu()
            noisy += 1
        if not noisy:
            raise ValueError(f"{dynamics!r} adds no noise: the KL of a path needs a stochastic sampler, such as "
                             "DDIM(1.0) or FlowSDE(0.7)")
        parts.append(total)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
