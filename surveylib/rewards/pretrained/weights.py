"""Where weights come from, and clear errors when they are not there or do not fit."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

NAMED = 5  # parameters that an error lists


def pretrained(cls: Any, source: str | Path, local_only: bool = False, **options: Any) -> Any:
    """`cls.from_pretrained(source)`: a folder or the name of a model of the Hugging Face hub.

    Raises:
        FileNotFoundError: neither on this machine nor (unless `local_only`) to be downloaded.
    """
    try:
        return cls.from_pretrained(str(source), local_files_only=local_only, **options)
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"no {cls.__name__} at {str(source)!r}. Where there is a network, fetch it once by "
            f"`hf download {source}`; elsewhere copy that folder and pass its path"
        ) from error


def checkpoint_file(path: str | Path | None, repository: str, filename: str, local_only: bool = False) -> Path:
    """The file of an official checkpoint: `path` itself, else `filename` of a repository of the Hugging Face hub.

    Raises:
        FileNotFoundError: not there.
    """
    how = f"fetch it by `hf download {repository} {filename}` and pass path="
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no checkpoint file at {str(path)!r}; {how}")
        return Path(path)
    try:
        return Path(hf_hub_download(repository, filename, local_files_only=local_only))
    except OSError as error:
        raise FileNotFoundError(f"{filename} of {repository} is not on this machine; {how}") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file or of a file of torch.save; a nested "state_dict" is unwrapped.

    Only tensors are read, no code is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or it holds Python objects instead of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects, which are not read because they can run code; load it with the official "
            "code and save model.state_dict() with torch.save"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {error}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a dict of named tensors")
    return state


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:NAMED]) + (f" ... ({len(names)} in all)" if len(names) > NAMED else "")


def load_exactly(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Loads every parameter of a module, float32.

    Raises:
        ValueError: parameters that are missing, left over, or of another shape.
    """
    own = module.state_dict()
    problems = []
    if missing := own.keys() - state.keys():
        problems.append(f"missing {_few(missing)}")
    if unknown := state.keys() - own.keys():
        problems.append(f"unknown {_few(unknown)}")
    shapes = [f"{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}" for n in own.keys() & state.keys()
              if state[n].shape != own[n].shape]
    if shapes:
        problems.append(f"shapes: {_few(shapes)}")
    if problems:
        raise ValueError(f"this is not a checkpoint of {what}: {'; '.join(problems)}")
    module.load_state_dict({name: value.float() if value.is_floating_point() else value
                            for name, value in state.items()})
