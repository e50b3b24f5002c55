"""A value network V(x_t, c, t): the baseline of DPOK, small and fed with a coarse view of x_t."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from surveylib.diffusion.model import Condition
from surveylib.diffusion.schedules import Schedule
from surveylib.runs.randomness import permutation

COARSE = 8  # latents are averaged down to at most this many cells a side
FLAT = 1e-6  # rewards whose std is below this share of the greater of |mean| and 1 are all the same, up to rounding


def value_features(x: Tensor, t: Tensor, condition: Condition, schedule: Schedule) -> Tensor:
    """What the network sees of K steps of N samples, (N, K, F) float32 on the CPU.

    x: (N, K, *latent_shape), coarse-grained where it has height and width. t: (N, K). Of the condition: each tensor of
    real numbers, averaged over all but its first and last dimension. Of the time: waves of the noise level's angle.
    """
    n, k = x.shape[:2]
    points = x.flatten(0, 1).float()
    if points.ndim == 4:
        sides = [min(side, COARSE) for side in points.shape[2:]]
        points = nn.functional.adaptive_avg_pool2d(points, sides)
    a, s = schedule.coefficients(t)
    level = torch.atan2(s, a).float()[..., None]  # 0 clean .. pi/2 noise
    waves = level * torch.arange(1, 5, device=level.device) * math.pi / 2
    texts = [v.float().reshape(n, -1, v.shape[-1]).mean(1) for v in condition.tensors.values()
             if v.is_floating_point() and v.ndim > 1]
    parts = [points.reshape(n, k, -1).cpu(), level.cpu(), waves.sin().cpu(), waves.cos().cpu()]
    parts += [nn.functional.layer_norm(text, text.shape[1:])[:, None].expand(-1, k, -1).cpu() for text in texts]
    return torch.cat(parts, 2)


class ValueNetwork:
    """A perceptron over `value_features`, fitted by least squares to what followed.

    Args:
        lr: of its AdamW. steps, batch: of one `fit`. width: of its two hidden layers.
    """

    def __init__(self, lr: float = 1e-4, steps: int = 5, batch: int = 256, width: int = 256) -> None:
        self.lr, self.steps, self.batch, self.width = lr, steps, batch, width
        self.network: nn.Sequential | None = None
        self.centre, self.scale, self.fits = 0.0, 1.0, 0

    def _build(self, inputs: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(inputs, self.width), nn.SiLU(), nn.Linear(self.width, self.width),
                                         nn.SiLU(), nn.Linear(self.width, 1))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=self.lr)

    def fit(self, features: Tensor, targets: Tensor, seed: int) -> float:
        """Some steps of regression on (N, K, F) and (N, K); returns the last mean squared error, in the targets' units.

        The first fit to samples with different rewards fixes the units in which the network works: mean and std of its
        targets. Until then there is nothing to learn, and no unit to learn it in: the value is the targets' mean.
        """
        rewards = targets[:, -1].float().cpu()  # nothing but the reward follows the last step
        features, targets = features.flatten(0, 1), targets.flatten().float().cpu()
        if self.network is None:
            if rewards.std(correction=0) <= FLAT * rewards.mean().abs().clamp(min=1):
                self.centre = targets.double().mean().item()  # in float64 the mean of equal numbers is that number
                return targets.var(correction=0).item()
            self._build(features.shape[1])
            self.centre, self.scale = targets.mean().item(), targets.std(correction=0).item()
        wanted = (targets - self.centre) / self.scale
        order = torch.cat([permutation(len(wanted), seed, self.fits, turn, "value")
                           for turn in range(1 + self.steps * self.batch // len(wanted))])
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            for rows in order[: self.steps * self.batch].split(self.batch):
                error = (self.network(features[rows])[:, 0] - wanted[rows]).square().mean()
                self.optimiser.zero_grad()
                error.backward()
                self.optimiser.step()
        self.fits += 1
        return error.item() * self.scale**2

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Values (N, K) in the units of the targets; `fit` comes first."""
        if self.network is None:
            return torch.full(features.shape[:2], self.centre)
        with torch.autocast("cpu", enabled=False):
            return self.network(features)[..., 0] * self.scale + self.centre

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser and units; empty before the first fit to different rewards."""
        if self.network is None:
            return {}
        return {"inputs": self.network[0].in_features, "network": deepcopy(dict(self.network.state_dict())),
                "optimiser": deepcopy(self.optimiser.state_dict()), "centre": self.centre, "scale": self.scale,
                "fits": self.fits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        if not state:
            return
        self._build(state["inputs"])
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.centre, self.scale, self.fits = state["centre"], state["scale"], state["fits"]
