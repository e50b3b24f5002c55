"""Weights sharded over processes: FSDP2 (torch's ``fully_shard``, arXiv 2304.11277) as accelerate asks for it.

    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 4 -m surveylib.cli align ...

Of each parameter of the trained network a process keeps its part; a block is put together for its call and let go
after it, and gradients arrive summed and cut. Names, copies and adapters stay what they are (`NamedWeights`), and what
is written to a file is gathered first, on rank 0. Decoder, text encoders and rewards stay whole on each process.

A call of the network is a meeting of all processes: each must make as many as the others. The engine sees to that.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor, nn

from surveylib.diffusion.weights import gathered, is_sharded

ASKED = "ACCELERATE_USE_FSDP"


class ShardingError(ValueError):
    """FSDP was asked for in a way that is not supported."""


def settings() -> FullyShardedDataParallelPlugin | None:
    """What accelerate's launcher asks for in the environment; None: weights are not cut.

    Raises:
        ShardingError: version 1 of FSDP, or weights kept on the CPU; says what to pass instead.
    """
    if os.environ.get(ASKED, "").lower() not in ("1", "true", "yes"):
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ShardingError("FSDP version 1 is not supported: it renames and flattens the weights that adapters and "
                            "copies are made of. Pass --fsdp_version 2 to accelerate launch")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() in ("1", "true", "yes"):
        raise ShardingError("FSDP with weights kept on the CPU is not supported: pass --fsdp_offload_params false, and "
                            "save memory by an adapter (lora_rank) or more processes")
    # transformers looks at the variable that this sets: frozen models, too, must be read on every process.
    return FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)


def shard(network: nn.Module, plugin: FullyShardedDataParallelPlugin) -> None:
    """Cuts the parameters of `network` in place, block by block; its calls, names and class attributes stay.

    Blocks are the classes that ``--fsdp_transformer_layer_cls_to_wrap`` names, else those that diffusers keeps on one
    device (`_no_split_modules`), else the network is one block.

    Raises:
        ShardingError: a block class is named that the network does not have.
    """
    from torch.distributed.fsdp import fully_shard

    names = plugin.transformer_cls_names_to_wrap or getattr(network, "_no_split_modules", None) or []
    found = [module for module in network.modules() if type(module).__name__ in names and module is not network]
    if plugin.transformer_cls_names_to_wrap and not found:
        kinds = sorted({type(module).__name__ for module in network.modules()})
        raise ShardingError(f"no module of the network is a {', '.join(names)}; there are {', '.join(kinds)}")
    for module in [*reversed(found), network]:  # inner blocks first
        # Also the outermost lets go after its call: weights are swapped between calls, in the parts.
        fully_shard(module, reshard_after_forward=True)


def gathered_tree(tree: Any, keep: bool) -> Any:
    """Nested dicts and lists with every cut tensor put together, on the CPU; all processes must call, and those that do
    not `keep` get None in its place."""
    if isinstance(tree, dict):
        return {key: gathered_tree(value, keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(gathered_tree(value, keep) for value in tree)
    if isinstance(tree, Tensor) and is_sharded(tree):
        value = gathered(tree.detach())
        return value.cpu() if keep else None
    return tree


def gathered_network(network: nn.Module, keep: bool) -> nn.Module | None:
    """A plain copy of a diffusers network whose weights are sharded, on the CPU, to be saved; all processes must call,
    and those that do not `keep` get None."""
    from torch.distributed.fsdp import FSDPModule

    state = gathered_tree(network.state_dict(), keep)
    if not keep:
        return None
    kind = next(k for k in type(network).__mro__ if not issubclass(k, FSDPModule))
    with torch.device("meta"):
        plain = kind.from_config(network.config)
    plain.load_state_dict(state, assign=True)
    return plain
