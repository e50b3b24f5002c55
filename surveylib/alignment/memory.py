"""Memory: what an epoch keeps, and the network's blocks computed twice to need less of it."""

from __future__ import annotations

from torch import nn

from surveylib.techniques.contract import Batch, TechniqueError

CHECKPOINT = "checkpoint"  # the setting's name, as where a technique has one of its own
# Settings of memory and time: the update is the same sum, up to the rounding of its order. A run may change them.
FREE = ("micro_batch", "sample_batch", CHECKPOINT)


def stored_bytes(batch: Batch) -> int:
    """Bytes of an epoch's batch: paths, pictures for the log, conditions. Steps that are views of one path count once.
    """
    conditions = [batch.condition.tensors, batch.condition.negative or {}]
    kept = [value for named in (batch.samples, batch.steps, *conditions) for value in named.values()]
    kept += [] if batch.pictures is None else [batch.pictures]
    storages = [value.untyped_storage() for value in kept]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def can_recompute(network: nn.Module) -> bool:
    """Whether the network has diffusers' gradient checkpointing."""
    return hasattr(network, "enable_gradient_checkpointing") and getattr(
        network, "_supports_gradient_checkpointing", True)


def recompute(network: nn.Module) -> None:
    """From now on the network's blocks run again in the backward pass, and their activations are not kept.

    Raises:
        TechniqueError: a network that has no such blocks.
    """
    if not can_recompute(network):
        raise TechniqueError(f"{CHECKPOINT}=True: {type(network).__name__} has no gradient checkpointing. Leave it "
                             "off, and lower micro_batch where memory is short")
    network.enable_gradient_checkpointing()
