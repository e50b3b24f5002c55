"""The table of the Gaussian world as a file: rows with what they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from surveylib.evaluation.rows import FORMAT, SAMPLER, hardware, rule_hash, versions
from surveylib.techniques.registry import technique_class


def stamped(rows: Sequence[dict], seed: int) -> dict[str, Any]:
    """The rows with what they depend on, for a file: seed, hashes of the rules and of the sampler, versions."""
    names = sorted({row["technique"] for row in rows})
    return {"format": FORMAT, "seed": seed, "hashes": _hashes(names), "hardware": hardware(), "versions": versions(),
            "rows": list(rows)}


def changed(stored: dict[str, Any]) -> list[str]:
    """Techniques of a stored table (and "sampler") whose code is another one now."""
    now = _hashes([name for name in stored["hashes"] if name != "sampler"])
    return [name for name, value in now.items() if stored["hashes"][name] != value]


def _hashes(names: Sequence[str]) -> dict[str, str]:
    return {name: rule_hash(technique_class(name).__module__) for name in names} | {"sampler": rule_hash(*SAMPLER)}
