"""What a side-by-side measurement fixes before it begins: budget, prompts, and which settings each technique may try.

Budget. Training is counted in network-call equivalents (a backward pass counts as two calls, `Ledger.equivalents`), so
that every fine-tuning technique spends the same work however it spends it. Methods at test time are counted in the same
unit for each picture.

Settings. Every technique tries the same number, at most three, and the proxy chooses among them on validation prompts.
Fine-tuning techniques try their preset as it is, with three times the learning rate, and with a third of it. A
test-time method tries its constant of strength as it is, doubled and halved, at about the same cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surveylib.alignment.settings import setting
from surveylib.runs.randomness import seed_of
from surveylib.techniques.contract import Sampler
from surveylib.techniques.registry import preset, technique_class
from surveylib.worlds.shapes.suites import SuitePrompt, suite

MOST_SETTINGS = 3
RATES = {"preset": 1.0, "fast": 3.0, "slow": 1 / 3}  # in the order in which they are tried
STRENGTHS = {"preset": 1.0, "strong": 2.0, "weak": 0.5}


@dataclass(frozen=True)
class Budget:
    """training: equivalents a run may spend. calls_per_picture: equivalents a picture may cost at test time; it bounds
    nothing by force, but what is above is marked in the report."""

    training: int
    calls_per_picture: int

    def __post_init__(self) -> None:
        if self.training < 1 or self.calls_per_picture < 1:
            raise ValueError(f"training={self.training} and calls_per_picture={self.calls_per_picture} must be at "
                             "least 1 network-call equivalent")


# "toy": about three minutes of training on one free core with AVX-512, where a call of the shipped UNet for a picture
# takes 3.3 ms; five to ten on an older core that shares its memory with another run.
BUDGETS = {"toy": Budget(50_000, 320), "rehearsal": Budget(400, 64), "single": Budget(500_000, 1_000),
           "full": Budget(5_000_000, 6_400)}


@dataclass(frozen=True)
class Protocol:
    """How pictures are drawn and looked at.

    Attributes:
        test, validation: prompts a category of the suites "held-out" and "train" (beyond the Shapes world: prompts).
        pictures: a test prompt; validation draws one.
        steps: of the base sampler (DDIM without noise, the model's guidance); None is the model's own.
        kl_prompts: test prompts that the KL of the path is estimated on. kl_steps: of that stochastic rollout.
        features: "shapes-clip", "random", or a CLIPModel for the metrics of distributions and diversity.
        sheet: fixed prompts whose pictures are kept. batch: pictures drawn at once.
        proxy: the reward that every technique with a reward optimises and that chooses settings; None is the scale's.
    """

    test: int = 20
    validation: int = 6
    pictures: int = 2
    steps: int | None = None
    kl_prompts: int = 28
    kl_steps: int = 20
    features: str = "shapes-clip"
    sheet: int = 6
    batch: int = 64
    proxy: str | None = None

    def __post_init__(self) -> None:
        for name in ("test", "validation", "pictures", "kl_prompts", "kl_steps", "sheet", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


# "toy": a reward that a budget of minutes can raise. It sees no prompt; the scale's own proxy, which does, is held out.
PROTOCOLS = {"toy": Protocol(proxy="shapes-aesthetic"), "rehearsal": Protocol(4, 4, 2, 2, 2, 2, "random"),
             "single": Protocol(12, 12, 4, None, 8, 30, "openai/clip-vit-large-patch14"),
             "full": Protocol(12, 12, 4, None, 12, 50, "openai/clip-vit-large-patch14")}


@dataclass(frozen=True)
class Prompt:
    """A prompt of a measurement: its text, its category or "", and what the judge reads (None without a judge)."""

    text: str
    category: str = ""
    spec: SuitePrompt | None = None


def prompts_of(part: str, scale: str, protocol: Protocol) -> list[Prompt]:
    """The prompts of "test" or "validation", the same at every call.

    Validation prompts are of those that training may show, in a draw of their own; test prompts are held out.
    """
    if part not in ("test", "validation"):
        raise ValueError(f"unknown part {part!r}: choose 'test' or 'validation'")
    if scale == "toy":
        found = (suite("held-out", protocol.test) if part == "test"
                 else suite("train", protocol.validation, seed=seed_of("validation") % 2**31))
        return [Prompt(p.text, p.category, p) for p in found]
    place = setting(scale)
    texts = place.test_prompts if part == "test" else place.train_prompts
    return [Prompt(text) for text in texts[: protocol.test if part == "test" else protocol.validation]]


@dataclass(frozen=True)
class Choice:
    """Changes to a preset: fields of the technique's and of the engine's settings."""

    config: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def choices(technique: str, scale: str) -> dict[str, Choice]:
    """The settings a technique may try: label -> changes, three for each.

    Raises:
        TechniqueError: an unknown technique.
    """
    base = preset(technique, scale)
    if not issubclass(technique_class(technique), Sampler):
        return {label: Choice(training={"lr": base.training.lr * rate}) for label, rate in RATES.items()}
    config = base.config
    if technique == "best_of_n":  # no strength: the same calls as many rough candidates or as few fine ones
        shapes = {"preset": (1, 1), "fine": (0.5, 2), "rough": (2, 0.5)}
        return {label: Choice({"n": max(1, round(config.n * n)), "steps": max(1, round(config.steps * steps))})
                for label, (n, steps) in shapes.items()}
    names = next((n for n in (("strength",), ("rho", "mu"), ("lr",)) if all(hasattr(config, k) for k in n)), ())
    if hasattr(config, "rho"):
        names = ("rho", "mu")  # its `strength` multiplies both as well
    cheaper = CHEAPER.get(technique, {}) if scale == "toy" else {}
    return {label: Choice({**cheaper, **{name: getattr(config, name) * factor for name in names}})
            for label, factor in STRENGTHS.items()}


# Presets that spend more than the budget of a picture, cut to it.
CHEAPER: dict[str, dict[str, Any]] = {"dno": {"iterations": 5}, "ipgo": {"epochs": 11}}
