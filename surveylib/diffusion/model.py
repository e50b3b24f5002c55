"""The one contract of every diffusion model: `DiffusionModel`, and `Condition`, what its network is conditioned on.

An adapter implements four things (`encode`, `network_output`, `decode`, `encode_images`) and sets the attributes
listed in `DiffusionModel`; guidance, conversion and checks are here. Chapters: fundamentals; "Bring your own model".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from surveylib.diffusion.guidance import guided_output
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.schedules import Schedule
from surveylib.diffusion.weights import NamedWeights


@dataclass(frozen=True, eq=False)
class Condition:
    """What the network is conditioned on: named tensors, all batch-first, and the prompts they came from.

    Attributes:
        tensors: name -> (B, ...), of the prompts.
        prompts: the B prompts.
        negative: the same names for the negative prompts (the unconditional branch of guidance), or None.

    Raises:
        ValueError: lengths that differ, or negative tensors under other names.
    """

    tensors: dict[str, Tensor]
    prompts: list[str]
    negative: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", list(self.prompts))
        if self.negative is not None and set(self.negative) != set(self.tensors):
            raise ValueError(f"negative tensors {sorted(self.negative)} differ in name from {sorted(self.tensors)}")
        for name, value in [*self.tensors.items(), *(self.negative or {}).items()]:
            if len(value) != len(self.prompts):
                raise ValueError(f"condition tensor {name!r} has batch {len(value)} for {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Condition:
        """Samples of the batch; an integer gives a batch of one."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is outside a condition of {len(self)} prompts")
            index = [index]
        rows = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        return self._map(lambda value: value[rows.to(value.device)], [self.prompts[i] for i in rows.tolist()])

    def repeat_interleave(self, k: int) -> Condition:
        """Each prompt ``k`` times in a row: a a b b ..."""
        prompts = [prompt for prompt in self.prompts for _ in range(k)]
        return self._map(lambda value: value.repeat_interleave(k, 0), prompts)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """On a device; ``dtype`` applies to floating-point tensors only."""
        return self._map(lambda value: value.to(device, dtype if value.is_floating_point() else None), self.prompts)

    def detach(self) -> Condition:
        """Cut from the graph."""
        return self._map(Tensor.detach, self.prompts)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """One batch of several conditions of the same model."""
        if not conditions:
            raise ValueError("Condition.cat needs at least one condition")
        if len({c.negative is None for c in conditions}) > 1:
            raise ValueError("some conditions were encoded with a negative prompt and some without")
        first = conditions[0]
        tensors = {name: torch.cat([c.tensors[name] for c in conditions]) for name in first.tensors}
        negative = None
        if first.negative is not None:
            negative = {name: torch.cat([c.negative[name] for c in conditions]) for name in first.negative}
        return Condition(tensors, [prompt for c in conditions for prompt in c.prompts], negative)

    def _map(self, function: Callable[[Tensor], Tensor], prompts: list[str]) -> Condition:
        tensors = {name: function(value) for name, value in self.tensors.items()}
        negative = None if self.negative is None else {name: function(v) for name, v in self.negative.items()}
        return replace(self, tensors=tensors, prompts=prompts, negative=negative)


class DiffusionModel(NamedWeights):
    """Base class of the adapters. Everything a technique may ask of a model is here (weights by name: `NamedWeights`).

    Attributes (set by the adapter):
        schedule: times and coefficients.
        latent_shape: shape of one sample x without the batch: (C, H, W), or (d,) in the Gaussian world.
        network: the module that is trained.
        prediction_kind: what ``network_output`` returns, one of `predictions.KINDS`.
        default_guidance: the scale used where a call says ``guidance=None``.
        guidance_mode: ``"cfg"`` (two branches) or ``"embedded"`` (guidance-distilled: the scale is a network input).
    """

    schedule: Schedule
    latent_shape: tuple[int, ...]
    network: nn.Module
    prediction_kind: str = "epsilon"
    default_guidance: float = 1.0
    guidance_mode: Literal["cfg", "embedded"] = "cfg"

    # -- to be written by an adapter ---------------------------------------------------------------------------------
    def encode(self, prompts: Sequence[str], negative: Sequence[str] | str = "") -> Condition:
        """Condition of B prompts, with the tensors of the negative prompt(s) under ``.negative``."""
        raise NotImplementedError

    def network_output(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """One raw network call.

        Args:
            x: (B, *latent_shape), in the caller's dtype; the adapter casts to the network's.
            t: (B,) times in the schedule's units, float32 (float64 for float64 x), on x's device
                (``self.schedule.network_time(t)`` gives the number that the time embedding takes).
            tensors: the condition's tensors, batch B.
            guidance: (B,) scale as the embedding's input, float32, only when ``guidance_mode == "embedded"``.

        Returns:
            (B, *latent_shape) of kind ``prediction_kind``.
        """
        raise NotImplementedError

    def decode(self, latents: Tensor, clamp: bool = False) -> Tensor:
        """Pictures (B, 3, H, W), float32 in [0, 1], differentiable; values may lie slightly outside unless ``clamp``.

        In the Gaussian world: the points themselves, (B, d).
        """
        raise NotImplementedError

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, *latent_shape) of pictures (B, 3, H, W) in [0, 1]; deterministic (the posterior's mean)."""
        raise NotImplementedError

    # -- shared -------------------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return _first_tensor(self.network).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network's weights."""
        return _first_tensor(self.network).dtype

    def initial_noise(self, n: int, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """(n, *latent_shape) of N(0, 1), float32 on the model's device, as diffusers draws it.

        A CPU generator gives the same noise for every device. A list of n generators gives each sample its own.
        """
        return randn_tensor((n, *self.latent_shape), generator=generator, device=self.device, dtype=torch.float32)

    def output(
        self,
        x: Tensor,
        t: Tensor | float,
        condition: Condition,
        guidance: float | Tensor | None = None,
        *,
        unconditional_gradient: bool = True,
    ) -> Tensor:
        """The guided network output as a tensor, of kind ``prediction_kind`` (`predict` wraps it)."""
        self.check(x, condition)
        times = self._batch_times(t, x)
        scale = self.default_guidance if guidance is None else guidance
        if not torch.as_tensor(scale).isfinite().all():
            raise ValueError(f"guidance={guidance} must be finite: 1 is the conditional model alone, 7.5 is usual")
        if self.guidance_mode == "embedded":
            embedded = torch.as_tensor(scale, dtype=torch.float32, device=x.device).expand(len(x))
            return self.network_output(x, times, condition.tensors, embedded)
        return guided_output(
            lambda x, t, tensors: self.network_output(x, t, tensors, None),
            x,
            times,
            condition.tensors,
            condition.negative,
            scale,
            unconditional_gradient=unconditional_gradient,
        )

    def predict(
        self,
        x: Tensor,
        t: Tensor | float,
        condition: Condition,
        guidance: float | Tensor | None = None,
        *,
        unconditional_gradient: bool = True,
    ) -> Prediction:
        """The model's prediction at x_t.

        Args:
            x: (B, *latent_shape), floating point.
            t: a number or (B,), in the units of ``schedule``.
            condition: of B prompts.
            guidance: classifier-free guidance scale (one batched call); None takes ``default_guidance``; 1.0 is the
                conditional model alone. A number or (B,).
            unconditional_gradient: see `guidance.guided_output`.

        Raises:
            ValueError: shapes, lengths or times that do not fit. TypeError: ``x`` is not floating point.
        """
        output = self.output(x, t, condition, guidance, unconditional_gradient=unconditional_gradient)
        return Prediction(x, torch.as_tensor(t), output, self.prediction_kind, self.schedule)

    def check(self, x: Tensor, condition: Condition) -> None:
        """Raises where samples and condition do not fit this model or each other."""
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        if tuple(x.shape[1:]) != tuple(self.latent_shape):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this model takes (batch, {', '.join(map(str, self.latent_shape))})"
            )
        if len(x) != len(condition):
            raise ValueError(f"{len(x)} samples but {len(condition)} prompts in the condition: repeat_interleave it")

    def _batch_times(self, t: Tensor | float, x: Tensor) -> Tensor:
        t = torch.as_tensor(t)
        self.schedule.coefficients(t)  # refuses times outside the schedule
        t = t.to(torch.float64 if x.dtype == torch.float64 else torch.float32).to(x.device)
        if t.ndim == 0:
            return t.expand(len(x))
        if t.shape != (len(x),):
            raise ValueError(f"times of shape {tuple(t.shape)} do not fit {len(x)} samples: give a number or (B,)")
        return t


def _first_tensor(module: nn.Module) -> Any:
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            return tensor
    raise ValueError(f"{type(module).__name__} has neither parameters nor buffers to tell its device and dtype")
