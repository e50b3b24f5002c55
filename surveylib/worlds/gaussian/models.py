"""Diffusion models of the Gaussian world, behind the same contract as the image models.

`ExactModel` has the exact posterior means of a mixture: any error of a sampler is the sampler's. `learned_model` trains
a small network on samples of the mixture in seconds: a policy that alignment can change. Prompts are the names of the
mixture's components; ``"any"`` and ``""`` ask for all of them, so that the empty negative prompt is the unconditional
model and guidance pushes towards the named peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from surveylib.diffusion.denoising import denoising_error
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.predictions import check_kind, from_x0_epsilon
from surveylib.diffusion.schedules import Schedule, VPSchedule, broadcast
from surveylib.diffusion.timesteps import stratified
from surveylib.worlds.gaussian.mixture import ANY, GaussianMixture, component_mask

NATURAL_KIND = {"vp": "epsilon", "flow": "velocity"}


class GaussianModel(DiffusionModel):
    """A network over points (B, d), conditioned on a mask of components (B, K).

    Args:
        network: ``network(x, t, components) -> (B, d)`` of the given kind; ``t`` (B,) in the schedule's units.
        names: the K component names that prompts may use.
        dim: d. schedule: default `VPSchedule.linear()`. kind: default epsilon for VP, velocity for flow.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], dim: int, schedule: Schedule, kind: str | None = None
    ) -> None:
        self.network = network
        self.names = list(names)
        self.latent_shape = (dim,)
        self.schedule = schedule
        self.prediction_kind = check_kind(kind or NATURAL_KIND[schedule.family])

    def encode(self, prompts: Sequence[str], negative: Sequence[str] | str = "") -> Condition:
        """The tensor ``components``, (B, K) zeros and ones.

        Raises:
            ValueError: an unknown component name, or a list of negatives of another length.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        negative = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
        if len(negative) != len(prompts):
            raise ValueError(f"{len(negative)} negative prompts for {len(prompts)} prompts: give one, or one for each")
        return Condition({"components": self._masks(prompts)}, prompts, {"components": self._masks(negative)})

    def _masks(self, prompts: Sequence[str]) -> Tensor:
        rows = {prompt: component_mask(prompt, self.names).float() for prompt in set(prompts)}
        empty = torch.zeros(0, len(self.names))
        return torch.stack([rows[prompt] for prompt in prompts]).to(self.device) if prompts else empty

    def network_output(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        return self.network(x, t, tensors["components"])

    def decode(self, latents: Tensor, clamp: bool = False) -> Tensor:
        """The points themselves, (B, d)."""
        return latents

    def encode_images(self, images: Tensor) -> Tensor:
        """The points themselves, (B, d)."""
        return images


class ExactNetwork(nn.Module):
    """The exact prediction of a mixture as a module without parameters (forward hooks can count its calls)."""

    def __init__(self, mixture: GaussianMixture, schedule: Schedule, kind: str) -> None:
        super().__init__()
        self.mixture, self.schedule, self.kind = mixture, schedule, kind
        self.register_buffer("anchor", torch.zeros((), dtype=torch.float32), persistent=False)  # tells the device

    def _apply(self, function, recurse: bool = True):
        super()._apply(function, recurse)
        if self.mixture.means.device != self.anchor.device:
            self.mixture = self.mixture.to(self.anchor.device)
        return self

    def forward(self, x: Tensor, t: Tensor, components: Tensor) -> Tensor:
        a, s = self.schedule.coefficients(t)
        log_weights = self.mixture.log_weights + components.double().log()  # log 0 = -inf leaves a component out
        x0, epsilon = self.mixture.posterior_mean_and_noise(x, a, s, log_weights)
        return from_x0_epsilon(x0, epsilon, self.kind, broadcast(a, x), broadcast(s, x))


class ExactModel(GaussianModel):
    """The diffusion model whose every prediction is exact for the mixture, under every prompt and schedule.

    With the optimum of `tilt.tilted` it is the exactly aligned model.

    Args:
        mixture: the data. schedule: default `VPSchedule.linear()`. kind: default epsilon for VP, velocity for flow.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule | None = None, kind: str | None = None) -> None:
        schedule = VPSchedule.linear() if schedule is None else schedule
        kind = check_kind(kind or NATURAL_KIND[schedule.family])
        super().__init__(ExactNetwork(mixture, schedule, kind), mixture.names, mixture.dim, schedule, kind)
        self.mixture = mixture


class GaussianNet(nn.Module):
    """A small residual perceptron over (x, noise level, components).

    Its output is added to the best linear prediction for N(0, I) data, and its last layer starts at zero: untrained it
    is the exact model of N(0, I).

    Args:
        dim: d. components: K. schedule, kind: as of the model. width, depth: of the hidden layers.
    """

    def __init__(
        self, dim: int, components: int, schedule: Schedule, kind: str, width: int = 128, depth: int = 3
    ) -> None:
        super().__init__()
        self.schedule, self.kind = schedule, kind
        self.register_buffer("frequencies", torch.arange(1, 9) * math.pi / 2, persistent=False)
        self.point = nn.Linear(dim, width)
        self.level = nn.Linear(2 * len(self.frequencies) + 1, width)
        self.components = nn.Linear(components, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, components: Tensor) -> Tensor:
        a, s = (broadcast(c, x) for c in self.schedule.coefficients(t))
        norm = a**2 + s**2
        linear = from_x0_epsilon(a * x / norm, s * x / norm, self.kind, a, s)
        level = torch.atan2(s, a)  # angle of the noise level, 0 .. pi/2
        waves = level * self.frequencies
        embedding = self.level(torch.cat([level, waves.sin(), waves.cos()], 1))
        h = self.point(x / norm.sqrt()) + embedding + self.components(components.to(x.dtype))
        for layer in self.hidden:
            h = h + layer(nn.functional.silu(h))
        return linear + self.out(nn.functional.silu(h))


def training(
    model: GaussianModel,
    mixture: GaussianMixture,
    *,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 3e-3,
    drop: float = 0.3,
    seed: int = 0,
) -> Iterator[tuple[int, float]]:
    """Trains ``model.network`` by denoising on exact samples; yields (step, loss) after each update.

    Args:
        lr: of AdamW at the start; falls to zero by a cosine.
        drop: share of samples whose prompt is ``"any"`` instead of their component's name.
        seed: of the data, times and noise (the network's initial weights are the caller's).
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.network.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rows = model.encode([ANY, *mixture.names]).tensors["components"]
    for step in range(steps):
        x0, k = mixture.sample_labelled(batch, generator)
        k = torch.where(torch.rand(batch, generator=generator) < drop, -1, k.cpu())
        condition = Condition({"components": rows[k + 1]}, [""] * batch)
        t = stratified(batch, model.schedule, generator=generator).to(model.device)
        noise = torch.randn(x0.shape, generator=generator).to(model.device)
        loss = denoising_error(model, x0.to(model.device), condition, t, noise).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        yield step, float(loss.detach())


def learned_model(
    mixture: GaussianMixture,
    schedule: Schedule | None = None,
    *,
    kind: str | None = None,
    steps: int = 2000,
    batch: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> GaussianModel:
    """A `GaussianNet` trained on the mixture: the small policy of the Gaussian world. Seconds on a CPU.

    Args:
        mixture: the data. schedule: default `VPSchedule.linear()`. kind: default epsilon for VP, velocity for flow.
    """
    schedule = VPSchedule.linear() if schedule is None else schedule
    kind = check_kind(kind or NATURAL_KIND[schedule.family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = GaussianNet(mixture.dim, len(mixture.names), schedule, kind)
    model = GaussianModel(network, mixture.names, mixture.dim, schedule, kind)
    run = training(model, mixture, steps=steps, batch=batch, seed=seed)
    for _ in tqdm(run, total=steps, desc="learning the mixture", disable=not progress):
        pass
    network.eval()
    return model
