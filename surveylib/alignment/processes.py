"""Several processes, through accelerate: data-parallel updates that equal those of one process with the whole batch.

Each process holds the whole model and a part of the samples; gradients are summed over processes after the last
micro-batch, so that nothing is wrapped around the network and techniques may call it as often as they like.
Start with ``accelerate launch`` or ``torchrun``. Under FSDP2 the network's weights are sharded too (`sharding`).
DeepSpeed is refused: a run under it cannot be resumed from safetensors.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, reduce
from torch import Tensor

from surveylib.alignment.sharding import ShardingError, settings


class AlignmentError(RuntimeError):
    """A run that cannot go on, or cannot begin as it was asked for: not finite, out of memory, a way of distribution
    that is refused, a missing package. What was checkpointed stands."""


def leave_group() -> None:
    """At the normal end of a program: lets go of the others before the interpreter is taken down, since gloo's
    threads, where they still hold tensors then, abort the process (pytorch/pytorch#179291). After an error it stays:
    the others may wait in a call that never comes, leaving would wait for them, and the launcher ends all."""
    if torch.distributed.is_initialized() and getattr(sys, "last_value", None) is None:
        torch.distributed.destroy_process_group()


class Processes:
    """Who we are among the processes, and the few collective operations that the engine needs.

    Attributes:
        rank, count: of this process. device: where accelerate puts it. main: whether this is rank 0.
        sharding: how the network's weights are sharded over the processes; None: each has them whole.

    Raises:
        AlignmentError: started under DeepSpeed, or under FSDP in a way that is not supported.
    """

    def __init__(self, cpu: bool | None = None) -> None:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true", "yes"):
            raise AlignmentError("DeepSpeed is not supported: a run under it could not be resumed from safetensors. "
                                 "Use plain data parallelism (`accelerate config`: multi-GPU, no DeepSpeed), or, "
                                 "for weights that one device cannot hold, --use_fsdp --fsdp_version 2")
        try:
            sharding = settings()
        except ShardingError as error:
            raise AlignmentError(str(error)) from error
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        cpu = not torch.cuda.is_available() if cpu is None else cpu
        self._state = PartialState(cpu=cpu) if launched or PartialState._shared_state else None
        if launched:
            atexit.unregister(leave_group)  # once, however many of these there are
            atexit.register(leave_group)
        self.rank = self._state.process_index if self._state else 0
        self.count = self._state.num_processes if self._state else 1
        self.device = self._state.device if self._state else torch.device("cpu" if cpu else "cuda")
        if self.device.type == "cpu":
            self.device = torch.device("cpu")  # accelerate numbers it, as if there were several
        self.sharding = sharding if self.count > 1 else None

    @property
    def main(self) -> bool:
        """Rank 0."""
        return self.rank == 0

    def share(self, total: int) -> Tensor:
        """Global numbers of this process's samples: a contiguous block.

        Raises:
            ValueError: `total` does not divide.
        """
        if total % self.count:
            raise ValueError(f"{total} samples do not divide over {self.count} processes; choose a multiple")
        each = total // self.count
        return torch.arange(self.rank * each, (self.rank + 1) * each)

    def gather(self, tensor: Tensor) -> Tensor:
        """Tensors of all processes, concatenated in the order of ranks, on the tensor's own device."""
        if self.count == 1:
            return tensor
        return gather(tensor.to(self.device).contiguous()).to(tensor.device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        return tensor if self.count == 1 else reduce(tensor.to(self.device), "sum").to(tensor.device)

    def sum_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sum of named numbers over processes; a name that a process lacks counts zero there."""
        if self.count == 1:
            return dict(numbers)
        names = sorted(set(gather_object(list(numbers))))
        total = self.sum(torch.tensor([numbers.get(name, 0.0) for name in names], dtype=torch.float64))
        return dict(zip(names, total.tolist()))

    def mean_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Mean of named numbers over the processes that have them."""
        sums = self.sum_numbers(numbers)
        have = self.sum_numbers(dict.fromkeys(numbers, 1.0))
        return {name: value / have[name] for name, value in sums.items()}

    def most(self, samples: Tensor, total: int) -> int:
        """How many of these global numbers the process that has most of them has."""
        return int(torch.bincount(samples // (total // self.count)).max())

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Adds up ``.grad`` over processes in place, in one message. Gradients of sharded weights were averaged on
        their way: they are only multiplied."""
        if self.count == 1:
            return
        if self.sharding is not None:
            for p in parameters:
                if p.grad is not None:
                    p.grad.mul_(self.count)
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = self.sum(torch.cat([p.grad.flatten().float() for p in parameters]))
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad.copy_(part.view_as(p))

    def wait(self) -> None:
        """Until all processes are here."""
        if self._state:
            self._state.wait_for_everyone()
