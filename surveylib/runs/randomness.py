"""Noise that depends on names, not on order: every draw is a function of (seed, epoch, sample, stream) and the like.

However a batch is cut, into micro-batches or over processes, each sample meets the same noise. All generators live on
the CPU, so that a seed means the same on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from integers and texts."""
    digest = hashlib.sha256("|".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that is a function of `key` alone."""
    return torch.Generator().manual_seed(seed_of(*key))


def generators(keys: Sequence[int] | Tensor, *key: int | str) -> list[torch.Generator]:
    """One generator for each of `keys`, each a function of (its key, the rest)."""
    return [generator(int(k), *key) for k in keys]


def normal(keys: Sequence[int] | Tensor, shape: Sequence[int], *key: int | str) -> Tensor:
    """(len(keys), *shape) of N(0, 1), float32 on the CPU; row i is a function of (keys[i], the rest)."""
    return torch.stack([torch.randn(*shape, generator=g) for g in generators(keys, *key)])


def uniform(keys: Sequence[int] | Tensor, *key: int | str) -> Tensor:
    """(len(keys),) uniform in [0, 1), float32 on the CPU; entry i is a function of (keys[i], the rest)."""
    return torch.stack([torch.rand((), generator=g) for g in generators(keys, *key)])


def permutation(n: int, *key: int | str) -> Tensor:
    """A shuffled order of n rows, a function of the key."""
    return torch.randperm(n, generator=generator(*key))
