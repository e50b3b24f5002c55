"""Where the pictures of toy preference data come from: renderings with planted faults, or samples of a model.

A source takes prompts and gives k pictures for each, from several "models" of different quality, as public preference
data sets do. Every picture is a function of (seed, prompt, number of the picture).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from surveylib.diffusion.zoo import load_model
from surveylib.worlds.shapes.data import Example, change_one, drop_one, pictures_of, scene_for
from surveylib.worlds.shapes.prompts import Spec
from surveylib.worlds.shapes.suites import SuitePrompt, drawer, picture_seed


@dataclass(frozen=True)
class Pictures:
    """k pictures for each of n prompts.

    Attributes:
        images: (n * k, 3, 64, 64) in [0, 1], the pictures of one prompt one after the other.
        models: n * k names of what made them.
    """

    images: Tensor
    models: tuple[str, ...]


Source = Callable[[Sequence[SuitePrompt], int, int], Pictures]  # (prompts, pictures a prompt, seed)


@dataclass(frozen=True)
class Hand:
    """How a pretended model draws: the chance that one attribute is wrong, that a second one is, and that a picture has
    each of the flaws "pale", "blurred" and "off-centre" of `data.FLAWS`."""

    wrong: float
    again: float
    flaw: float


HANDS = {
    "drawn-good": Hand(0.15, 0.0, 0.05),
    "drawn-fair": Hand(0.45, 0.2, 0.15),
    "drawn-poor": Hand(0.8, 0.5, 0.3),
}


def _drawn(spec: Spec, hand: Hand, rng: np.random.Generator) -> Example:
    """A scene that shows the spec, or the spec with one or two attributes changed, and the flaws of its picture."""
    shown = spec
    for chance in (hand.wrong, hand.again):
        if rng.random() < chance:
            shown = change_one(shown, rng) or shown
        else:
            break
    if shown is spec and rng.random() < hand.again:  # a thing may be missing too
        shown = _without_a_group(spec, rng)
    flaws = tuple(flaw for flaw in ("pale", "blurred", "off-centre") if rng.random() < hand.flaw)
    scene = scene_for(shown, rng)
    if "off-centre" in flaws:
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(8, 14)
        scene = scene.shifted(far * np.cos(angle), far * np.sin(angle))
    return Example("", shown, scene, flaws)


def _without_a_group(spec: Spec, rng: np.random.Generator) -> Spec:
    dropped = drop_one(spec, rng)
    return dropped if dropped is not None and dropped.count < spec.count else spec


def _hand_of(names: Sequence[str], k: int, seed: int, prompt: SuitePrompt) -> list[str]:
    """k models for a prompt: all of them in turn, from a random one on."""
    start = np.random.default_rng(picture_seed(seed, prompt, -1)).permutation(len(names))
    return [names[start[i % len(names)]] for i in range(k)]


@dataclass(frozen=True)
class Renderings:
    """Scenes drawn by the renderer, right, wrong or degraded. Cheap: no model is run."""

    hands: Mapping[str, Hand] = field(default_factory=lambda: HANDS)

    def __call__(self, prompts: Sequence[SuitePrompt], k: int, seed: int) -> Pictures:
        images, models = [], []
        for prompt in prompts:
            for i, name in enumerate(_hand_of(list(self.hands), k, seed, prompt)):
                rng = np.random.default_rng(picture_seed(seed, prompt, i))
                images.append(pictures_of([_drawn(prompt.spec, self.hands[name], rng)], rng))
                models.append(name)
        return Pictures(torch.cat(images), tuple(models))


# (guidance, steps) that stand for models of different quality.
SETTINGS = {"cfg 1, 10 steps": (1.0, 10), "cfg 3, 6 steps": (3.0, 6), "cfg 3, 20 steps": (3.0, 20),
            "cfg 6, 20 steps": (6.0, 20)}


@lru_cache(maxsize=1)
def _loaded(name: str) -> object:
    return load_model(name)


@dataclass(frozen=True)
class ModelSamples:
    """Samples of a text-to-image model at several guidance strengths and numbers of steps.

    Attributes:
        model: a name for `load_model`, or a loaded model.
        settings: name -> (guidance, steps).
        batch: pictures drawn at once.
        progress: show a bar.
    """

    model: object = "shapes-sd"
    settings: Mapping[str, tuple[float, int]] = field(default_factory=lambda: SETTINGS)
    batch: int = 64
    progress: bool = False

    def __call__(self, prompts: Sequence[SuitePrompt], k: int, seed: int) -> Pictures:
        model = _loaded(self.model) if isinstance(self.model, str) else self.model
        kind = getattr(model, "name", type(model).__name__)
        work = [(p, i, name) for p in prompts for i, name in enumerate(_hand_of(list(self.settings), k, seed, p))]
        images: list[Tensor | None] = [None] * len(work)
        bar = tqdm(total=len(work), disable=not self.progress, desc="drawing")
        for name, (guidance, steps) in self.settings.items():
            draw = drawer(model, steps, guidance)
            rows = [row for row, (*_, setting) in enumerate(work) if setting == name]
            for part in (rows[start : start + self.batch] for start in range(0, len(rows), self.batch)):
                seeds = [picture_seed(seed, work[row][0], work[row][1]) for row in part]
                generators = [torch.Generator().manual_seed(s) for s in seeds]
                drawn = draw([work[row][0].text for row in part], generators).detach().float().cpu().clamp(0, 1)
                for row, picture in zip(part, drawn):
                    images[row] = picture
                bar.update(len(part))
        bar.close()
        return Pictures(torch.stack(images), tuple(f"{kind}, {name}" for *_, name in work))


@dataclass(frozen=True)
class Mixture:
    """The pictures of a prompt from several sources in turn: picture i from source i modulo their number."""

    sources: tuple[Source, ...]

    def __call__(self, prompts: Sequence[SuitePrompt], k: int, seed: int) -> Pictures:
        parts = [source(prompts, -(-k // len(self.sources)), seed) for source in self.sources]
        each = -(-k // len(self.sources))
        picks = [(i % len(parts), p * each + i // len(parts)) for p in range(len(prompts)) for i in range(k)]
        images = torch.stack([parts[s].images[row] for s, row in picks])
        return Pictures(images, tuple(parts[s].models[row] for s, row in picks))


SOURCES: dict[str, Callable[[], Source]] = {
    "rendered": Renderings,
    "model": ModelSamples,
    "mixed": lambda: Mixture((ModelSamples(), Renderings())),
}


def source(name: str) -> Source:
    """A source by name.

    Raises:
        ValueError: unknown name; the message lists those that exist.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source of pictures {name!r}; known: {', '.join(SOURCES)}, or a function of "
                         "(prompts, pictures a prompt, seed)")
    return SOURCES[name]()


__all__ = ["HANDS", "SETTINGS", "SOURCES", "Hand", "Mixture", "ModelSamples", "Pictures", "Renderings", "Source",
           "source"]
