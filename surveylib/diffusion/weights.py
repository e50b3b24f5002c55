"""Named weights of one network: policy, reference, and copies such as old and ema.

A technique speaks of several models that differ only in their weights. Here there is one network, and a name says with
which weights it computes:

- ``policy``: the weights that are trained, always present;
- ``reference``: where training started. With LoRA it is the adapter switched off and costs nothing; without LoRA it
  is a copy, taken by ``model.snapshot("reference")`` before the first update;
- any other name, such as ``old`` (the policy that sampled the data) or ``ema``: a copy of the trainable weights.

``with model.weights("old"): ...`` computes with the copy and puts the policy back at the end. The swap exchanges
pointers, not numbers, so a graph built before it still backpropagates through the policy it was built with.

Weights may be sharded over processes (FSDP2, `surveylib.alignment.sharding`): copies are then cut alike, and a swap
copies numbers, since what gathers the weights for a call knows the place of its part.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class NamedWeights:
    """Mixin for a model with an attribute ``network`` (the ``nn.Module`` that is trained)."""

    network: nn.Module

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The network's parameters that require a gradient, by name."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The network's parameters that require a gradient, as an optimiser takes them."""
        return list(self.named_trainable_parameters().values())

    @property
    def snapshots(self) -> dict[str, dict[str, Tensor]]:
        """The stored copies: name of the copy -> name of the parameter -> values."""
        return self.__dict__.setdefault("_snapshots", {})

    def snapshot(self, name: str) -> None:
        """Store the present trainable weights under `name`; an older copy of that name is replaced.

        Raises ValueError for the name ``policy``, for ``reference`` when LoRA already provides it, and when nothing is
        trainable.
        """
        if name == "policy" or (name == "reference" and lora_layers(self.network)):
            raise ValueError(f"{name!r} needs no copy: it is always there; choose another name, such as 'old' or 'ema'")
        parameters = self.named_trainable_parameters()
        if not parameters:
            raise ValueError("nothing to copy: no parameter of the network is trainable")
        self.snapshots[name] = {key: p.detach().clone() for key, p in parameters.items()}

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """Compute with the weights `name` inside the ``with`` block.

        Meant for forward passes; a backward pass through what was computed inside belongs inside too if gradient
        checkpointing is on, since checkpointing computes the forward pass again.

        Raises KeyError when there is no copy of that name, and lists what exists.
        """
        if name == "policy":
            yield
        elif name == "reference" and lora_layers(self.network):
            with _adapters_off(self.network):
                yield
        else:
            with _swapped(self.network, self._stored(name)):
                yield

    def reference(self):
        """Short for ``weights("reference")``."""
        return self.weights("reference")

    @torch.no_grad()
    def update_ema(self, name: str = "ema", decay: float = 0.999) -> None:
        """copy <- decay * copy + (1 - decay) * policy, for the copy `name` (taken now if it does not exist)."""
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must be in [0, 1], got {decay}")
        if name not in self.snapshots:
            self.snapshot(name)
        parameters = dict(self.network.named_parameters())
        for key, value in self._stored(name).items():
            value.lerp_(parameters[key].detach(), 1.0 - decay)

    @torch.no_grad()
    def restore(self, name: str) -> None:
        """Overwrite the policy with the copy `name`; the copy stays."""
        parameters = dict(self.network.named_parameters())
        for key, value in self._stored(name).items():
            parameters[key].copy_(value)

    def load_snapshots(self, snapshots: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over copies saved earlier from ``model.snapshots``; they replace all present ones.

        Raises ValueError when a copy does not fit the network.
        """
        parameters = dict(self.network.named_parameters())
        for name, values in snapshots.items():
            bad = [k for k, v in values.items() if k not in parameters or parameters[k].shape != v.shape]
            if bad:
                raise ValueError(f"the copy {name!r} does not fit this network: {bad[0]} ({len(bad)} such parameters)")
        self.__dict__["_snapshots"] = {
            name: {k: sharded_like(v.detach().clone(), parameters[k]) for k, v in values.items()}
            for name, values in snapshots.items()
        }

    def _stored(self, name: str) -> dict[str, Tensor]:
        if name in self.snapshots:
            return self.snapshots[name]
        exists = ["policy", *(["reference"] if lora_layers(self.network) else []), *self.snapshots]
        raise KeyError(f"no weights named {name!r}; there are {', '.join(exists)}. model.snapshot(name) takes a copy")


def lora_layers(network: nn.Module) -> list[nn.Module]:
    """The layers of `network` that carry a peft adapter."""
    peft = sys.modules.get("peft.tuners.tuners_utils")  # slow to import, and without it no adapter can be there
    return [] if peft is None else [module for module in network.modules() if isinstance(module, peft.BaseTunerLayer)]


@contextmanager
def _adapters_off(network: nn.Module) -> Iterator[None]:
    layers = [layer for layer in lora_layers(network) if not layer.disable_adapters]
    # peft switches requires_grad together with the adapter, also for adapters that were frozen on purpose
    flags = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def _swapped(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    parameters = dict(network.named_parameters())
    missing = [key for key in values if key not in parameters]
    if missing:
        raise ValueError(f"the copy was taken of another set of weights: {missing[0]} is not in the network any more")
    kept = {key: parameters[key].detach().clone() if is_sharded(parameters[key]) else parameters[key].data
            for key in values}
    for key, value in values.items():
        _put(parameters[key], value)
    try:
        yield
    finally:
        for key, value in kept.items():
            _put(parameters[key], value)


def _put(parameter: nn.Parameter, value: Tensor) -> None:
    if is_sharded(parameter):
        with torch.no_grad():
            parameter.copy_(value)
    else:
        parameter.data = value


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes; all of them must ask. A tensor that is not cut is returned as it is.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value`, whole, with the place and type of `parameter` and cut as that is: this process's part."""
    value = value.to(parameter.device, parameter.dtype)
    if not is_sharded(parameter) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor  # slow to import, and without it nothing is sharded

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
