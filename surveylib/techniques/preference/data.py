"""Preference data for the techniques that learn from recorded feedback: from records, from tensors, from a model.

Pictures are kept once, as 8-bit integers; rows say which pictures belong together. `encoded` turns them into latents
once for a model, since the same data come again every epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.model import DiffusionModel
from surveylib.feedback.pairs import to_pairs
from surveylib.feedback.pictures import RecordError, decode_picture, fit
from surveylib.feedback.record import Record
from surveylib.runs.randomness import generators, uniform
from surveylib.techniques.contract import Feedback, TechniqueError
from surveylib.techniques.paths import decode_all, sample_paths

KINDS = ("pairs", "rankings", "binary")
_LATENTS: WeakKeyDictionary = WeakKeyDictionary()  # model -> data -> {picture: latent}


class RecordedPreferences:
    """`PreferenceData` in memory.

    Args:
        kind: "pairs", "rankings" or "binary". prompts: n texts.
        samples: (N, 3, H, W) pictures in [0, 1] or uint8, or (N, d) points; each once.
        members: (n, k) int64, the rows of `samples` that a row of the data is about; k = 2 for pairs, 1 for binary.
        labels: (n,) 0 or 1 for pairs (which of the two was preferred) and binary, (n, k) finite gains for rankings.
        skipped: what was left out on the way here, by reason. Pairs of a sample with itself are left out here.

    Raises:
        TechniqueError: an unknown kind, shapes or labels that do not fit, or nothing left.
    """

    def __init__(
        self, kind: str, prompts: Sequence[str], samples: Tensor, members: Tensor, labels: Tensor,
        skipped: Counter[str] | None = None,
    ) -> None:
        self.kind, self.skipped = kind, Counter(skipped or {})
        members = torch.as_tensor(members).long()
        labels = torch.as_tensor(labels)
        _check(kind, list(prompts), samples, members, labels)
        keep = torch.ones(len(members), dtype=torch.bool)
        if kind == "pairs":
            keep = members[:, 0] != members[:, 1]
        if (~keep).any():
            self.skipped["compared with itself"] += int((~keep).sum())
        if not keep.any():
            raise TechniqueError(f"no usable {kind}; left out: {dict(self.skipped) or 'nothing'}")
        self.prompts = [prompt for prompt, kept in zip(prompts, keep.tolist()) if kept]
        self.members = members[keep]
        self.labels = labels[keep].float() if kind == "rankings" else labels[keep].long()
        self.samples = _stored(samples)

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Tensor) -> Feedback:
        """The given rows, pictures as float32 in [0, 1]."""
        samples = self._samples(self.members[rows].flatten()).unflatten(0, (len(rows), -1))
        return Feedback([self.prompts[i] for i in rows.tolist()], samples, self.labels[rows])

    def _samples(self, pictures: Tensor) -> Tensor:
        chosen = self.samples[pictures]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen

    @torch.no_grad()
    def latents(self, model: DiffusionModel, rows: Tensor, batch: int = 64) -> Tensor:
        """(len(rows), k, *latent_shape) on the model's device; each picture is encoded once for a model."""
        kept = _LATENTS.setdefault(model, WeakKeyDictionary()).setdefault(self, {})
        pictures = self.members[rows]
        missing = [i for i in torch.unique(pictures).tolist() if i not in kept]
        for part in torch.tensor(missing, dtype=torch.long).split(batch):
            if len(part):
                latents = model.encode_images(self._samples(part).to(model.device)).float()
                kept.update(zip(part.tolist(), latents.cpu()))
        found = torch.stack([kept[i] for i in pictures.flatten().tolist()])
        return found.unflatten(0, tuple(pictures.shape)).to(model.device)


@torch.no_grad()
def encoded(model: DiffusionModel, data, rows: Tensor, batch: int = 64) -> tuple[list[str], Tensor, Tensor]:
    """Prompts, labels and latents (n, k, *latent_shape) of n rows of any `PreferenceData`.

    `RecordedPreferences` keep their latents: from the second time on no picture of a row is touched.
    """
    if isinstance(data, RecordedPreferences):
        return [data.prompts[i] for i in rows.tolist()], data.labels[rows], data.latents(model, rows, batch)
    feedback = data.take(rows)
    n, k = feedback.samples.shape[:2]
    parts = feedback.samples.flatten(0, 1).split(batch)
    latents = torch.cat([model.encode_images(p.to(model.device)).float() for p in parts]).unflatten(0, (n, k))
    return feedback.prompts, feedback.labels, latents


def from_tensors(kind: str, prompts: Sequence[str], samples: Tensor, labels: Tensor) -> RecordedPreferences:
    """Preference data from (n, k, 3, H, W) pictures or (n, k, d) points; see `RecordedPreferences`."""
    if samples.ndim < 3:
        raise TechniqueError(f"samples are (n, k, ...), got {tuple(samples.shape)}")
    n, k = samples.shape[:2]
    return RecordedPreferences(kind, prompts, samples.flatten(0, 1), torch.arange(n * k).reshape(n, k), labels)


def from_records(
    records: Iterable[Record], kind: str, size: int | None = None, on_error: str = "raise"
) -> RecordedPreferences:
    """Preference data from feedback records.

    "pairs" takes every comparison that the records hold (`to_pairs`), ties left out and counted. "rankings" takes
    ranking records, gain = share of the other pictures that a picture beats (ties count half). "binary" takes likes.

    Args:
        size: resize the shorter side and cut the middle. on_error: "raise" or "skip" for pictures that cannot be read.

    Raises:
        TechniqueError: an unknown kind, or no record of it. RecordError: a missing or corrupt picture.
    """
    _known(kind)
    records = list(records)
    if kind == "pairs":
        try:
            pairs = to_pairs(records, ties="drop", size=size, on_error=on_error)
        except RecordError:
            raise
        except ValueError as error:
            raise TechniqueError(f"no pairs in these records: {error}") from error
        return RecordedPreferences(kind, pairs.prompts, pairs.images, torch.stack([pairs.first, pairs.second], 1),
                                   (pairs.preference < 0.5).long(), pairs.skipped)
    wanted = {"rankings": "ranking", "binary": "binary"}[kind]
    skipped = Counter(f"a record of kind {r.kind}" for r in records if r.kind != wanted)
    prompts, pictures, members, labels = [], [], [], []
    for record in (r for r in records if r.kind == wanted):
        try:
            decoded = [decode_picture(i) if size is None else fit(decode_picture(i), size) for i in record.images]
        except RecordError as error:
            if on_error == "raise":
                raise
            skipped[error.reason] += 1
            continue
        members.append(list(range(len(pictures), len(pictures) + len(decoded))))
        pictures += decoded
        prompts.append(record.prompt)
        labels.append(int(record.liked) if kind == "binary" else shares_beaten(-torch.tensor(record.ranks)).tolist())
    if not prompts:
        raise TechniqueError(f"no {wanted} record among {len(records)}; left out: {dict(skipped) or 'nothing'}")
    if len({len(m) for m in members}) > 1 or len({p.shape for p in pictures}) > 1:
        raise TechniqueError("rankings need the same number of pictures in each, and pictures of one size (give size=)")
    return RecordedPreferences(kind, prompts, torch.stack(pictures), torch.tensor(members), torch.tensor(labels),
                               skipped)


def shares_beaten(values: Tensor) -> Tensor:
    """psi (..., k): share of the other k - 1 that each beats, ties half (RankDPO, arXiv 2410.18013, algorithm 1)."""
    difference = values[..., :, None] - values[..., None, :]
    wins = (difference > 0).float() + 0.5 * (difference == 0).float()
    return (wins.sum(-1) - 0.5) / (values.shape[-1] - 1)


@torch.no_grad()
def sampled(
    model: DiffusionModel,
    prompts: Sequence[str],
    utility: Callable[[Tensor, Sequence[str]], Tensor],
    *,
    kind: str = "pairs",
    k: int = 2,
    temperature: float = 1.0,
    threshold: float | None = None,
    steps: int = 20,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 64,
) -> RecordedPreferences:
    """k samples a prompt of the model as it is, labelled by a simulated judge.

    Args:
        utility: (samples, prompts) -> (B,): a `Reward`, or a utility of `surveylib.worlds.shapes.annotators`.
        temperature: pairs: P(first preferred) = sigmoid((u_1 - u_2) / temperature), Bradley-Terry; 0 takes the better.
        threshold: binary: liked with probability sigmoid((u - threshold) / temperature); None takes the mean utility.

    Raises:
        TechniqueError: an unknown kind, a number k that does not fit it, a negative temperature.
    """
    _known(kind)
    if {"pairs": k != 2, "binary": k != 1, "rankings": k < 2}[kind]:
        raise TechniqueError(f"k={k} samples a prompt do not fit {kind}: 2 for pairs, 1 for binary, 2+ for rankings")
    if temperature < 0:
        raise TechniqueError(f"temperature={temperature} must be 0 or more")
    texts = [prompt for prompt in prompts for _ in range(k)]
    paths = sample_paths(model, model.encode(texts), dynamics=DDIM(1.0), steps=steps, guidance=guidance, batch=batch,
                         generators=generators(range(len(texts)), seed, "data"))
    samples = decode_all(model, paths.x0, batch).cpu()
    cuts = [slice(i, i + batch) for i in range(0, len(texts), batch)]
    parts = [utility(samples[cut].to(model.device), texts[cut]) for cut in cuts]
    values = torch.cat(parts).cpu().double().reshape(len(prompts), k)
    u = uniform(range(len(prompts)), seed, "answers").double()
    if kind == "rankings":
        labels = shares_beaten(values)
    elif kind == "pairs":
        labels = (u >= _chance(values[:, 0] - values[:, 1], temperature)).long()
    else:
        limit = values.mean() if threshold is None else threshold
        labels = (u < _chance(values[:, 0] - limit, temperature)).long()
    return from_tensors(kind, prompts, samples.unflatten(0, (len(prompts), k)), labels)


def _chance(difference: Tensor, temperature: float) -> Tensor:
    return torch.sigmoid(difference / temperature) if temperature else 0.5 * (difference.sign() + 1)


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise TechniqueError(f"unknown kind of preference data {kind!r}; allowed: {', '.join(KINDS)}")


def _check(kind: str, prompts: list[str], samples: Tensor, members: Tensor, labels: Tensor) -> None:
    _known(kind)
    n = len(prompts)
    if members.ndim != 2 or len(members) != n or n == 0:
        raise TechniqueError(f"members are (n, k) for {n} prompts (at least 1), got {tuple(members.shape)}")
    k = members.shape[1]
    if {"pairs": k != 2, "binary": k != 1, "rankings": k < 2}[kind]:
        raise TechniqueError(f"{kind} have {k} samples a row: 2 for pairs, 1 for binary, 2 or more for rankings")
    if members.min() < 0 or members.max() >= len(samples):
        raise TechniqueError(f"members name sample {int(members.max())}; there are {len(samples)}")
    wanted = (n, k) if kind == "rankings" else (n,)
    if tuple(labels.shape) != wanted:
        raise TechniqueError(f"labels of {kind} have shape {wanted}, got {tuple(labels.shape)}")
    if kind == "rankings":
        if not torch.isfinite(labels.float()).all():
            raise TechniqueError("gains of rankings must be finite")
    elif not ((labels == 0) | (labels == 1)).all():
        raise TechniqueError(f"labels of {kind} are 0 or 1, got {sorted(set(labels.flatten().tolist()))[:5]}; "
                             "leave ties out")


def _stored(samples: Tensor) -> Tensor:
    if samples.ndim == 2 or samples.dtype == torch.uint8:
        return samples.detach()
    if samples.ndim != 4 or samples.shape[1] != 3:
        raise TechniqueError(f"samples are pictures (N, 3, H, W) or points (N, d), got {tuple(samples.shape)}")
    if not samples.isfinite().all() or samples.min() < -1e-3 or samples.max() > 1 + 1e-3:
        raise TechniqueError("pictures must lie in [0, 1] and be finite; clamp them first")
    return (samples.detach().clamp(0, 1) * 255).round().to(torch.uint8)
