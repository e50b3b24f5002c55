"""What the preference losses on denoising errors share: data rows as latents, and the implicit reward of a sample.

The implicit reward of a clean sample at (t, eps) is s = l_ref - l_theta, how much better than the reference the policy
predicts there; l is the denoising error, a mean over dimensions. It is 0 while policy and reference are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from surveylib.diffusion.denoising import denoising_error
from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.timesteps import times_of_uniform
from surveylib.runs.randomness import normal, uniform
from surveylib.techniques.contract import Batch, Draw, Items, TechniqueError
from surveylib.techniques.preference.data import encoded


def check_beta(beta: float) -> None:
    """Refuses a strength that is not positive."""
    if not beta > 0:
        raise TechniqueError(f"beta={beta} must be positive: at 0 the loss has no gradient. Diffusion-DPO takes 5000")


def recorded_batch(model: DiffusionModel, draw: Draw, data, empty_prompts: float) -> Batch:
    """Rows of recorded feedback: latents "x" (n, k, *latent_shape) and "label"; some prompts emptied for guidance."""
    rows = draw.rows(len(data))
    prompts, labels, x = encoded(model, data, rows, draw.batch)
    emptied = uniform(draw.indices, draw.seed, draw.epoch, "empty") < empty_prompts
    prompts = ["" if empty else prompt for prompt, empty in zip(prompts, emptied.tolist())]
    return Batch(model.encode(prompts), {"x": x, "label": labels.to(x.device)})


def implicit_rewards(
    model: DiffusionModel, items: Items, *, kind: str | None = None, shared_noise: bool = True
) -> Tensor:
    """s (M, k) of the items' k samples, with the policy's gradient; the reference carries none.

    Args:
        kind: parametrisation of the error; None is the model's own (epsilon, velocity).
        shared_noise: t is shared among the k samples always, the noise where this is True.
    """
    x = items["x"]
    m, k = x.shape[:2]
    t = times_of_uniform(uniform(items.keys, "t"), model.schedule).repeat_interleave(k).to(x.device)
    if shared_noise:
        noise = normal(items.keys, x.shape[2:], "noise").repeat_interleave(k, 0)
    else:
        noise = normal(items.keys, x.shape[1:], "noise").flatten(0, 1)
    condition = items.condition.repeat_interleave(k)
    return implicit_rewards_at(model, x.flatten(0, 1), condition, t, noise.to(x), kind).reshape(m, k)


def implicit_rewards_at(model: DiffusionModel, x0, condition, t, noise, kind: str | None = None) -> Tensor:
    """s = l_ref - l_theta (B,) at the given times (B,) and noise (B, *latent_shape)."""
    error = denoising_error(model, x0, condition, t, noise, kind=kind)
    with torch.no_grad(), model.reference():
        reference = denoising_error(model, x0, condition, t, noise, kind=kind)
    return reference - error
