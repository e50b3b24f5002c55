"""Techniques by name. A name stands for "module:class"; the module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from surveylib.runs.scale import current_scale
from surveylib.techniques.contract import Preset, Sampler, Technique, TechniqueError

_HOME = "surveylib.techniques"
_CLASSES: dict[str, str] = {
    "rwr": f"{_HOME}.reward_weighted.rwr:RWR",
    "raft": f"{_HOME}.reward_weighted.raft:RAFT",
    "ddpo": f"{_HOME}.policy_gradient.ddpo:DDPO",
    "dpok": f"{_HOME}.policy_gradient.dpok:DPOK",
    "flow_grpo": f"{_HOME}.policy_gradient.flow_grpo:FlowGRPO",
    "refl": f"{_HOME}.reward_gradient.refl:ReFL",
    "draft": f"{_HOME}.reward_gradient.draft:DRaFT",
    "adjoint_matching": f"{_HOME}.reward_gradient.adjoint_matching:AdjointMatching",
    "diffusion_dpo": f"{_HOME}.preference.diffusion_dpo:DiffusionDPO",
    "diffusion_kto": f"{_HOME}.preference.diffusion_kto:DiffusionKTO",
    "d3po": f"{_HOME}.preference.d3po:D3PO",
    "rankdpo": f"{_HOME}.preference.rankdpo:RankDPO",
    "best_of_n": f"{_HOME}.test_time.best_of_n:BestOfN",
    "fk_steering": f"{_HOME}.test_time.fk_steering:FKSteering",
    "tfg": f"{_HOME}.test_time.gradient_guidance:TFG",
    "dps": f"{_HOME}.test_time.gradient_guidance:DPS",
    "freedom": f"{_HOME}.test_time.gradient_guidance:FreeDoM",
    "mpgd": f"{_HOME}.test_time.gradient_guidance:MPGD",
    "universal_guidance": f"{_HOME}.test_time.gradient_guidance:UniversalGuidance",
    "dno": f"{_HOME}.test_time.dno:DNO",
    "ipgo": f"{_HOME}.test_time.ipgo:IPGO",
}
# The code path of "single" on tiny models: the same settings, cut to a few steps (a preset "rehearsal" wins).
_REHEARSED = {"epochs": 2, "samples": 4, "updates": 1, "passes": 1, "micro_batch": 4, "sample_batch": 4,
              "lora_rank": 2, "lora_alpha": 4, "warmup": 0, "autocast": None}
_SHORT = {"steps": 4, "trained": 2}


def technique_names() -> tuple[str, ...]:
    """Names of all techniques and samplers."""
    return tuple(_CLASSES)


def technique_class(name: str) -> type[Technique] | type[Sampler]:
    """The class of a name.

    Raises:
        TechniqueError: an unknown name; the message lists the known ones.
    """
    if name not in _CLASSES:
        raise TechniqueError(f"unknown technique {name!r}; known: {', '.join(_CLASSES)}")
    module, _, attribute = _CLASSES[name].partition(":")
    return getattr(import_module(module), attribute)


def preset(name: str, scale: str | None = None) -> Preset:
    """A technique's settings at a scale ("rehearsal": those of "single", shortened, on a tiny model of its class).

    Raises:
        TechniqueError: an unknown technique, or a scale that it has no preset for. ValueError: an unknown scale.
    """
    scale = current_scale(scale)
    presets = technique_class(name).PRESETS
    if scale == "rehearsal" and scale not in presets:
        single = presets["single"]
        group = min(single.training.samples_per_prompt, 2)
        short = {name: value for name, value in _SHORT.items() if hasattr(single.config, name)}
        return single.override(short, **{**_REHEARSED, "samples_per_prompt": group})
    if scale not in presets:
        raise TechniqueError(f"{name} has no preset for {scale!r}; there are {', '.join(presets)}")
    return presets[scale]


def make(name: str, config: Any = None) -> Technique | Sampler:
    """A technique or sampler with a configuration (default: its own)."""
    return technique_class(name)(config)
