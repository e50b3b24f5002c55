"""Result rows: one JSON file for each (technique, seed, setting), with everything needed to repeat it.

A row is written as soon as its run was validated, and again when it was tested; each time in one rename. It names what
it depends on by hashes, so that a row measured with other code, another model or other prompts can be told.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from surveylib.alignment.expected import recorded_kind
from surveylib.alignment.preferences import SMALL
from surveylib.alignment.run import Recipe, rehearsed
from surveylib.alignment.settings import HELD_OUT, PROXIES
from surveylib.diffusion.zoo import CHECKPOINTS
from surveylib.evaluation.protocol import Budget, Protocol, choices, prompts_of
from surveylib.rewards.learned import store
from surveylib.runs.checkpoint import write_atomically
from surveylib.techniques.contract import Preset, Sampler
from surveylib.techniques.registry import preset, technique_class

FORMAT = 1
BASE = "base"
RULES = "surveylib.techniques"
SAMPLER = ("surveylib.diffusion.rollout", "surveylib.diffusion")  # schedules, dynamics and guidance included
JUDGE = ("surveylib.worlds.shapes.judge", "surveylib.worlds.shapes")
REPOSITORY = Path(__file__).resolve().parents[2]
ROWS, PICTURES = REPOSITORY / "book" / "measurements", "pictures"
LIBRARIES = ("surveylib", "torch", "diffusers", "transformers", "peft", "numpy")
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """One run to be measured. technique "base" is the model as it is; `setting` is then the model's name."""

    technique: str
    setting: str
    seed: int
    scale: str
    budget: Budget
    protocol: Protocol

    @property
    def name(self) -> str:
        """Of the row's file, without ending."""
        return f"{self.technique}-seed{self.seed}-{self.setting}"

    @property
    def kind(self) -> str:
        """ "base", "training" or "sampling"."""
        if self.technique == BASE:
            return BASE
        return "sampling" if issubclass(technique_class(self.technique), Sampler) else "training"

    @property
    def recipe(self) -> Recipe:
        """Of the training run."""
        chosen = choices(self.technique, self.scale)[self.setting]
        return Recipe(self.technique, self.scale, signal=self.proxy, seed=self.seed, config=dict(chosen.config),
                      training=dict(chosen.training))

    @property
    def proxy(self) -> str | None:
        """The protocol's reward; None where the preset's signal stays: no reward named, or recorded preferences."""
        recorded = self.kind == "training" and recorded_kind(technique_class(self.technique)) is not None
        return None if recorded else self.protocol.proxy

    @property
    def preset(self) -> Preset:
        """With the setting's changes and the protocol's reward."""
        chosen = choices(self.technique, self.scale)[self.setting]
        found = preset(self.technique, self.scale).override(chosen.config, **chosen.training)
        return found if self.proxy is None else replace(found, reward=self.proxy)

    def identity(self) -> Row:
        """What the row says before anything was run. Two runs with the same identity are the same run."""
        head = {"format": FORMAT, "technique": self.technique, "kind": self.kind, "setting": self.setting,
                "seed": self.seed, "scale": self.scale, "budget": asdict(self.budget),
                "protocol": asdict(self.protocol)}
        if self.kind == BASE:
            parts = {"config": {}, "training": None, "model": self.setting, "reward": None, "source": ""}
            rule = None
            del head["budget"]  # nothing is trained or searched: the row holds for every budget
        else:
            found = self.preset
            model, reward = model_and_reward(found, self.scale)
            parts = {"config": asdict(found.config), "training": asdict(found.training), "model": model,
                     "reward": reward, "source": found.source}
            rule = rule_hash(technique_class(self.technique).__module__)
            if self.kind == "sampling":
                parts["training"] = None
        hashes = {"rule": rule, "model": artefact_hash(parts["model"]), "reward": artefact_hash(parts["reward"]),
                  "gold": rule_hash(*JUDGE) if self.scale == "toy" else None, "sampler": rule_hash(*SAMPLER),
                  "held_out": artefacts_hash(watchers(self.scale, self.protocol))}
        for part in ("validation", "test"):
            texts = [prompt.text for prompt in prompts_of(part, self.scale, self.protocol)]
            hashes[part] = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
        return json.loads(json.dumps({**head, **parts, "hashes": hashes}))

    @property
    def run_folder(self) -> str:
        """Name of the folder with the checkpoints: other code, settings, model, reward or budget are another run."""
        identity = self.identity()
        parts = [identity.get(key) for key in ("config", "training", "model", "reward", "budget")]
        hashes = [identity["hashes"][key] for key in ("rule", "model", "reward", "sampler")]
        return f"{self.name}-{hashlib.sha256(json.dumps([parts, hashes]).encode()).hexdigest()[:16]}"


# -- hashes ------------------------------------------------------------------------------------------------------------
@cache
def rule_hash(module: str, package: str = RULES) -> str:
    """16 hexadecimal digits of the source of a technique and of all that it imports, directly or not, from `package`.

    Comments, docstrings and presets do not count: they change no rule (a row holds the settings it ran with).
    """
    seen: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        spec = None if name in seen else importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        seen[name] = ast.dump(bare(tree))
        todo += [found for found in imports(tree, spec, package) if found == package
                 or found.startswith(package + ".")]
    text = "\n".join(f"{name} {seen[name]}" for name in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bare(tree: ast.Module) -> ast.Module:
    """The tree without docstrings and without ``X.PRESETS = ...``."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(
                    first.value.value, str):
                node.body = node.body[1:]
    tree.body = [n for n in tree.body if not (isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Attribute)
                                              and n.targets[0].attr == "PRESETS")]
    return tree


def imports(tree: ast.Module, spec: Any, package: str) -> Iterator[str]:
    """Names of modules that may be imported; names in a ``from`` import may be modules too."""
    inside = spec.name if spec.submodule_search_locations else spec.name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = importlib.util.resolve_name("." * node.level + (node.module or ""), inside)
            yield home
            for alias in node.names:
                if _is_module(f"{home}.{alias.name}", package):
                    yield f"{home}.{alias.name}"


def _is_module(name: str, package: str) -> bool:
    try:
        return name.startswith(package) and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def artefact_hash(name: str | None) -> str | None:
    """16 hexadecimal digits of a shipped model's or reward's folder, or of the shipped records; None for
    others."""
    if name is None:
        return None
    if name == "shapes-small":
        return path_hash(SMALL)
    for place in (CHECKPOINTS / name, store.CHECKPOINTS / name):
        if place.exists():
            return path_hash(place)
    return None


def watchers(scale: str, protocol: Protocol) -> list[str]:
    """Names of what looks at the pictures beside proxy and gold: the rewards of the scale that are not optimised, the
    network of the features."""
    rewards = {PROXIES[scale], *HELD_OUT[scale]} - {protocol.proxy or PROXIES[scale]}
    return [*sorted(rewards), protocol.features]


def artefacts_hash(names: Sequence[str]) -> str | None:
    """One hash of what `artefact_hash` says of several names; None where none of them is shipped."""
    found = [artefact_hash(name) for name in names]
    return hashlib.sha256(" ".join(map(str, found)).encode()).hexdigest()[:16] if any(found) else None


@cache
def path_hash(path: Path) -> str:
    """16 hexadecimal digits of a file, or of the names and contents of a folder's files (texts for people left out)."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        if file.name not in ("README.md", "scores.json"):
            digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


# -- where it ran ------------------------------------------------------------------------------------------------------
def hardware() -> dict[str, Any]:
    """What the seconds of a row belong to."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        processor = lines[0].partition(":")[2].strip() if lines else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


# -- files -------------------------------------------------------------------------------------------------------------
def in_repository(name: str) -> Path:
    """A file or folder of the repository that this code lies in, wherever the program was started.

    Raises:
        FileNotFoundError: it is not there, as where the library was installed without the repository.
    """
    path = REPOSITORY / name
    if not path.exists():
        raise FileNotFoundError(f"{name} is not beside the library: measured rows come with a clone of the repository; "
                                "elsewhere, name a folder")
    return path


def write_row(folder: Path, row: Row) -> Path:
    """Writes a row under its name; a reader sees the old one or the new one."""
    path = Path(folder) / f"{row['technique']}-seed{row['seed']}-{row['setting']}.json"
    write_atomically(path, json.dumps(row, indent=1) + "\n")
    return path


def read_row(path: Path, kind: str = "result row") -> Row:
    """A row, or another result file of this format.

    Raises:
        ValueError: damaged, or of another format; names the file.
    """
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
        if row["format"] != FORMAT:
            raise ValueError(f"it has format {row['format']}, this version reads {FORMAT}")
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no {kind} ({error}); delete it and measure again") from error
    return row


def read_rows(folder: Path) -> dict[str, Row]:
    """All rows of a folder by name of their file, without ending."""
    return {path.stem: read_row(path) for path in sorted(Path(folder).glob("*-seed*-*.json"))}


def need_rows(folder: Path) -> dict[str, Row]:
    """`read_rows` of a folder that must hold some.

    Raises:
        FileNotFoundError: it holds none. ValueError: a damaged row.
    """
    if not (rows := read_rows(folder)):
        raise FileNotFoundError(f"no result rows in {folder}: `surveylib measure` makes them")
    return rows


def differences(row: Row, identity: Row) -> list[str]:
    """What of a row's identity is no longer so: "rule", "model", "config" ...; empty where the row still holds."""
    old, new = dict(row.get("hashes", {})), identity["hashes"]
    found = [name for name in new if old.get(name) != new[name]]
    found += [key for key in identity if key not in ("hashes", "source") and row.get(key) != identity[key]]
    return found


def stale(folder: Path = ROWS) -> dict[str, list[str]]:
    """Rows that are out of date, by name of their file, with what changed since they were measured.

    A row's budget and protocol are its own; what is compared is the technique's code and settings, the model, the
    reward, and the prompts that its protocol stands for.
    """
    found = {}
    for name, row in read_rows(folder).items():
        reasons = stale_reasons(row)
        if reasons:
            found[name] = reasons
    return found


def stale_measurements(folder: Path = ROWS) -> list[tuple[str, str, Budget, tuple[int, ...], Protocol]]:
    """What to measure again: (technique, scale, budget, seeds, protocol) of techniques that have a row out of date.

    Seeds are all that the technique has at this scale, budget and protocol: its setting is chosen with the first.

    Raises:
        FileNotFoundError: no row there.
    """
    rows = need_rows(folder)
    changed, seeds = set(stale(folder)), defaultdict(set)
    old = set()
    for name, row in rows.items():
        if row["technique"] == BASE:  # measured again with any technique
            continue
        key = (row["technique"], row["scale"], tuple(sorted(row["budget"].items())),
               json.dumps(row["protocol"], sort_keys=True))
        seeds[key].add(row["seed"])
        if name in changed:
            old.add(key)
    return [(technique, scale, Budget(**dict(budget)), tuple(sorted(seeds[technique, scale, budget, protocol])),
             Protocol(**json.loads(protocol))) for technique, scale, budget, protocol in sorted(old)]


def stale_reasons(row: Row) -> list[str]:
    """Why a row is out of date; empty where it is not."""
    try:
        budget = Budget(**row["budget"]) if "budget" in row else Budget(1, 1)
        plan = Plan(row["technique"], row["setting"], row["seed"], row["scale"], budget, Protocol(**row["protocol"]))
        return differences(row, plan.identity())
    except (KeyError, TypeError, ValueError, ImportError) as error:
        return [f"can no longer be made: {error}"]


def model_and_reward(chosen: Preset, scale: str) -> tuple[str, str]:
    """Names of a preset's model and reward at a scale; a rehearsal takes the tiny ones of the same classes."""
    found = rehearsed(chosen) if scale == "rehearsal" else chosen
    return found.model, found.reward
