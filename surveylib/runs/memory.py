"""How the end of memory is told from other errors."""

from __future__ import annotations

import torch

ON_CPU = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")  # in a plain RuntimeError


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ON_CPU)
