"""Training a reward model: a generator of steps, resumable to the bit, the same code from `shapes-clip` to CLIP-H.

    for row in train_reward(model, pairs, PRESETS["toy"], out="runs/reward"):
        ...                              # row: step, loss, accuracy, norm, seconds
    reward = load_learned("runs/reward/model")

Device, distribution and mixed precision are accelerate's (`accelerate launch`). What is frozen runs once and is cached
where it fits into `cache_bytes`. Everything random is a function of (seed, step, process).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from surveylib.feedback.pairs import PairData
from surveylib.rewards.learned.aesthetic import RatingData
from surveylib.rewards.learned.evaluate import correctness, margins
from surveylib.rewards.learned.model import evaluating
from surveylib.rewards.learned.pickscore import example_weights
from surveylib.rewards.learned.store import save_learned
from surveylib.runs.checkpoint import load_checkpoint, save_checkpoint

CHUNK = 128  # pictures prepared at once
TRUNKS = ("trunk.", "features.trunk.", "features.own.")  # weights that learn at `lr`; all others at `head_lr`


@dataclass(frozen=True)
class RewardConfig:
    """How a reward model is trained.

    steps: optimiser steps. batch: pairs a step, over all processes. micro: pairs a forward pass. lr: of the trunk's
    unlocked layers. head_lr: of the head. warmup: steps of linear warm-up. schedule: "constant" or "cosine" (to zero)
    after it. betas, decay: of AdamW (decay on matrices only). clip: gradient norm. seed: data order, dropout, noise.
    every: steps between checkpoints. mixed_precision: "no", "bf16" or "fp16". example_weights: weigh each pair by 1 /
    number of pairs of its prompt. standardise: shift and scale the finished reward to mean 0 and deviation 1 on the
    training pictures. cache_bytes: frozen features are kept in memory up to this size. loss_limit: a larger loss (nats)
    counts as divergence; chance is log 2.
    """

    steps: int
    batch: int
    lr: float
    head_lr: float
    micro: int = 128
    warmup: int = 20
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    every: int = 50
    mixed_precision: str = "no"
    example_weights: bool = True
    standardise: bool = False
    cache_bytes: int = 2**30
    loss_limit: float = 50.0

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "micro", "every", "lr", "head_lr", "clip", "loss_limit")
        wrong = [name for name in positive if not getattr(self, name) > 0]
        if wrong:
            raise ValueError(f"{wrong[0]}={getattr(self, wrong[0])} must be positive")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"unknown schedule {self.schedule!r}; known: constant, cosine")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"unknown mixed_precision {self.mixed_precision!r}; known: no, bf16, fp16")
        object.__setattr__(self, "betas", tuple(self.betas))


PRESETS = {
    # ours: two CPU cores, under three minutes
    "toy": RewardConfig(steps=400, batch=64, lr=5e-4, head_lr=1e-3, decay=0.05),
    "toy-scalar": RewardConfig(steps=400, batch=64, lr=5e-4, head_lr=1e-3, decay=0.05, standardise=True),
    # PickScore, official code: AdamW at its defaults, lr 1e-6, 500 steps warm-up then constant, bf16, 16 pairs on each
    # of 8 GPUs, 4000 steps. There everything is trained; here the embedding layers stay frozen: unlock=(32, 24).
    "pickscore-full": RewardConfig(
        steps=4000, batch=128, micro=16, lr=1e-6, head_lr=1e-6, warmup=500, schedule="constant", every=100,
        mixed_precision="bf16", cache_bytes=0,
    ),
    # ImageReward, official code: Adam, lr 1e-5, cosine, 64 pairs a step (4 GPUs x 4 x accumulation 4), 70 % of the
    # layers fixed: unlock=(10, 7) of CLIP-H. There 10 epochs; the steps are those of 137k pairs.
    "imagereward-full": RewardConfig(
        steps=21_400, batch=64, micro=4, lr=1e-5, head_lr=1e-5, warmup=0, decay=0.0, every=500, mixed_precision="bf16",
        example_weights=False, standardise=True, cache_bytes=0,
    ),
    # LAION aesthetic predictor v2, official code: Adam 1e-3, batch 256, frozen trunk (unlock=(0, 0)); 50 epochs there,
    # the steps are ours.
    "aesthetic-full": RewardConfig(
        steps=20_000, batch=256, micro=256, lr=1e-3, head_lr=1e-3, warmup=0, schedule="constant", decay=0.0, every=1000,
        cache_bytes=2**35,
    ),
    # HPS v2, official script: lr 3.3e-6, weight decay 0.35, 500 steps warm-up, 16 pairs on each of 8 GPUs,
    # unlock=(20, 11). The number of steps is ours.
    "hpsv2-full": RewardConfig(
        steps=4000, batch=128, micro=16, lr=3.3e-6, head_lr=3.3e-6, warmup=500, decay=0.35, every=100,
        mixed_precision="bf16", cache_bytes=0,
    ),
    # LRM, official code: lr 1e-5, 4000 steps; batch and warm-up as PickScore (ours).
    "lrm-full": RewardConfig(
        steps=4000, batch=128, micro=16, lr=1e-5, head_lr=1e-5, warmup=500, schedule="constant", every=100,
        mixed_precision="bf16", cache_bytes=0,
    ),
}  # fmt: skip


class RewardTrainingDiverged(RuntimeError):
    """The loss or a weight is no longer finite, or the loss passed its limit. The last checkpoint is still good."""


class Prepared:
    """The frozen part of pictures and prompts, computed once where it fits into `cache_bytes`, else on demand."""

    def __init__(self, model: nn.Module, data: PairData | RatingData, cache_bytes: int, device: torch.device):
        self.model, self.data, self.device = model, data, device
        self.unique = sorted(set(data.prompts))
        number = {text: i for i, text in enumerate(self.unique)}
        self.text_of = torch.tensor([number[text] for text in data.prompts])
        self.cached = self._size() <= cache_bytes
        if self.cached:
            rows = torch.arange(len(data.images)).split(CHUNK)
            self.kept_images = torch.cat([self._images(part) for part in rows])
            parts = [self._texts(part) for part in torch.arange(len(self.unique)).split(CHUNK)]
            self.kept_texts = tuple(torch.cat(column) for column in zip(*parts))

    def _size(self) -> int:
        image, texts = self._images(torch.zeros(1, dtype=torch.long)), self._texts(torch.zeros(1, dtype=torch.long))
        one_text = sum(t.numel() * t.element_size() for t in texts)
        return len(self.data.images) * image.numel() * image.element_size() + len(self.unique) * one_text

    @torch.no_grad()
    def _images(self, rows: Tensor) -> Tensor:
        with evaluating(self.model):
            return self.model.prepare_images(self.data.images[rows].to(self.device))

    @torch.no_grad()
    def _texts(self, numbers: Tensor) -> tuple[Tensor, ...]:
        with evaluating(self.model):
            return self.model.prepare_texts([self.unique[i] for i in numbers.tolist()])

    def images(self, rows: Tensor) -> Tensor:
        """Prepared pictures of these rows."""
        return self.kept_images[rows.to(self.device)] if self.cached else self._images(rows)

    def texts(self, items: Tensor) -> tuple[Tensor, ...]:
        """Prepared prompts of these examples."""
        numbers = self.text_of[items]
        return tuple(t[numbers.to(self.device)] for t in self.kept_texts) if self.cached else self._texts(numbers)


def batch_rows(n: int, batch: int, seed: int, step: int) -> Tensor:
    """Examples of one step: epochs in shuffled order, a function of (n, batch, seed, step); all n where n <= batch."""
    batch = min(batch, n)
    epoch, place = divmod(step, n // batch)
    order = np.random.default_rng((seed, epoch)).permutation(n)
    return torch.from_numpy(order[place * batch : (place + 1) * batch])


def rate_at(config: RewardConfig, step: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, then constant or a half cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def make_optimiser(model: nn.Module, config: RewardConfig) -> torch.optim.AdamW:
    """AdamW over trunk and head, weight decay on matrices only; each group carries its peak rate as "peak"."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            rate = config.lr if name.startswith(TRUNKS) else config.head_lr
            groups.setdefault((rate, config.decay if value.ndim > 1 else 0.0), []).append(value)
    if not groups:
        raise ValueError("nothing to train: every weight of the model is frozen; unlock layers or take another head")
    return torch.optim.AdamW(
        [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
        betas=config.betas,
    )


def data_fingerprint(data: PairData | RatingData) -> str:
    """16 hexadecimal digits of labels, prompts and picture numbers."""
    labels = [data.row, data.rating] if isinstance(data, RatingData) else [data.first, data.second, data.preference]
    digest = hashlib.sha256(json.dumps([*data.prompts, list(data.images.shape)]).encode())
    for value in (*labels, data.weight):
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def make_accelerator(mixed_precision: str, cpu: bool) -> Accelerator:
    """An Accelerator, also where an earlier run of this process had another precision: accelerate keeps one state a
    process and refuses a second precision, so that state (not the process group) is made anew."""
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, cpu=cpu)


class _Run:
    """State of one run; `train_reward` is the loop around it."""

    def __init__(self, model, data, config: RewardConfig, out: Path, validation, cpu: bool):
        self.accelerator = make_accelerator(config.mixed_precision, cpu)
        self.config, self.out, self.data, self.validation = config, Path(out), data, validation
        self.model = model.to(self.accelerator.device).train()
        optimiser = make_optimiser(model, config)
        self.wrapped, self.optimiser = self.accelerator.prepare(self.model, optimiser)
        self.prepared = Prepared(self.model, data, config.cache_bytes, self.accelerator.device)
        self.weights = data.weight.float() * (example_weights(data.prompt_ids) if config.example_weights else 1.0)
        if not self.weights.sum() > 0:
            raise ValueError("the weights of the examples sum to zero: nothing to learn from")
        self.step, self.seconds, self.best, self.best_weights = 0, 0.0, -1.0, None
        self.identity = {"config": json.loads(json.dumps(asdict(config))), "data": data_fingerprint(data),
                         "model": model.describe()}

    def resume(self) -> None:
        """Take up the checkpoint of the folder, if there is one."""
        found = load_checkpoint(self.out / "checkpoint")
        if found is None:
            return
        known = json.loads(found["identity"])
        differs = [key for key, value in self.identity.items() if known.get(key) != value]
        if differs:
            raise ValueError(f"{self.out} holds a run with another {' and '.join(differs)}; choose another folder")
        self._fill(found["weights"])
        self.optimiser.load_state_dict(found["optimiser"])
        self.step, self.seconds = found["step"], found["seconds"]
        self.best, self.best_weights = found["best"], found["best_weights"]

    @torch.no_grad()
    def _fill(self, weights: dict[str, Tensor]) -> None:
        for name, value in self.model.trained().items():
            value.copy_(weights[name])

    def save(self) -> None:
        """Write a checkpoint, unless a weight is not finite."""
        weights = self.model.trained()
        bad = [name for name, value in weights.items() if not value.isfinite().all()]
        if bad:
            raise self.diverged(f"the weight {bad[0]} is not finite")
        if self.validation is not None:
            margin = margins(self.model.as_reward(), self.validation).numpy()
            accuracy = float(np.nanmean(correctness(margin, self.validation.preference.numpy())))
            if accuracy > self.best:
                self.best, self.best_weights = accuracy, {k: v.detach().cpu().clone() for k, v in weights.items()}
        if self.accelerator.is_main_process:
            state = {"weights": weights, "optimiser": self.optimiser.state_dict(), "step": self.step, "best": self.best}
            state |= {"identity": json.dumps(self.identity), "seconds": self.seconds, "best_weights": self.best_weights}
            save_checkpoint(self.out / "checkpoint", state)

    def diverged(self, what: str) -> RewardTrainingDiverged:
        """The error of a run that went wrong."""
        kept = self.out / "checkpoint"
        good = f"the last good checkpoint is {kept}" if kept.exists() else "there is no checkpoint yet"
        advice = f"Lower lr={self.config.lr:g} or head_lr={self.config.head_lr:g} and start in another folder"
        return RewardTrainingDiverged(f"training diverged at step {self.step}: {what}; {good}. {advice}")

    def losses(self, items: Tensor) -> tuple[Tensor, float]:
        """Losses (b,) of these examples and the share of right, untied pairs (nan for ratings)."""
        data, device = self.data, self.accelerator.device
        texts = self.prepared.texts(items)
        with self.accelerator.autocast():
            if isinstance(data, RatingData):
                outputs, _ = self.wrapped(self.prepared.images(data.row[items]), None, *texts)
                return self.model.head.rating_loss(outputs, data.rating[items].to(device)), float("nan")
            pictures = [self.prepared.images(rows[items]) for rows in (data.first, data.second)]
            first, second = self.wrapped(*pictures, *texts)
        preference = data.preference[items].to(device)
        overall = preference if preference.ndim == 1 else preference[:, 0]
        margin = (self.model.head.reward(first) - self.model.head.reward(second)).detach()
        right = correctness(margin.cpu().numpy(), overall.nan_to_num(0.5).cpu().numpy())
        counted = right[~np.isnan(right)]
        return self.model.head.loss(first, second, preference), float(counted.mean()) if len(counted) else float("nan")

    def advance(self) -> dict[str, float]:
        """One optimiser step over this process's part of the batch."""
        config, process = self.config, self.accelerator
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate_at(config, self.step)
        rows = batch_rows(len(self.data), config.batch, config.seed, self.step)
        total = self.weights[rows].sum().clamp(min=1e-12)  # over all processes, as PickScore's
        mine = rows[process.process_index :: process.num_processes]
        value, accuracies = 0.0, []
        parts = mine.split(config.micro)
        for place, items in enumerate(parts):
            sync = nullcontext() if place + 1 == len(parts) else process.no_sync(self.wrapped)
            with sync:
                losses, accuracy = self.losses(items)
                loss = (losses * (self.weights[items] / total).to(losses.device)).sum()
                process.backward(loss * process.num_processes)  # gradients are averaged over processes
            value += loss.item()
            accuracies.append(accuracy)
        if not math.isfinite(value) or value > config.loss_limit:
            raise self.diverged(f"the loss is {value:g} (limit {config.loss_limit:g})")
        norm = process.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], config.clip)
        if process.scaler is None and not torch.isfinite(norm):
            raise self.diverged(f"the gradient's norm is {norm.item():g}")
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return {"step": self.step, "loss": value, "accuracy": float(np.mean(accuracies)), "norm": float(norm)}

    def finish(self, name: str) -> None:
        """Best weights where validation chose them, scale, and the folder `model`."""
        if self.best_weights is not None:
            self._fill(self.best_weights)
        if self.config.standardise:
            standardise(self.model, self.data)
        if self.accelerator.is_main_process:
            facts = {"steps": self.step, "seconds": round(self.seconds, 1), "examples": len(self.data)}
            save_learned(self.model, self.out / "model", name, facts)


@torch.no_grad()
def standardise(model: nn.Module, data: PairData | RatingData, most: int = 4096) -> None:
    """Set `shift` and `scale` so that training pictures beside their prompts score with mean 0 and deviation 1.

    Raises:
        ValueError: all scores are the same.
    """
    rows = data.row if isinstance(data, RatingData) else data.first
    keep = torch.arange(len(data))[:: max(1, len(data) // most)]
    model.shift.fill_(0.0)
    model.scale.fill_(1.0)
    reward, scores = model.as_reward(), []
    for part in keep.split(CHUNK):
        scores.append(reward.score(data.images[rows[part]], [data.prompts[i] for i in part.tolist()]))
    scores = torch.cat(scores)
    if not scores.std() > 0:
        raise ValueError("all training pictures score the same: the reward has learned nothing, it has no scale")
    model.shift.copy_(scores.mean())
    model.scale.copy_(scores.std())


def train_reward(
    model: nn.Module,
    pairs: PairData | RatingData,
    config: RewardConfig,
    out: str | Path,
    validation: PairData | None = None,
    name: str = "",
    cpu: bool = False,
) -> Iterator[dict[str, float]]:
    """Train a reward model and yield {"step", "loss", "accuracy", "norm", "seconds"} after each step.

    Args:
        model: `RewardModel` or `step_aware.StepAwareModel`; its weights are changed in place.
        pairs: what it learns from; `RatingData` for a head with a `rating_loss`.
        config: see `PRESETS`.
        out: run folder: `checkpoint/` (resumed where it fits), `metrics.jsonl`, and at the end `model/` for
            `store.load_learned`.
        validation: held-out pairs; the weights of the checkpoint with the best accuracy on them are kept.
        name: of the finished reward; default: the folder's name.
        cpu: stay on the CPU although a GPU is there.

    Raises:
        ValueError: no examples, data that the head cannot learn from, nothing to train, or a folder with another run.
        RewardTrainingDiverged: the loss or a weight is not finite; the last checkpoint is good.
    """
    if len(pairs) == 0:
        raise ValueError("no examples to train on")
    wanted = "rating_loss" if isinstance(pairs, RatingData) else "loss"
    if not hasattr(model.head, wanted):
        other = "pairs (to_pairs)" if wanted == "rating_loss" else "ratings (aesthetic.to_ratings)"
        raise ValueError(f"the head {model.head.name!r} learns from {other}, not from {type(pairs).__name__}")
    run = _Run(model, pairs, config, Path(out), validation, cpu)
    run.resume()
    run.out.mkdir(parents=True, exist_ok=True)
    devices = range(torch.cuda.device_count()) if run.accelerator.device.type == "cuda" else []
    while run.step < config.steps:
        began = time.perf_counter()
        with torch.random.fork_rng(devices):
            torch.manual_seed(config.seed * 1_000_003 + run.step * 64 + run.accelerator.process_index)
            row = run.advance()
        run.seconds += time.perf_counter() - began
        row["seconds"] = round(run.seconds, 3)
        if run.step % config.every == 0 or run.step == config.steps:
            run.save()
            if run.accelerator.is_main_process:
                with open(run.out / "metrics.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        yield row
    run.finish(name or run.out.name)
