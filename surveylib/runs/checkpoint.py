"""Checkpoints that are never half written: safetensors for tensors, JSON for the rest, no pickle anywhere.

A checkpoint is one folder. It is written beside its final place and moved there in one rename; the previous one is kept
until then. Reading names the damaged file when there is one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE_FILE, TENSOR_FILE = "state.json", "tensors.safetensors"


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + f".{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def pack(tree: Any, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split nested dicts and lists into JSON values and named tensors; tensors leave {"tensor": name} behind.

    Dict keys that are integers (as in an optimiser's state) are kept by a marker. Raises TypeError for anything else.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, name: str) -> Any:
        if isinstance(node, Tensor):
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(node, dict):
            return {"dict": [[k, walk(v, f"{name}/{k}")] for k, v in node.items()]}
        if isinstance(node, (list, tuple)):
            return {"list": [walk(v, f"{name}/{i}") for i, v in enumerate(node)], "tuple": isinstance(node, tuple)}
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        kind = type(node).__name__
        raise TypeError(f"{name or 'the tree'} holds a {kind}; a checkpoint holds tensors and JSON values")

    return walk(tree, prefix), tensors


def unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "dict" in node:
        return {k: unpack(v, tensors) for k, v in node["dict"]}
    values = [unpack(v, tensors) for v in node["list"]]
    return tuple(values) if node["tuple"] else values


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `state` (nested dicts, lists, tensors, JSON values) as one folder, atomically.

    An older one that a crash left under another name stays until the new one is whole.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    tree, tensors = pack(state)
    save_file(tensors, beside / TENSOR_FILE)
    write_atomically(beside / STATE_FILE, json.dumps(tree))
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """Read a checkpoint, or None when there is none. If a crash fell between two renames, the older one is read.

    Reading moves nothing, so that several processes may read at once.

    Raises:
        ValueError: a file of the checkpoint is missing or damaged; the message names it.
    """
    folder = Path(folder)
    if not folder.exists():
        folder = folder.with_name(folder.name + ".old")
        if not folder.exists():
            return None
    file = folder / STATE_FILE
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        file = folder / TENSOR_FILE
        tensors = load_file(file)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{file} is missing or damaged ({error}); delete {folder} to start anew") from error
    return unpack(tree, tensors)


def random_state() -> dict[str, Tensor]:
    """State of torch's global generators, to go into a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Set what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
