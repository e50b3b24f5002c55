"""`align`: the loop around every fine-tuning technique, as a generator of epochs.

An epoch is one `Technique.collect` and some optimiser steps on what it brought. The samples of an epoch are cut into
``updates`` parts (shuffled anew in each pass); each part into micro-batches of items, an item being one (sample, step);
the gradient is that of the mean loss over all items of the part, however they were cut.

Randomness is named by (seed, epoch, global sample index, step): it depends neither on micro-batches nor on the number
of processes. With ``out`` checkpoints are written, and the same call goes on where a killed run stopped, with bit-equal
weights on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surveylib.alignment.checkpoints import CHECKPOINT as CHECKPOINTS
from surveylib.alignment.checkpoints import CheckpointFolder, Saving, usual_pause
from surveylib.alignment.memory import CHECKPOINT, can_recompute, recompute, stored_bytes
from surveylib.alignment.pictures import draw_pictures, sheet_due, shown_prompts
from surveylib.alignment.processes import AlignmentError, Processes
from surveylib.alignment.sharding import gathered_tree, shard
from surveylib.diffusion.lora import add_lora, lora_layers
from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.speed import autocast_type, plain_attention
from surveylib.diffusion.timesteps import times_of_uniform
from surveylib.diffusion.weights import gathered, sharded_like
from surveylib.runs.ledger import Ledger
from surveylib.runs.memory import out_of_memory
from surveylib.runs.randomness import permutation, seed_of
from surveylib.techniques.contract import Batch, Draw, Preset, Sampler, Signal, Technique, TechniqueError, Training

HALF = (torch.float16, torch.bfloat16)
SCALE = 2.0**10  # first factor of the summed loss where gradients go through float16
SHOWN = 16  # pictures of an epoch that are handed on
SCALE_STEPS = 200  # steps without an overflow after which it doubles


@dataclass(frozen=True, eq=False)
class Progress:
    """What one epoch did.

    Attributes:
        epoch: epochs done, from 1. metrics: means over the epoch's items and samples, all processes together ("loss",
            "grad_norm", "reward" where there is one, and what the technique reports; in float16 "skipped_steps", the
            share of optimiser steps that an overflow cost, each with a "grad_norm" of 0).
        prompts: of this process's samples, and pictures (N, 3, H, W) of the first `SHOWN` of them on the CPU, or None.
            Where pictures were drawn for the log alone, both are of these.
        ledger: cost since the start of the run: counts of all processes together, seconds of this one.
        updates: optimiser steps so far. stored: bytes that this process kept of the epoch for its updates and the log.
    """

    epoch: int
    metrics: dict[str, float]
    prompts: list[str]
    pictures: Tensor | None
    ledger: Ledger
    updates: int
    stored: int = 0


def align(
    model: DiffusionModel,
    technique: Technique,
    signal: Signal,
    prompts: Sequence[str],
    training: Training,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    processes: Processes | None = None,
    each: Callable[[Progress], None] | None = None,
    pictures_every: int = 0,
    checkpoint_seconds: float | None = None,
    checkpoint: bool = False,
) -> Iterator[Progress]:
    """Aligns ``model`` in place and yields once an epoch.

    Args:
        model: its network gets a LoRA adapter (``training.lora_rank``), or all its weights are trained.
        technique, training: see the contract. signal: a reward, or preference data.
        prompts: list of texts to draw for; ignored by techniques that learn from recorded feedback alone.
        seed: names all randomness of the run.
        out: folder for checkpoints; None keeps nothing. A run found there is gone on with; its micro_batch and
            sample_batch, and `checkpoint`, may differ: the update is the same, up to the rounding of another order.
        processes: default: what accelerate or torchrun started.
        each: called with every epoch's progress before its checkpoint is written, such as a log: what it keeps of a
            later epoch than the checkpoint's comes again.
        pictures_every: epochs between drawings of some prompts from fixed noise, after the epoch's updates and not in
            the ledger, by rank 0, where the technique brings no pictures; 0 draws none.
        checkpoint_seconds: between two checkpoints at least, 0 for one after every epoch. None: 0 for trained weights
            of up to 64 MB, else 300. One is written at the end, and when the caller stops between two epochs; a run
            stopped within an epoch, or killed, goes on from the last.
        checkpoint: recompute the network's blocks in the backward pass instead of storing their activations (slower).

    Raises (at the first ``next``):
        TechniqueError: model, technique, signal, prompts or training of another type, or that do not fit; an adapter on
        the model that is not of the training's rank and alpha; `checkpoint` for a network that has none.
        ValueError: samples that do not divide over the processes; a run folder that is in use, damaged, or holds
        another run; negative seconds.
        AlignmentError: a loss or gradient that is not finite, memory that ran out.
    """
    if checkpoint_seconds is not None and not checkpoint_seconds >= 0:
        raise ValueError(f"checkpoint_seconds={checkpoint_seconds} must be 0 or more, or None")
    run = Alignment(model, technique, signal, prompts, training, seed, processes or Processes(), checkpoint)
    pause = usual_pause(run.parameters) if checkpoint_seconds is None else checkpoint_seconds
    with CheckpointFolder(out, run.identity, run.processes) if out is not None else nullcontext() as folder:
        if folder is not None and (state := folder.load()) is not None:
            _go_on(run, state, folder.path / CHECKPOINTS)
        yield from _epochs(run, Saving(folder, run.state_dict, pause), each, pictures_every)


def _go_on(run: Alignment, state: dict[str, Any], place: Path) -> None:
    try:
        run.load_state_dict(state)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(f"{place} does not fit this run or is damaged ({error!r}); delete it to start anew"
                         ) from error


def _epochs(run: Alignment, saving: Saving, each: Callable[[Progress], None] | None, every: int) -> Iterator[Progress]:
    while run.epoch < run.training.epochs:
        progress = run.advance()
        if progress.pictures is None and sheet_due(progress.epoch, every):
            progress = run.with_pictures(progress)
        if each is not None:
            each(progress)
        saving.after_epoch(run.epoch >= run.training.epochs)
        try:
            yield progress
        except GeneratorExit:
            saving.stopped()
            raise


class Alignment:
    """The state of one run: model, technique, optimiser, ledger. `advance` does one epoch."""

    def __init__(self, model, technique, signal, prompts, training, seed, processes, checkpoint: bool = False) -> None:
        check_given(model, technique, prompts, training)
        technique.check(model, signal, training)
        self.model, self.technique, self.signal = model, technique, signal
        self.prompts, self.training, self.seed, self.processes = list(prompts), training, seed, processes
        self.from_prompts = not {"pairs", "rankings", "binary"} & set(technique.needs) or "online" in technique.needs
        if self.from_prompts and not self.prompts:
            raise TechniqueError(f"{technique.name} draws pictures for prompts and got none")
        self.mine = processes.share(training.samples)
        kept = model.dtype
        prepare_weights(model, training, seed, processes)
        self.checkpoint = checkpoint
        if checkpoint:
            recompute(model.network)
        wanted = training.autocast
        if wanted is None and model.dtype != kept:  # all weights are trained in float32 and used in what they came in
            wanted = str(kept).removeprefix("torch.")
        self.reduced = autocast_type(wanted, model.device)
        if self.reduced is not None and model.device.type == "cpu":
            plain_attention(model.network)
        self.parameters = model.trainable_parameters()
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=training.lr, betas=training.betas, weight_decay=training.weight_decay, eps=training.eps
        )
        # Small gradients vanish in float16: the loss is scaled up before them (arXiv 1710.03740, section 3.2).
        self.scaler = torch.amp.GradScaler(model.device.type, init_scale=SCALE, growth_interval=SCALE_STEPS,
                                           enabled=torch.float16 in (model.dtype, self.reduced))
        self.scaler.scale(torch.zeros((), device=model.device))  # made here: a process may hold no sample of an update
        self.ledger = Ledger()
        self.epoch = self.updates = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the run that it resumes."""
        return {
            "technique": self.technique.name, "config": repr(self.technique.config), "training": repr(self.training),
            "seed": self.seed, "prompts": seed_of(*self.prompts), "processes": self.processes.count,
            "signal": getattr(self.signal, "name", type(self.signal).__name__),
            "weights": {name: list(p.shape) for name, p in self.model.named_trainable_parameters().items()},
        }

    # -- one epoch ------------------------------------------------------------------------------------------------
    def advance(self) -> Progress:
        """Collects, updates, and says what happened."""
        began, before = time.perf_counter(), self.ledger.copy()
        with self.ledger.watch(self.model, self.signal):
            draw = self.draw()
            batch = self._guarded(lambda: self.technique.collect(self.model, draw, self.signal), "sample_batch")
            metrics = self.processes.mean_numbers(batch.metrics)
            sums = self.learn(batch, draw)
        self.epoch += 1
        self.ledger.wall += time.perf_counter() - began
        self._share_counts(before)
        # a copy: a view would keep the whole epoch's pictures alive
        pictures = None if batch.pictures is None else batch.pictures[:SHOWN].detach().to("cpu", copy=True)
        return Progress(self.epoch, metrics | sums, batch.condition.prompts, pictures, self.ledger.copy(), self.updates,
                        stored_bytes(batch))

    def with_pictures(self, progress: Progress) -> Progress:
        """The progress with pictures drawn now for the log (`draw_pictures`), on rank 0; sharded weights are put
        together for a call by all processes, so that all draw.

        Raises:
            AlignmentError: memory that ran out.
        """
        if not self.prompts or not (self.processes.main or self.processes.sharding is not None):
            return progress
        texts = shown_prompts(self.prompts)
        batch = min(self.training.sample_batch, self.training.micro_batch)
        try:
            with self._autocast():
                pictures = draw_pictures(self.model, texts, self.seed, batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise AlignmentError(f"out of memory with pictures for the log, {batch} at a time: lower sample_batch, or "
                                 "draw none, pictures_every=0") from error
        return replace(progress, prompts=texts, pictures=pictures)

    def _share_counts(self, before: Ledger) -> None:
        """Adds to the ledger's counts what the other processes spent since `before`: they are the same on each then,
        also in a checkpoint and for a loop that stops at a budget."""
        own = {name: value for name, value in self.ledger.since(before).state_dict().items() if isinstance(value, int)}
        for name, value in self.processes.sum_numbers(own).items():
            setattr(self.ledger, name, getattr(before, name) + round(value))

    def draw(self) -> Draw:
        """The samples of this process in the present epoch: prompts in passes of shuffled order, groups kept whole."""
        training, total = self.training, self.training.samples
        texts: list[str] = []
        if self.from_prompts:
            n, groups = len(self.prompts), total // training.samples_per_prompt
            places = range(self.epoch * groups, (self.epoch + 1) * groups)
            orders = {place // n: None for place in places}
            orders = {turn: permutation(n, self.seed, turn, "prompts").tolist() for turn in orders}
            texts = [self.prompts[orders[place // n][place % n]] for place in places
                     for _ in range(training.samples_per_prompt)]
        return Draw(
            self.seed, self.epoch, [texts[i] for i in self.mine] if texts else [],
            self.mine // training.samples_per_prompt, self.mine, total, training.sample_batch, self.processes.gather,
            texts,
        )

    def learn(self, batch: Batch, draw: Draw) -> dict[str, float]:
        """All optimiser steps of the epoch; means of the metrics over items."""
        sums: dict[str, float] = {}
        counted = 0
        for turn in range(self.training.passes):
            order = permutation(draw.total, self.seed, self.epoch, turn, "order")
            for part in order.tensor_split(self.training.updates):
                found = self._update(batch, draw, part, turn)
                counted += 1
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + value
        return {name: value / counted for name, value in sums.items()}

    def _update(self, batch: Batch, draw: Draw, part: Tensor, turn: int) -> dict[str, float]:
        """One optimiser step on the global samples `part`, of which this process holds some."""
        here = torch.isin(draw.indices, part).nonzero().flatten()
        steps = batch.n_steps
        rows, columns = here.repeat_interleave(steps), torch.arange(steps).repeat(len(here))
        name = (self.seed, self.epoch, turn)
        keys = torch.tensor([seed_of(*name, draw.indices[r].item(), k.item()) for r, k in zip(rows, columns)],
                            dtype=torch.int64)
        total = len(part) * steps
        pieces = [batch.items(rows[i], columns[i], keys[i])
                  for i in torch.arange(len(rows)).split(self.training.micro_batch) if len(i)]
        idle = self._idle(batch, part, draw, len(pieces))
        means = self._means(pieces, total, idle)
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, float] = {"loss": 0.0}
        for items in pieces:
            for key, value in self._backward(items, means, total).items():
                sums[key] = sums.get(key, 0.0) + value / total
        for items in idle:
            self._backward(items, means, total, share=0.0)
        self.processes.sum_gradients(self.parameters)
        return self.processes.sum_numbers(sums) | self._step(total)

    def _idle(self, batch: Batch, part: Tensor, draw: Draw, pieces: int) -> list:
        """Where weights are sharded, every process calls the network as often as the one with the most items of this
        part: micro-batches of one item whose loss counts nothing."""
        if self.processes.sharding is None:
            return []
        most = self.processes.most(part, draw.total) * batch.n_steps
        zero = torch.zeros(1, dtype=torch.int64)
        return [batch.items(zero, zero, zero)] * (-(-most // self.training.micro_batch) - pieces)

    def _means(self, pieces: list, total: int, idle: list) -> dict[str, Tensor]:
        if type(self.technique).shared is Technique.shared:
            return {}
        sums: dict[str, float] = {}
        with torch.no_grad(), self._autocast():
            for items in pieces:
                for key, value in self.technique.shared(self.model, items, self.signal).items():
                    sums[key] = sums.get(key, 0.0) + value.double().sum().item() / total
            for items in idle:
                self.technique.shared(self.model, items, self.signal)
        return {key: torch.tensor(value, dtype=torch.float32) for key, value in
                self.processes.sum_numbers(sums).items()}

    def _backward(self, items, means: Mapping[str, Tensor], total: int, share: float = 1.0) -> dict[str, float]:
        def work() -> dict[str, float]:
            with self._autocast():
                losses, metrics = self.technique.loss(self.model, items, self.signal, means)
            if losses.shape != (len(items),):
                found = tuple(losses.shape)
                raise TechniqueError(f"{self.technique.name}.loss returned {found} for {len(items)} items")
            if not losses.isfinite().all():
                raise AlignmentError(self._not_finite("loss"))
            if not losses.requires_grad and self.processes.sharding is not None:
                losses = losses + self._needless_call(items)
            if losses.requires_grad:
                losses = losses * share
                with self.ledger.timed("backward"):
                    if self.scaler.is_enabled():  # the sum: a mean over many items would vanish in float16
                        self.scaler.scale(losses.float().sum()).backward()
                    else:
                        (losses.float().sum() / total).backward()
            sums = {"loss": losses.detach().double().sum().item()}
            for key, value in metrics.items():
                value = torch.as_tensor(value).detach().double()
                sums[key] = (value.sum() if value.ndim else value * len(items)).item()
            return sums

        return self._guarded(work, "micro_batch")

    def _needless_call(self, items) -> Tensor:
        """Zero, by a call of the network: where weights are sharded, a process that needs none meets the others."""
        x = torch.zeros(1, *self.model.latent_shape, device=self.model.device)
        time = times_of_uniform(torch.full((1,), 0.5, device=x.device), self.model.schedule)
        return 0 * self.model.output(x, time, items.condition[:1], 1.0).float().sum()

    def _step(self, total: int) -> dict[str, float]:
        """Clip, step, average. An overflow under loss scaling skips the step and lowers the scale."""
        training, scaled = self.training, self.scaler.is_enabled()
        if scaled:
            for p in self.parameters:  # unscaling wants a gradient of each, also where no item asked for one
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            self.scaler.unscale_(self.optimiser)
            for p in self.parameters:
                p.grad.div_(total)
        norm = gathered(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        nn.utils.clip_grads_with_norm_(self.parameters, training.clip_norm, norm)
        if not norm.isfinite():
            if not scaled or self.scaler.get_scale() < 1:
                raise AlignmentError(self._not_finite("gradient"))
            self.scaler.update()
            return {"grad_norm": 0.0, "skipped_steps": 1.0}
        rate = training.lr * min(1.0, (self.updates + 1) / training.warmup) if training.warmup else training.lr
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.updates += 1
        if training.ema and self.updates % training.ema_every == 0:
            self.model.update_ema("ema", training.ema)
        self.technique.after_update(self.model)
        return {"grad_norm": norm.item()} | ({"skipped_steps": 0.0} if scaled else {})

    # -- helpers --------------------------------------------------------------------------------------------------
    def _autocast(self):
        if self.reduced is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.reduced)

    def _guarded(self, work, knob: str):
        try:
            with self._autocast() if knob == "sample_batch" else nullcontext():
                return work()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            value = getattr(self.training, knob)
            raise AlignmentError(f"out of memory with {knob}={value}: {', or '.join(self._savings(knob))}") from error

    def _savings(self, knob: str) -> list[str]:
        """What would save memory: settings that this technique and training have, and that can still be changed."""
        training, ways = self.training, []
        if getattr(training, knob) > 1:
            ways.append(f"lower {knob} (the update stays the same)")
        own = getattr(self.technique.config, CHECKPOINT, None)
        engine = knob == "micro_batch" and not self.checkpoint and can_recompute(self.model.network)
        if own is False or (own is None and engine):
            ways.append(f"set {CHECKPOINT}=True (slower)")
        if training.lora_rank is None:
            ways.append("train an adapter, lora_rank=16")
        if training.samples > training.samples_per_prompt * self.processes.count:
            ways.append("lower samples (fewer in an epoch)")
        return ways or ["take a smaller model or resolution"]

    def _not_finite(self, what: str) -> str:
        return (f"{self.technique.name}: the {what} of epoch {self.epoch + 1} is not finite. The last checkpoint "
                f"stands. Lower lr (now {self.training.lr:g}), look for extreme rewards, or set autocast=None")

    # -- checkpoint -----------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on. Sharded weights are put together on rank 0, which writes: all
        processes must call."""
        state = {
            "epoch": self.epoch, "updates": self.updates, "ledger": self.ledger.state_dict(),
            "policy": dict(self.model.named_trainable_parameters()), "snapshots": self.model.snapshots,
            "optimiser": self.optimiser.state_dict(), "technique": self.technique.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        return state if self.processes.sharding is None else gathered_tree(state, self.processes.main)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.epoch, self.updates = state["epoch"], state["updates"]
        self.ledger.load_state_dict(state["ledger"])
        with torch.no_grad():
            for name, p in self.model.named_trainable_parameters().items():
                p.copy_(sharded_like(state["policy"][name], p))
        self.model.load_snapshots(state["snapshots"])
        if self.processes.sharding is not None:
            for number, moments in state["optimiser"]["state"].items():
                p = self.parameters[number]
                moments |= {name: sharded_like(value, p) for name, value in moments.items() if value.shape == p.shape}
        self.optimiser.load_state_dict(state["optimiser"])
        self.technique.load_state_dict(state["technique"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


def check_given(model: Any, technique: Any, prompts: Any, training: Any) -> None:
    """Refuses what is of another type than a run needs.

    Raises:
        TechniqueError: says what was given and what makes the right thing.
    """
    if not isinstance(technique, Technique):
        what = f"the class {technique.__name__}" if isinstance(technique, type) else f"a {type(technique).__name__}"
        ways = "DDPO(DDPOConfig()), or technique_class('ddpo')() of a name"
        if isinstance(technique, Sampler):
            ways = "a sampler trains nothing, call its sample(model, prompts, reward)"
        raise TechniqueError(f"technique is {what}; give an object of a technique that trains: {ways}")
    if not isinstance(model, DiffusionModel):
        raise TechniqueError(f"model is a {type(model).__name__}; give a DiffusionModel: load_model(name or folder), "
                             "or from_pipeline(pipeline)")
    if not isinstance(training, Training):
        way = "its .training" if isinstance(training, Preset) else "Training(epochs=..., ...)"
        raise TechniqueError(f"training is a {type(training).__name__}; give a Training: {way}")
    if not isinstance(technique.config, technique.Config):
        raise TechniqueError(f"{technique.name}: its config is a {type(technique.config).__name__}; give a "
                             f"{technique.Config.__name__}")
    if isinstance(prompts, str):
        raise TechniqueError(f"prompts is one text; give a list: [{prompts!r}]")
    if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
        raise TechniqueError(f"a prompt is a text, and one of the prompts is a {type(wrong[0]).__name__}: {wrong[0]!r}")


def _check_adapter(model: DiffusionModel, training: Training) -> None:
    """An adapter that is there already is trained on: it must be the one that the training asks for."""
    asked = training.lora_rank, training.lora_rank if training.lora_alpha is None else training.lora_alpha
    there = {(layer.r[name], layer.lora_alpha[name]) for layer in lora_layers(model.network) for name in layer.r}
    if there != {asked}:
        found = " and ".join(f"rank {rank} and alpha {alpha:g}" for rank, alpha in sorted(there))
        rank, alpha = max(there)
        raise TechniqueError(f"the network has an adapter of {found} already, and the training asks for rank "
                             f"{asked[0]} and alpha {asked[1]:g}. For a fresh one load the model anew, load_model(...);"
                             f" to train on the one that is there, set lora_rank={rank}, lora_alpha={alpha:g}")


def prepare_weights(model: DiffusionModel, training: Training, seed: int, processes: Processes | None = None) -> None:
    """Says which weights are the policy: a fresh LoRA adapter (or the one that is there), or the whole network with a
    copy of it as the reference. What came in half precision is trained in float32: AdamW's eps is zero in float16.
    Then cuts the weights over the processes, where that was asked for.

    Raises:
        TechniqueError: an adapter that is there and is not of the training's rank and alpha, or all weights are to be
        trained.
    """
    if training.lora_rank is not None:
        if not lora_layers(model.network):
            add_lora(model, training.lora_rank, training.lora_alpha, training.lora_targets, seed)
        else:
            _check_adapter(model, training)
        for p in model.trainable_parameters():
            p.data = p.data.float() if p.dtype in HALF else p.data
    elif lora_layers(model.network):
        raise TechniqueError("lora_rank=None trains all weights, but the network has an adapter; load the model anew")
    else:
        if model.dtype in HALF:
            model.network.float()
        model.network.requires_grad_(True)
    if processes is not None and processes.sharding is not None:
        shard(model.network, processes.sharding)
        model.load_snapshots(model.snapshots)
    if training.lora_rank is None and "reference" not in model.snapshots:
        model.snapshot("reference")
