"""What a run costs, counted where it is spent: network calls, backward passes, decodes, reward calls, seconds.

`Ledger.watch` hangs counters on a model and on rewards for the length of a ``with`` block. Everything is counted in
samples: a network call on a batch of 8 counts 8, under classifier-free guidance 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("network", "backward", "decode", "encode", "reward")


@dataclass
class Ledger:
    """Counts since the start of a run.

    Attributes:
        network_calls: samples that went through the network, forward.
        backward_passes: samples whose network call a gradient went back through.
        decodes, encodes: latents made into pictures, and back.
        reward_calls: pictures scored, all rewards together.
        seconds: by part of `PARTS`, wall clock, of the calls that were watched; no second counts in two parts.
            "network" is forward only, and includes forward passes inside a reward's gradient only where they are
            network calls.
        wall: seconds in all; the owner of the run sets it.
    """

    network_calls: int = 0
    backward_passes: int = 0
    decodes: int = 0
    encodes: int = 0
    reward_calls: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    wall: float = 0.0

    @property
    def equivalents(self) -> int:
        """Cost in network-call equivalents: a backward pass counts as two forward passes."""
        return self.network_calls + 2 * self.backward_passes

    @property
    def overhead(self) -> float:
        """Wall time over the time of the watched parts; 1 means that nothing else took time. nan before any work."""
        inside = sum(self.seconds.values())
        return self.wall / inside if inside else float("nan")

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint or a result row."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        for name, value in state.items():
            setattr(self, name, dict(value) if isinstance(value, dict) else value)

    def copy(self) -> Ledger:
        """A snapshot."""
        copy = Ledger()
        copy.load_state_dict(self.state_dict())
        return copy

    def since(self, before: Ledger) -> Ledger:
        """What was spent after the snapshot `before`."""
        seconds = {part: value - before.seconds[part] for part, value in self.seconds.items()}
        counts = {name: getattr(self, name) - getattr(before, name)
                  for name in ("network_calls", "backward_passes", "decodes", "encodes", "reward_calls", "wall")}
        return Ledger(**counts, seconds=seconds)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the block's wall time to a part, without what other parts took in it: under gradient checkpointing the
        network runs again inside a backward pass, and its seconds count once."""
        before, began = sum(self.seconds.values()), time.perf_counter()
        try:
            yield
        finally:
            inside = sum(self.seconds.values()) - before
            self.seconds[part] += time.perf_counter() - began - inside

    @contextmanager
    def watch(self, model: Any = None, *rewards: Any) -> Iterator[Ledger]:
        """Counts everything that `model` (a `DiffusionModel`) and `rewards` do inside the block. Blocks may be nested
        with other ledgers; a combined reward counts once, as itself. Calls of ``torch.autograd.grad`` take their time
        as "backward"; who calls ``Tensor.backward`` times it (`timed`)."""
        with ExitStack() as stack:
            stack.enter_context(self._timed_gradients())
            if model is not None:
                stack.enter_context(self._watch_network(model.network))
                stack.enter_context(self._wrapped(model, "decode", "decode", "decodes"))
                stack.enter_context(self._wrapped(model, "encode_images", "encode", "encodes"))
            for reward in {id(r): r for r in rewards if hasattr(r, "score")}.values():
                stack.enter_context(self._wrapped(reward, "score", "reward", "reward_calls"))
            yield self

    @contextmanager
    def _timed_gradients(self) -> Iterator[None]:
        inner = torch.autograd.grad

        @wraps(inner)
        def grad(*args: Any, **options: Any) -> Any:
            with self.timed("backward"):
                return inner(*args, **options)

        torch.autograd.grad = grad
        try:
            yield
        finally:
            torch.autograd.grad = inner

    @contextmanager
    def _watch_network(self, network: nn.Module) -> Iterator[None]:
        began: list[tuple[float, float]] = []  # the time, and the seconds of all parts until then

        def before(module: nn.Module, args: Any) -> None:
            began.append((time.perf_counter(), sum(self.seconds.values())))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            start, counted = began.pop()
            inside = sum(self.seconds.values()) - counted  # a gradient that the network itself takes
            self.seconds["network"] += time.perf_counter() - start - inside
            tensor = first_tensor(output)
            rows = len(tensor)
            self.network_calls += rows
            if tensor.requires_grad:
                tensor.register_hook(lambda grad: self._went_back(rows))

        handles = [network.register_forward_pre_hook(before), network.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _went_back(self, rows: int) -> None:
        self.backward_passes += rows

    @contextmanager
    def _wrapped(self, owner: Any, method: str, part: str, counter: str) -> Iterator[None]:
        inner: Callable = getattr(owner, method)
        own = vars(owner).get(method)

        @wraps(inner)
        def counted(first: Tensor, *args: Any, **options: Any) -> Any:
            setattr(self, counter, getattr(self, counter) + len(first))
            with self.timed(part):
                return inner(first, *args, **options)

        setattr(owner, method, counted)
        try:
            yield
        finally:
            if own is None:
                delattr(owner, method)
            else:
                setattr(owner, method, own)


def first_tensor(output: Any) -> Tensor:
    """The first tensor of a network's output: the tensor itself, ``output.sample``, or the first of a tuple.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    for value in output if isinstance(output, (tuple, list)) else getattr(output, "values", tuple)():
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"a network returned {type(output).__name__} without a tensor in it")
