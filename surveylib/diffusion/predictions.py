"""What a network says about x_t, in every parametrisation. The one place that converts between them.

With ``x_t = a x0 + s eps`` any one of these fixes all others:

=============  =================  ==========================================================================
kind           symbol             meaning
=============  =================  ==========================================================================
``epsilon``    eps                the noise (DDPM, SD1.5, SDXL)
``x0``         x0                 the clean sample, Tweedie's posterior mean (diffusers calls it "sample")
``v``          v = a eps - s x0   VP v-prediction (arXiv 2202.00512, appendix D)
``velocity``   eps - x0           flow matching (SD3, FLUX)
``score``      -eps / s           gradient of log p_t(x_t)
=============  =================  ==========================================================================

Every conversion is linear in the network's output, so it commutes with classifier-free guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from surveylib.diffusion.schedules import Schedule, broadcast

KINDS = ("epsilon", "x0", "v", "velocity", "score")
FROM_DIFFUSERS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}


def check_kind(kind: str) -> str:
    """``kind`` itself, or a ValueError that lists the kinds."""
    if kind not in KINDS:
        raise ValueError(f"unknown prediction kind {kind!r}: choose one of {', '.join(KINDS)}")
    return kind


def kind_of_scheduler(scheduler: Any) -> str:
    """The prediction kind that a diffusers scheduler expects of its network (``velocity`` for FlowMatch schedulers)."""
    if type(scheduler).__name__.startswith("FlowMatch"):
        return "velocity"
    name = scheduler.config.get("prediction_type", "epsilon")
    if name not in FROM_DIFFUSERS:
        raise ValueError(f"unknown prediction_type {name!r} in the scheduler: known are {', '.join(FROM_DIFFUSERS)}")
    return FROM_DIFFUSERS[name]


def to_x0_epsilon(output: Tensor, kind: str, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, eps) from a network output of the given kind. ``a`` and ``s`` broadcast against ``x``.

    ``epsilon`` and ``score`` need a > 0, ``x0`` needs s > 0; ``v`` and ``velocity`` are defined at both ends.
    """
    if kind == "epsilon":
        return (x - s * output) / a, output
    if kind == "x0":
        return output, (x - a * output) / s
    if kind == "v":
        norm = a**2 + s**2  # 1 for VP
        return (a * x - s * output) / norm, (s * x + a * output) / norm
    if kind == "velocity":
        norm = a + s  # 1 for flow
        return (x - s * output) / norm, (x + a * output) / norm
    check_kind(kind)
    epsilon = -s * output
    return (x - s * epsilon) / a, epsilon


def from_x0_epsilon(x0: Tensor, epsilon: Tensor, kind: str, a: Tensor, s: Tensor) -> Tensor:
    """The inverse of `to_x0_epsilon`: the target or output of the given kind. ``score`` needs s > 0."""
    if kind == "epsilon":
        return epsilon
    if kind == "x0":
        return x0
    if kind == "v":
        return a * epsilon - s * x0
    if kind == "velocity":
        return epsilon - x0
    check_kind(kind)
    return -epsilon / s


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network output at (x, t), readable in every parametrisation.

    Attributes:
        x: noisy sample x_t, (B, ...), float32 or float64 (half precision is raised to float32).
        t: its time, shape () or (B,), in the units of ``schedule``.
        output: raw (guided) network output, the shape of ``x``.
        kind: parametrisation of ``output``, one of `KINDS`.
        schedule: where a and s come from.

    Read-only properties: ``a``, ``s`` (broadcastable against ``x``), ``epsilon``, ``x0``, ``v`` (= a eps - s x0),
    ``velocity`` (= eps - x0), ``score`` (= -eps / s). All differentiable in ``x`` and ``output``.

    Raises:
        ValueError: unknown kind, or shapes of ``x`` and ``output`` that differ.
    """

    x: Tensor
    t: Tensor
    output: Tensor
    kind: str
    schedule: Schedule

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if self.x.shape != self.output.shape:
            raise ValueError(
                f"network output {tuple(self.output.shape)} and x {tuple(self.x.shape)} differ in shape; "
                "a network that also predicts variances must drop them first"
            )
        for name in ("x", "output"):
            value = getattr(self, name)
            if value.dtype in (torch.float16, torch.bfloat16):
                object.__setattr__(self, name, value.float())
        object.__setattr__(self, "t", torch.as_tensor(self.t))

    @cached_property
    def _coefficients(self) -> tuple[Tensor, Tensor]:
        a, s = self.schedule.coefficients(self.t)
        return broadcast(a, self.x), broadcast(s, self.x)

    @property
    def a(self) -> Tensor:
        """Signal coefficient a(t), shape () or (B, 1, ...)."""
        return self._coefficients[0]

    @property
    def s(self) -> Tensor:
        """Noise coefficient s(t), shape () or (B, 1, ...)."""
        return self._coefficients[1]

    @cached_property
    def _x0_epsilon(self) -> tuple[Tensor, Tensor]:
        return to_x0_epsilon(self.output, self.kind, self.x, self.a, self.s)

    @property
    def x0(self) -> Tensor:
        """Posterior mean of the clean sample (Tweedie)."""
        return self._x0_epsilon[0]

    @property
    def epsilon(self) -> Tensor:
        """Predicted noise."""
        return self._x0_epsilon[1]

    @property
    def velocity(self) -> Tensor:
        """Flow velocity eps - x0."""
        return self.in_kind("velocity")

    @property
    def v(self) -> Tensor:
        """VP v-prediction a eps - s x0. Not the flow velocity."""
        return self.in_kind("v")

    @property
    def score(self) -> Tensor:
        """Gradient of log p_t at x, -eps / s."""
        return self.in_kind("score")

    def in_kind(self, kind: str) -> Tensor:
        """The prediction in another parametrisation; exactly ``output`` where the kinds agree."""
        if kind == self.kind:
            return self.output
        return from_x0_epsilon(self.x0, self.epsilon, kind, self.a, self.s)

    def with_x0(self, x0: Tensor) -> Prediction:
        """The prediction at the same (x, t) with another clean sample (clipping, guidance on x0). Needs s > 0."""
        return replace(self, output=x0, kind="x0")

    def with_epsilon(self, epsilon: Tensor) -> Prediction:
        """The prediction at the same (x, t) with another noise (guidance by a gradient). Needs a > 0."""
        return replace(self, output=epsilon, kind="epsilon")

    def detach(self) -> Prediction:
        """The same prediction, cut from the graph."""
        return replace(self, x=self.x.detach(), output=self.output.detach())

    def __getitem__(self, index: Any) -> Prediction:
        """Samples of the batch, by slice, mask or index tensor."""
        t = self.t[index] if self.t.ndim else self.t
        return replace(self, x=self.x[index], output=self.output[index], t=t)
