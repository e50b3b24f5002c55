"""Learned rewards on disk: `reward.json` and `reward.safetensors` in one folder.

Only what was trained is stored; the trunk is named, with a fingerprint of its weights, and must be the same again. The
JSON is written last and carries the checksum of the tensors, so that a half-written folder is recognised.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from surveylib.diffusion.zoo import git_checkout
from surveylib.rewards.contract import Reward
from surveylib.rewards.learned.model import LearnedReward, RewardModel
from surveylib.rewards.learned.trunk import Trunk, load_trunk
from surveylib.runs.checkpoint import write_atomically

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
DESCRIPTION, TENSORS = "reward.json", "reward.safetensors"
FORMAT = 1


def write_reward(folder: str | Path, description: dict, tensors: dict[str, Tensor]) -> None:
    """Write a description (JSON values) and its tensors; other files of the folder stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    beside = folder / f"{TENSORS}.{os.getpid()}.tmp"
    beside.write_bytes(data)
    os.replace(beside, folder / TENSORS)
    description = {"format": FORMAT, **description, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def read_reward(folder: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """What `write_reward` wrote.

    Raises:
        FileNotFoundError: no learned reward there, or its weight file is missing.
        ValueError: damaged, half written or of another format.
        All of them name the file and what restores it.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        remedy = f"{_remedy(folder / DESCRIPTION)}\n" if folder.name in shipped_rewards() else ""
        raise FileNotFoundError(f"no learned reward in {folder}: {DESCRIPTION} is missing. {remedy}"
                                f"Shipped rewards: {', '.join(shipped_rewards()) or 'none'}")
    if not (folder / TENSORS).is_file():
        raise FileNotFoundError(f"missing: {folder / TENSORS}, the weights of a learned reward. "
                                f"{_remedy(folder / TENSORS)}")
    file = folder / DESCRIPTION
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        file = folder / TENSORS
        data = file.read_bytes()
        tensors = load(data)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"damaged: {file} ({error}). {_remedy(file)}") from error
    if description.get("format") != FORMAT:
        raise ValueError(f"{folder / DESCRIPTION} has format {description.get('format')}; this version reads {FORMAT}")
    if hashlib.sha256(data).hexdigest() != description["sha256"]:
        raise ValueError(f"damaged: {folder / TENSORS} is not the file that {DESCRIPTION} was written for. "
                         f"{_remedy(folder)}")
    return description, tensors


def _remedy(path: Path) -> str:
    """How to restore a file or folder of a reward: the command for a shipped one."""
    if path.resolve().is_relative_to(CHECKPOINTS.resolve()):
        return git_checkout(path)
    return "Train it again and save it again, or copy the folder again from where it came from"


def shipped_rewards() -> list[str]:
    """Names of the shipped learned rewards, sorted; also of one that has lost one of its two files."""
    return sorted({path.parent.name for file in (DESCRIPTION, TENSORS) for path in CHECKPOINTS.glob(f"*/{file}")})


def save_learned(model: nn.Module, folder: str | Path, name: str = "", facts: dict | None = None) -> None:
    """Save a trained model.

    Args:
        model: `RewardModel` or `step_aware.StepAwareModel`.
        name: for result rows; default: the folder's name.
        facts: JSON values kept in the description (what it was trained on, scores).

    Raises:
        ValueError: a weight is not finite; nothing is written.
    """
    tensors = model.trained()
    bad = [key for key, value in tensors.items() if not value.isfinite().all()]
    if bad:
        raise ValueError(f"not saved: {bad[0]} and {len(bad) - 1} more hold NaN or infinity")
    write_reward(folder, {"name": name or Path(folder).name, **model.describe(), "facts": facts or {}}, tensors)


def fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put stored tensors into a model; every trained one must be there, in its shape.

    Raises:
        ValueError: names or shapes that differ.
    """
    wanted = model.trained()
    wrong = sorted(set(wanted) ^ set(tensors)) or [k for k, v in wanted.items() if v.shape != tensors[k].shape]
    if wrong:
        raise ValueError(f"{folder} does not fit its description: {wrong[0]} and {len(wrong) - 1} more weights differ")
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(tensors[key])


def trunk_for(description: dict, trunk: Trunk | None) -> Trunk:
    """The trunk that a description names, or the given one, checked against the fingerprint.

    Raises:
        ValueError: other weights than the reward was trained on. FileNotFoundError: see `load_trunk`.
    """
    wanted = description["trunk"]
    if trunk is None:
        trunk = load_trunk(wanted["name"], tuple(wanted["unlock"]))
    elif trunk.unlock != tuple(wanted["unlock"]):
        trunk = Trunk(trunk.clip, trunk.processor, trunk.name, tuple(wanted["unlock"]))
    if trunk.fingerprint != wanted["fingerprint"]:
        raise ValueError(f"the trunk {trunk.name or 'given'!r} ({trunk.fingerprint}) is not the one that this "
                         f"reward was trained on ({wanted['name']!r}, {wanted['fingerprint']}): train the reward again")
    return trunk


def load_learned(folder: str | Path, trunk: Trunk | None = None) -> Reward:
    """A learned reward by folder, or by the name of a shipped one.

    Args:
        folder: what `save_learned` or `personal.PersonalReward.save` wrote.
        trunk: the trunk, where it is not to be loaded by its name; must have the weights that were trained on, and must
            not be shared with a reward that unlocked layers of it.

    Returns:
        The reward, in evaluation mode, weights frozen; the gradient reaches the pixels.

    Raises:
        FileNotFoundError: nothing there, or a file of it or of its trunk is missing. ValueError: damaged, or another
            trunk. ModelUnavailable: its trunk is damaged.
    """
    path = Path(folder)
    if not path.is_dir() and str(folder) in shipped_rewards():
        path = CHECKPOINTS / str(folder)
    description, tensors = read_reward(path)
    kind = description["kind"]
    if kind == "personal":
        from surveylib.rewards.learned.personal import PersonalReward

        return PersonalReward.from_stored(description, tensors, trunk_for(description, trunk))
    if kind == "step-aware":
        from surveylib.rewards.learned.step_aware import StepAwareReward

        return StepAwareReward.from_stored(description, tensors, path)
    model = RewardModel(trunk_for(description, trunk), description["head"], **description["options"])
    fill(model, tensors, path)
    return LearnedReward(model.requires_grad_(False).eval(), description["name"])
