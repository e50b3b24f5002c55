"""Noise schedules: the coefficients a(t), s(t) of ``x_t = a(t) x0 + s(t) eps``, and the sampling times.

Two families, one contract.

==========  =============================================  ==========================  ===================
family      time t                                         coefficients                clean time (`end`)
==========  =============================================  ==========================  ===================
``"vp"``    timestep, 0 .. T-1 (reals between are defined)  a = sqrt(abar), s = sqrt(1 - abar)      -1
``"flow"``  noise level sigma in [0, 1]                    a = 1 - sigma, s = sigma                  0
==========  =============================================  ==========================  ===================

`Schedule.coefficients` is the only source of every conversion in the library (`surveylib.diffusion.predictions`).

Sources: DDPM, arXiv 2006.11239 (linear betas); Improved DDPM, arXiv 2102.09672 (cosine); latent diffusion,
arXiv 2112.10752 (scaled linear); rectified flow, arXiv 2209.03003; the shift of SD3, arXiv 2403.03206, section 5.3.2.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

Family = Literal["vp", "flow"]
VP_SPACINGS = ("leading", "trailing", "linspace")
FLOW_SPACINGS = ("sigma_min", "uniform")
START_SIGNAL = 0.1  # most share of signal, a², that a grid's first time may leave where sampling starts from pure noise
_DERIVED_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "shift_terminal")


def broadcast(coefficient: Tensor | float, x: Tensor) -> Tensor:
    """A coefficient of shape () or (B,) as a tensor that multiplies ``x`` (B, ...): on its device, in its dtype.

    Half-precision ``x`` gives a float32 coefficient: nothing in the library computes a transition in half precision.
    """
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    coefficient = torch.as_tensor(coefficient).to(dtype).to(x.device)  # dtype first: some devices have no float64
    if coefficient.ndim == 0:
        return coefficient
    if coefficient.shape != x.shape[:1]:
        raise ValueError(
            f"a coefficient or time of shape {tuple(coefficient.shape)} does not fit a batch of {x.shape[0]}: "
            "give one number, or one for each sample"
        )
    return coefficient.reshape(-1, *[1] * (x.ndim - 1))


class Schedule:
    """Base class. A schedule maps a time to (a, s) and lists the times that a sampler visits.

    Attributes:
        family: ``"vp"`` or ``"flow"``.
        start: the noisiest time (T-1 for vp, 1.0 for flow).
        end: the clean time, the last entry of every grid (-1 for vp, 0.0 for flow).
        num_train_timesteps: T, also the scale of the number that flow networks are fed (t_model = T sigma).
    """

    family: Family
    start: float
    end: float
    num_train_timesteps: int

    def coefficients(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(a, s) at time ``t`` (any shape), in float64 (float32 where the device has no float64)."""
        raise NotImplementedError

    def grid(self, steps: int) -> Tensor:
        """The ``steps + 1`` times that a sampler with ``steps`` network calls visits, float64, descending.

        The first is the noisiest, the last is `end`. ``zip(grid[:-1], grid[1:])`` gives the (t, s) of each step.
        """
        raise NotImplementedError

    def network_time(self, t: Tensor | float) -> Tensor:
        """The number that the network's time embedding is fed: the timestep (vp), T sigma (flow). float32."""
        raise NotImplementedError

    def snr(self, t: Tensor | float) -> Tensor:
        """Signal-to-noise ratio a²/s² (``inf`` where s = 0)."""
        a, s = self.coefficients(t)
        return a**2 / s**2

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log(a²/s²), natural logarithm."""
        return torch.log(self.snr(t))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """Forward noising: x_t = a(t) x0 + s(t) eps. Shapes (B, ...), ``t`` a number or (B,)."""
        if x0.shape != noise.shape:
            raise ValueError(f"x0 {tuple(x0.shape)} and noise {tuple(noise.shape)} must have the same shape")
        a, s = (broadcast(c, x0) for c in self.coefficients(t))
        return a * x0 + s * noise

    def is_end(self, t: Tensor | float) -> Tensor:
        """True where ``t`` is the clean time (boolean tensor of the shape of ``t``)."""
        return torch.as_tensor(t) <= self.end

    def _checked(self, t: Tensor | float) -> Tensor:
        """``t`` as float64 (float32 on mps). On the CPU, an error if it lies outside [end, start]."""
        t = torch.as_tensor(t)
        t = t.to(torch.float32 if t.device.type == "mps" else torch.float64)
        if t.device.type == "cpu" and t.numel() and not bool(((t >= self.end) & (t <= self.start)).all()):
            unit = "sigma" if self.family == "flow" else "timestep"
            raise ValueError(
                f"time {t.flatten()[:4].tolist()} is outside [{self.end:g}, {self.start:g}] of this "
                f"{self.family} schedule (the time is a {unit} here)"
            )
        return t


class VPSchedule(Schedule):
    """Variance-preserving schedule: a² + s² = 1, from the cumulative products abar_0 .. abar_{T-1}.

    Between integer timesteps abar is interpolated linearly. Time -1 is the clean end; its abar is
    ``final_alpha_cumprod``.

    Args:
        alphas_cumprod: (T,), strictly inside (0, 1] and not increasing; the last may be 0 (zero terminal SNR).
        spacing: how `grid` picks timesteps, as in diffusers: ``"leading"``, ``"trailing"`` or ``"linspace"``.
        steps_offset: added to every timestep of a ``"leading"`` grid (1 for Stable Diffusion).
        final_alpha_cumprod: abar after the last step. 1.0, or abar_0 where diffusers' config says
            ``set_alpha_to_one=False`` (Stable Diffusion).

    Raises:
        ValueError: an unknown spacing, or values outside the ranges above.
    """

    family: Family = "vp"

    def __init__(
        self,
        alphas_cumprod: Tensor | Sequence[float],
        *,
        spacing: str = "leading",
        steps_offset: int = 0,
        final_alpha_cumprod: float = 1.0,
    ) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").clone()
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"alphas_cumprod must be a list of at least two numbers, got shape {tuple(table.shape)}")
        if not (table[:-1] > 0).all() or not (0 <= table[-1] <= table[0] <= 1) or (table.diff() > 0).any():
            raise ValueError("alphas_cumprod must fall from at most 1 to at least 0; were these the betas instead?")
        if spacing not in VP_SPACINGS:
            raise ValueError(f"unknown timestep spacing {spacing!r}: choose one of {', '.join(VP_SPACINGS)}")
        self.alphas_cumprod = table
        self.spacing = spacing
        self.steps_offset = int(steps_offset)
        self.final_alpha_cumprod = float(final_alpha_cumprod)
        self.num_train_timesteps = len(table)
        self.start = float(len(table) - 1)
        self.end = -1.0
        self._padded = torch.cat([torch.tensor([self.final_alpha_cumprod], dtype=torch.float64), table])  # index t + 1

    def __repr__(self) -> str:
        return f"VPSchedule(T={self.num_train_timesteps}, spacing={self.spacing!r}, steps_offset={self.steps_offset})"

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float], **options: Any) -> VPSchedule:
        """From the T variances beta_t in [0, 1]: abar_t = prod_{i <= t} (1 - beta_i)."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not ((betas >= 0) & (betas <= 1)).all():
            raise ValueError("betas must be a list of numbers in [0, 1]")
        return cls(torch.cumprod(1 - betas, 0), **options)

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options: Any) -> VPSchedule:
        """Betas linear in t (DDPM, arXiv 2006.11239, section 4)."""
        return cls._named("linear", T, options, beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, **options: Any):
        """Square roots of the betas linear in t (Stable Diffusion; the defaults are its constants)."""
        return cls._named("scaled_linear", T, options, beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def cosine(cls, T: int = 1000, **options: Any) -> VPSchedule:
        """abar a squared cosine of t, betas capped at 0.999 (Improved DDPM, arXiv 2102.09672, eq. 17)."""
        return cls._named("squaredcos_cap_v2", T, options)

    @classmethod
    def _named(cls, name: str, T: int, options: dict[str, Any], **betas: float) -> VPSchedule:
        scheduler = DDIMScheduler(num_train_timesteps=T, beta_schedule=name, **betas)
        return cls(scheduler.alphas_cumprod, **options)

    def coefficients(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(sqrt(abar), sqrt(1 - abar)) at timestep ``t`` in [-1, T-1]."""
        t = self._checked(t)
        table = self._padded.to(t.dtype).to(t.device)
        position = (t + 1).clamp(0, self.num_train_timesteps)
        below = position.floor().long()
        above = (below + 1).clamp(max=self.num_train_timesteps)
        abar = torch.lerp(table[below], table[above], position - below)
        return abar.sqrt(), (1 - abar).sqrt()

    def grid(self, steps: int) -> Tensor:
        """The timesteps of diffusers' DDIMScheduler for this spacing, then -1. float64, (steps + 1,).

        Each step goes to the next entry of the grid. diffusers' DDIMScheduler goes to ``t - T // steps`` instead, which
        is the same where ``steps`` divides T, and with ``"leading"`` always; elsewhere it steps to a time it then does
        not start from (its DDPMScheduler follows the grid, as here).

        Warns, once, of a ``"leading"`` grid that starts where more than `START_SIGNAL` of the variance is still signal:
        samplers start from pure noise, and what is missing is missing in the picture (Lin et al., arXiv 2305.08891).
        Stable Diffusion's schedule leaves 0.8 % at 20 steps, 1.4 % at 10, 5.6 % at 4, and 10.4 % at 3, where an exact
        score ends with the mean of the data a quarter too small; from 3 steps down it is warned of.
        """
        T = self.num_train_timesteps
        if not 1 <= steps <= T:
            raise ValueError(f"steps must be between 1 and {T} (the timesteps of this schedule), got {steps}")
        if self.spacing == "linspace":
            times = np.linspace(0, T - 1, steps).round()[::-1]
        elif self.spacing == "leading":
            times = (np.arange(steps) * (T // steps))[::-1] + self.steps_offset
        else:
            times = np.round(np.arange(T, 0, -T / steps)) - 1
        if self.spacing == "leading" and self.alphas_cumprod[-1] <= START_SIGNAL < self._signal(steps):
            self._warn_of_start(steps)
        return torch.tensor([*times.tolist(), self.end], dtype=torch.float64)

    def network_time(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(t).to(torch.float32)

    def _leading_start(self, steps: int) -> int:
        """First timestep of a leading grid."""
        T = self.num_train_timesteps
        return min((steps - 1) * (T // steps) + self.steps_offset, T - 1)

    def _signal(self, steps: int) -> float:
        """Share of the variance that is signal, a², where a leading grid starts."""
        return float(self.alphas_cumprod[self._leading_start(steps)])

    def _warn_of_start(self, steps: int) -> None:
        first, last = self._leading_start(steps), self.num_train_timesteps - 1
        enough = next((n for n in range(steps, last + 2) if self._signal(n) <= START_SIGNAL), last + 1)
        _warn_once(
            f"a leading grid of {steps} step{'s' if steps > 1 else ''} starts at timestep {first} of {last}, where "
            f"{100 * self._signal(steps):.1f} % of the variance is still signal, but pictures are drawn from pure noise"
            f" there; up to {100 * START_SIGNAL:.0f} % does little harm. Take at least {enough} steps, or set "
            "timestep_spacing=\"trailing\" in the scheduler's configuration"
        )


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=4)


class FlowSchedule(Schedule):
    """Flow matching on straight lines: a = 1 - sigma, s = sigma, velocity v = eps - x0.

    The shift bends the sampling times towards noise, sigma <- c sigma / (1 + (c - 1) sigma); the coefficients do not
    change. FLUX's "dynamic shifting" with exponent mu is the shift c = exp(mu): use ``with_shift(math.exp(mu))``.

    Args:
        shift: c > 0 (1: none; 3 for SD3).
        num_train_timesteps: T; the network is fed T sigma.
        spacing: unshifted times. ``"sigma_min"``: evenly from 1 to the smallest training sigma, as diffusers'
            FlowMatchEulerDiscreteScheduler and the SD3 pipeline do. ``"uniform"``: evenly 1 .. 1/n, as the FLUX
            pipeline does; the step sizes then go to zero together, which convergence in the steps needs.
        sigma_min: end of the ``"sigma_min"`` grid before the shift; default: the shifted 1/T, as in diffusers.

    Raises:
        ValueError: shift <= 0 or an unknown spacing.
    """

    family: Family = "flow"
    start = 1.0
    end = 0.0

    def __init__(
        self,
        shift: float = 1.0,
        *,
        num_train_timesteps: int = 1000,
        spacing: str = "sigma_min",
        sigma_min: float | None = None,
    ) -> None:
        if not shift > 0:
            raise ValueError(f"shift must be positive, got {shift}")
        if spacing not in FLOW_SPACINGS:
            raise ValueError(f"unknown sigma spacing {spacing!r}: choose one of {', '.join(FLOW_SPACINGS)}")
        self.shift = float(shift)
        self.num_train_timesteps = int(num_train_timesteps)
        self.spacing = spacing
        shifted = shift_sigma(1 / self.num_train_timesteps, self.shift)
        self.sigma_min = shifted if sigma_min is None else float(sigma_min)

    def __repr__(self) -> str:
        return f"FlowSchedule(shift={self.shift:g}, spacing={self.spacing!r}, T={self.num_train_timesteps})"

    def with_shift(self, shift: float) -> FlowSchedule:
        """The same schedule with another shift (``math.exp(mu)`` for diffusers' dynamic shifting)."""
        return FlowSchedule(
            shift, num_train_timesteps=self.num_train_timesteps, spacing=self.spacing, sigma_min=self.sigma_min
        )

    def coefficients(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(1 - sigma, sigma) at noise level ``t`` = sigma in [0, 1]."""
        sigma = self._checked(t)
        return 1 - sigma, sigma

    def grid(self, steps: int) -> Tensor:
        """The shifted sigmas from 1 down, then 0. float64, (steps + 1,)."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        last = 1 / steps if self.spacing == "uniform" else self.sigma_min
        sigmas = shift_sigma(torch.linspace(1, last, steps, dtype=torch.float64), self.shift)
        return torch.cat([sigmas, sigmas.new_zeros(1)])

    def network_time(self, t: Tensor | float) -> Tensor:
        return (torch.as_tensor(t) * self.num_train_timesteps).to(torch.float32)


def shift_sigma(sigma: Any, shift: float) -> Any:
    """sigma <- c sigma / (1 + (c - 1) sigma) for numbers, arrays and tensors (arXiv 2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


SCHEDULES = {
    "linear": VPSchedule.linear,
    "scaled_linear": VPSchedule.scaled_linear,
    "cosine": VPSchedule.cosine,
    "flow": FlowSchedule,
}


def make_schedule(name: str, **options: Any) -> Schedule:
    """A schedule by name: ``linear``, ``scaled_linear``, ``cosine`` (vp) or ``flow``; options as of the class.

    Raises:
        ValueError: an unknown name; the error lists what exists.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](**options)


def schedule_from_diffusers(scheduler: Any, *, shift: float | None = None, spacing: str | None = None) -> Schedule:
    """The schedule that a diffusers scheduler, or its config, describes.

    Any scheduler over betas (DDPM, DDIM, PNDM, Euler, DPM-Solver, LCM, ...) gives a `VPSchedule`; the FlowMatch ones
    give a `FlowSchedule`. Grids that are derived from something else (Karras, exponential, beta sigmas) are refused.

    Args:
        scheduler: a diffusers scheduler, or its config (a mapping).
        shift: overrides the config's shift. Needed where the config says ``use_dynamic_shifting``: exp(mu).
        spacing: overrides the config's spacing; flow configs have none: ``"sigma_min"`` unless given (the FLUX
            pipeline wants ``"uniform"``).

    Raises:
        ValueError: a config that neither lists betas nor is flow matching, or one with a derived grid.
    """
    config = dict(scheduler if isinstance(scheduler, Mapping) else scheduler.config)
    name = config.get("_class_name") or type(scheduler).__name__
    for key in _DERIVED_GRIDS:
        if config.get(key):
            raise ValueError(f"{name} with {key}={config[key]} is not supported: set it to its default first")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return _flow_from_config(name, config, shift, spacing or "sigma_min")
    if "beta_start" not in config and config.get("trained_betas") is None:
        raise ValueError(f"{name} lists no betas and is not flow matching: give a DDIM, DDPM or FlowMatch scheduler")
    known = inspect.signature(DDIMScheduler.__init__).parameters
    ddim = DDIMScheduler(**{key: value for key, value in config.items() if key in known})
    return VPSchedule(
        ddim.alphas_cumprod,
        spacing=spacing or config.get("timestep_spacing", "leading"),
        steps_offset=config.get("steps_offset", 0),
        final_alpha_cumprod=float(ddim.final_alpha_cumprod),
    )


def _flow_from_config(name: str, config: dict[str, Any], shift: float | None, spacing: str) -> FlowSchedule:
    if shift is None and config.get("use_dynamic_shifting"):
        raise ValueError(f"{name} uses dynamic shifting: give shift=math.exp(mu) for the picture size you want")
    base = config.get("shift", config.get("flow_shift", 1.0))
    T = config.get("num_train_timesteps", 1000)
    # diffusers computes sigma_min once, from the configured shift; under dynamic shifting it stays unshifted
    sigma_min = 1 / T if config.get("use_dynamic_shifting") else shift_sigma(1 / T, base)
    chosen = base if shift is None else shift
    return FlowSchedule(chosen, num_train_timesteps=T, sigma_min=sigma_min, spacing=spacing)
