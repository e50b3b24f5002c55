"""The one contract of everything that aligns: `Technique` changes a model's weights, `Sampler` only how it is sampled.

A technique says two things. ``collect`` gathers what to learn from (pictures and rewards, preference pairs, nothing but
prompts), ``loss`` says how wrong the model is on items of it, one number an item. Everything else is the engine's:
which prompts, which ranks, how items are cut into memory, optimiser, checkpoints, logging (`surveylib.alignment`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.rewards.contract import Reward
from surveylib.runs.ledger import Ledger
from surveylib.runs.randomness import generators, permutation, seed_of
from surveylib.techniques.checks import TechniqueError, check_all, warn_of_clip


class PreferenceData(Protocol):
    """Recorded feedback: n rows, each a prompt, k pictures and what was said of them.

    kind: "pairs" (k = 2, label 0 or 1: which of the two was preferred), "rankings" (labels are gains, higher is better)
    or "binary" (k = 1, label 1 for liked and 0 for disliked).
    """

    kind: str

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Feedback:
        """The given rows."""
        ...


@dataclass(frozen=True, eq=False)
class Feedback:
    """Rows of a `PreferenceData`.

    prompts: n texts. samples: (n, k, 3, H, W) pictures in [0, 1], or (n, k, d) points in the Gaussian world.
    labels: (n,) for pairs (0 or 1: the preferred one) and binary (1 liked, 0 not), (n, k) gains for rankings.
    """

    prompts: list[str]
    samples: Tensor
    labels: Tensor


Signal = Reward | PreferenceData


@dataclass(frozen=True, eq=False)
class Draw:
    """What one epoch asks of one process: which samples, with which noise.

    Attributes:
        seed, epoch: name the noise.
        prompts: n texts, one a sample of this process; empty where recorded feedback is the source.
        groups: (n,) number of the prompt within the epoch: samples with the same number share a prompt.
        indices: (n,) global number of the sample within the epoch, over all processes; increasing.
        total: samples of the epoch over all processes.
        batch: samples that fit in memory in one rollout.
        gather: concatenates a tensor over processes in the order of `indices`; the identity for one process.
        all_prompts: the prompts of all samples of the epoch, over all processes (empty for recorded feedback).
    """

    seed: int
    epoch: int
    prompts: list[str]
    groups: Tensor
    indices: Tensor
    total: int
    batch: int = 64
    gather: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)
    all_prompts: list[str] = field(default_factory=list)

    @staticmethod
    def of(prompts: Sequence[str], *, per_prompt: int = 1, seed: int = 0, epoch: int = 0, batch: int = 64) -> Draw:
        """A draw of one process: each of `prompts` `per_prompt` times in a row."""
        texts = [prompt for prompt in prompts for _ in range(per_prompt)]
        indices = torch.arange(len(texts))
        return Draw(seed, epoch, texts, indices // per_prompt, indices, len(texts), batch, all_prompts=texts)

    def __len__(self) -> int:
        return len(self.indices)

    def generators(self, stream: str = "rollout") -> list[torch.Generator]:
        """One generator a sample, a function of (seed, epoch, global index, stream)."""
        return generators(self.indices, self.seed, self.epoch, stream)

    def group_generators(self, stream: str = "start") -> list[torch.Generator]:
        """One generator a sample, the same for all samples of a prompt: shared initial noise."""
        return generators(self.groups, self.seed, self.epoch, stream)

    def rows(self, n: int) -> Tensor:
        """Rows of recorded feedback for these samples: passes over n rows in shuffled order."""
        if n < 1:
            raise TechniqueError("the preference data are empty: nothing to learn from")
        places = self.epoch * self.total + self.indices
        return torch.stack([permutation(n, self.seed, int(place) // n, "rows")[place % n] for place in places])

    @property
    def local(self) -> Tensor:
        """Where this process's samples stand in what `gather` returns."""
        return self.indices


@dataclass(frozen=True, eq=False)
class Batch:
    """What was collected. It can be cut along samples and along steps: an item is one (sample, step).

    Attributes:
        condition: N rows, one a sample.
        samples: name -> (N, ...), one entry a sample.
        steps: name -> (N, T, ...), one entry a trained step of a sample; empty for methods without steps (T = 1). Views
            of one path tensor are welcome: nothing is copied before items are taken.
        metrics: numbers of the collection for the log (mean reward ...).
        pictures: (N, 3, H, W) for the log, or None.
    """

    condition: Condition
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    steps: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: Tensor | None = None

    def __post_init__(self) -> None:
        n, t = len(self.condition), self.n_steps
        for name, value in self.samples.items():
            if len(value) != n:
                raise TechniqueError(f"batch field {name!r} has {len(value)} rows for {n} samples")
        for name, value in self.steps.items():
            if value.shape[:2] != (n, t):
                raise TechniqueError(f"batch field {name!r} has shape {tuple(value.shape)}; ({n}, {t}, ...) is needed")

    @property
    def n_samples(self) -> int:
        """N."""
        return len(self.condition)

    @property
    def n_steps(self) -> int:
        """T."""
        return next(iter(self.steps.values())).shape[1] if self.steps else 1

    def items(self, rows: Tensor, steps: Tensor, keys: Tensor | None = None) -> Items:
        """Items (rows[i], steps[i]); `keys` names their noise."""
        values = {name: value[rows.to(value.device)] for name, value in self.samples.items()}
        values |= {name: value[rows.to(value.device), steps.to(value.device)] for name, value in self.steps.items()}
        return Items(self.condition[rows], values, torch.zeros_like(rows) if keys is None else keys)

    def all_items(self, seed: int = 0) -> Items:
        """Every item, samples first (sample 0 step 0, sample 0 step 1, ...)."""
        n, t = self.n_samples, self.n_steps
        rows = torch.arange(n).repeat_interleave(t)
        steps = torch.arange(t).repeat(n)
        return self.items(rows, steps, torch.tensor([seed_of(seed, i) for i in range(n * t)]))


@dataclass(frozen=True, eq=False)
class Items:
    """M items of a batch, with what a loss needs.

    Attributes:
        condition: M rows. values: name -> (M, ...); `items["x"]` is short for `items.values["x"]`.
        keys: (M,) int64 names of the items' noise, a function of (seed, epoch, pass, global sample, step): pass them to
            `surveylib.runs.randomness.normal(keys, shape, "stream")`.
    """

    condition: Condition
    values: Mapping[str, Tensor]
    keys: Tensor

    def __len__(self) -> int:
        return len(self.condition)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]


@dataclass(frozen=True)
class Training:
    """How the engine trains: the settings that no rule depends on.

    Attributes:
        epochs: rounds of collect and update.
        samples: samples collected an epoch, all processes together (pictures; pairs or rankings of recorded data).
        samples_per_prompt: samples of each prompt in an epoch (the group of a group method).
        updates: optimiser steps that one pass over the samples is cut into. passes: over the collected samples.
        lr, betas, weight_decay, eps: of AdamW. warmup: optimiser steps of linear warm-up. clip_norm: of the gradient.
        lora_rank, lora_alpha, lora_targets: None as rank trains all weights of the network.
        ema: decay of the averaged weights, 0 for none; ema_every: optimiser steps between averagings.
        micro_batch: items in one loss call. sample_batch: samples in one rollout.
        autocast: None, "bfloat16", "float16", or "auto" (bfloat16 where the hardware has units for it): networks inside
            losses and rollouts run in it; log-probabilities, losses and optimiser stay in float32. Not for methods
            that compare log-probabilities with a clip of 1e-4: bfloat16 alone moves them about as far.
    """

    epochs: int = 100
    samples: int = 64
    samples_per_prompt: int = 1
    updates: int = 1
    passes: int = 1
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    eps: float = 1e-8
    warmup: int = 0
    clip_norm: float = 1.0
    lora_rank: int | None = 16
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] | None = None
    ema: float = 0.0
    ema_every: int = 1
    micro_batch: int = 64
    sample_batch: int = 64
    autocast: str | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "samples_per_prompt", "updates", "passes", "micro_batch", "sample_batch", "ema_every"):
            if getattr(self, name) < 1:
                raise TechniqueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.epochs < 0 or self.lr < 0:
            raise TechniqueError(f"epochs={self.epochs} and lr={self.lr} must not be negative")
        if self.samples % self.samples_per_prompt:
            raise TechniqueError(f"{self.samples} samples do not divide into groups of {self.samples_per_prompt}; "
                                 "choose samples as a multiple of samples_per_prompt")
        if self.updates > self.samples:
            raise TechniqueError(f"{self.samples} samples cannot be cut into {self.updates} updates; lower updates")
        if self.autocast not in (None, "bfloat16", "float16", "auto"):
            raise TechniqueError(f"autocast={self.autocast!r}: choose None, 'auto', 'bfloat16' or 'float16'")
        check_all(self, "training:")


@dataclass(frozen=True)
class Preset:
    """A technique's settings at one scale.

    config: of the technique. training: of the engine. model: shipped or full-scale name. reward: name of the reward, or
    of the preference data. source: where the constants come from. cost: expected cost in words ("about 3 minutes on two
    cores").
    """

    config: Any
    training: Training
    model: str
    reward: str
    source: str
    cost: str

    def override(self, config: Mapping[str, Any] | None = None, **training: Any) -> Preset:
        """The preset with fields of the configuration and of the training changed."""
        return replace(self, config=replace(self.config, **(config or {})), training=replace(self.training, **training))


class Technique:
    """Base class of all fine-tuning techniques. A subclass sets the class attributes, `collect` and `loss`.

    Class attributes:
        name: as in the catalog (key of its card).
        needs: out of `surveylib.catalog.card.NEEDS`.
        families: kinds of schedule it works with, out of ("vp", "flow").
        Config: its frozen dataclass. PRESETS: scale -> `Preset` with "toy", "single" and "full".
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("reward",)
    families: ClassVar[tuple[str, ...]] = ("vp", "flow")
    Config: ClassVar[type]
    PRESETS: ClassVar[Mapping[str, Preset]] = {}

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        check_all(self.config, f"{self.name}:")

    def check(self, model: DiffusionModel, signal: Signal, training: Training) -> None:
        """Refuses a model, a signal or settings that do not fit. Subclasses add to it.

        Raises:
            TechniqueError: says what was given, what is needed and what to do.
        """
        if model.schedule.family not in self.families:
            raise TechniqueError(f"{self.name} is written for {' and '.join(self.families)} schedules; this model has "
                                 f"a {model.schedule.family} schedule")
        wants_reward = "reward" in self.needs
        if wants_reward and not isinstance(signal, Reward):
            raise TechniqueError(f"{self.name} learns from a reward; got {type(signal).__name__}. "
                                 "load_reward(name) gives one, FunctionReward wraps a function")
        if "gradient" in self.needs and isinstance(signal, Reward) and not signal.differentiable:
            raise TechniqueError(f"{self.name} follows the reward's gradient and {signal.name!r} has none; choose a "
                                 "differentiable reward, or a technique that needs values only (ddpo, rwr, raft)")
        kinds = {"pairs", "rankings", "binary"} & set(self.needs)
        if not wants_reward and kinds and getattr(signal, "kind", None) not in kinds:
            raise TechniqueError(f"{self.name} learns from {' or '.join(sorted(kinds))}; got "
                                 f"{getattr(signal, 'kind', type(signal).__name__)}")
        warn_of_clip(self.config, math.prod(model.latent_shape))

    def collect(self, model: DiffusionModel, draw: Draw, signal: Signal) -> Batch:
        """What to learn from in this epoch, computed without gradient with the present weights."""
        raise NotImplementedError

    def shared(self, model: DiffusionModel, items: Items, signal: Signal) -> dict[str, Tensor]:
        """Numbers (M,) whose mean over the whole update, all micro-batches and processes, the loss needs."""
        return {}

    def loss(
        self, model: DiffusionModel, items: Items, signal: Signal, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (M,) with gradient, and metrics, each (M,) or a number, without. The engine averages both over items.

        Args:
            means: of what `shared` returned.
        """
        raise NotImplementedError

    def after_update(self, model: DiffusionModel) -> None:
        """Called after every optimiser step (reference refreshes, trackers)."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: trackers, value networks, their optimisers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What a sampler gives back.

    Attributes:
        images: (B, 3, H, W) in [0, 1], one a prompt ((B, d) in the Gaussian world). latents: (B, *latent_shape).
        rewards: (B,) reward of the pictures, as the sampler saw it.
        trace: one dict a stage, for figures (best reward so far, effective sample size ...).
        ledger: what it cost, all prompts together.
    """

    images: Tensor
    latents: Tensor
    rewards: Tensor
    trace: list[dict[str, Any]]
    ledger: Ledger


class Sampler:
    """Base class of the test-time techniques: the weights stay, the sampling changes.

    Class attributes as in `Technique`; `needs` may hold "gradient" (of the reward).
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("reward",)
    families: ClassVar[tuple[str, ...]] = ("vp", "flow")
    Config: ClassVar[type]
    PRESETS: ClassVar[Mapping[str, Preset]] = {}

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        check_all(self.config, f"{self.name}:")

    def check(self, model: DiffusionModel, reward: Reward) -> None:
        """As `Technique.check`, for a sampler."""
        Technique.check(self, model, reward, Training())  # type: ignore[arg-type]

    def sample(self, model: DiffusionModel, prompts: Sequence[str], reward: Reward, *, seed: int = 0) -> Samples:
        """One picture a prompt.

        Randomness is a function of (seed, number of the prompt, particle or candidate, step): use
        `surveylib.runs.randomness`. With the reward constant, or its strength zero, the picture is the base sampler's
        for the same seed.
        """
        raise NotImplementedError
