"""Over-optimisation: proxy, gold and KL while a technique goes on, and the laws of Gao et al. (arXiv 2210.10760).

Two ways to press on the proxy, with the same base model, prompts and judges:

* best-of-n: N pictures a prompt of the base model; every n up to N comes from the same pictures, KL = log n - (n-1)/n;
* training: one run, looked at again and again as its budget grows; KL is that of the paths.

The fits are those of `surveylib.rewards.learned.overoptimisation`. These studies read gold many times, on validation
prompts: what they find must not choose anything that is tested on the test prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surveylib.diffusion.model import DiffusionModel
from surveylib.evaluation.budgeted import train
from surveylib.evaluation.drawing import draw_plain, expanded, noisy_dynamics
from surveylib.evaluation.metrics.faithfulness import faithfulness
from surveylib.evaluation.path_kl import path_kl
from surveylib.evaluation.protocol import PROTOCOLS, Prompt, Protocol, prompts_of
from surveylib.evaluation.rows import ROWS, Plan, differences, hardware, read_row, versions
from surveylib.rewards.contract import Reward
from surveylib.rewards.learned.overoptimisation import BestOfN, GaoFit, best_of_n, fit_gao
from surveylib.rewards.registry import load_reward
from surveylib.runs.checkpoint import write_atomically
from surveylib.runs.randomness import generators
from surveylib.techniques.paths import score_all

CURVES, CURVE = ROWS / "curves", "training curve"


@dataclass(frozen=True, eq=False)
class Point:
    """One look at a model.

    equivalents: spent on training so far. kl: mean KL of its paths from the base model's, nats.
    proxy, gold: (P,) means by prompt.
    """

    equivalents: int
    kl: float
    proxy: np.ndarray
    gold: np.ndarray


def look_at(
    model: DiffusionModel, prompts: Sequence[Prompt], proxy: Reward, pictures: int, protocol: Protocol, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Proxy and gold (the judge's soft score) of `pictures` pictures a prompt, each (P, pictures)."""
    shown = expanded(prompts, pictures)
    texts = [prompt.text for prompt in shown]
    images, _ = draw_plain(model, texts, seed=seed, steps=protocol.steps, batch=protocol.batch)
    scores = score_all(proxy, images, texts, protocol.batch).cpu().double().numpy()
    gold = faithfulness(images, [prompt.spec for prompt in shown]).soft
    return scores.reshape(len(prompts), pictures), gold.reshape(len(prompts), pictures)


def best_of_n_curves(
    model: DiffusionModel, proxy: Reward, *, n: int = 64, protocol: Protocol | None = None, seed: int = 0
) -> BestOfN:
    """Proxy and gold of best-of-1 to best-of-n on the validation prompts of the Shapes world."""
    protocol = protocol or PROTOCOLS["toy"]
    return best_of_n(*look_at(model, prompts_of("validation", "toy", protocol), proxy, n, protocol, seed), seed=seed)


def training_curve(
    plan: Plan, proxy: Reward, budgets: Sequence[int], work: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[Point]:
    """One run of a fine-tuning technique, looked at before it starts and whenever a budget is spent.

    Args:
        plan: technique, setting, seed, protocol; its own budget is not used. proxy: what it optimises.
        budgets: rising numbers of network-call equivalents. work: folder of checkpoints; a killed run goes on.

    Raises:
        ValueError: budgets that do not rise, a plan that trains nothing, or another scale than "toy".
    """
    if plan.kind != "training" or plan.scale != "toy":
        raise ValueError(f"{plan.technique} at scale {plan.scale}: the curve needs a fine-tuning technique in the "
                         "Shapes world, where gold is known")
    if not budgets or any(b <= a for a, b in zip([0, *budgets], budgets)):
        raise ValueError(f"budgets={list(budgets)} must rise from above 0")
    prompts = prompts_of("validation", plan.scale, plan.protocol)
    folder = work / f"{plan.run_folder}-curve"
    for budget in budgets:
        trained = train(plan.recipe, budget, folder, say)
        if budget == budgets[0]:
            with trained.model.reference():
                yield Point(0, 0.0, *means(look_at(trained.model, prompts, proxy, plan.protocol.pictures,
                                                   plan.protocol, plan.seed)))
        kl = path_kl(trained.model, [p.text for p in prompts], dynamics=noisy_dynamics(trained.model),
                     steps=plan.protocol.kl_steps, batch=plan.protocol.batch,
                     generators=generators(range(len(prompts)), plan.seed, "kl"))
        scores = look_at(trained.model, prompts, proxy, plan.protocol.pictures, plan.protocol, plan.seed)
        yield Point(trained.ledger.equivalents, float(kl.mean()), *means(scores))


def stored_curve(
    plan: Plan, budgets: Sequence[int], folder: Path = CURVES, work: Path = Path("out/curves"),
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The curve of `training_curve` as a file of `folder`, measured where it is missing or no longer holds.

    Returns its dict: the identity of a result row, "budgets", and "points", which hold "equivalents", "kl", and the
    means by prompt "proxy" and "gold". Raises as `training_curve` does, and ValueError for a damaged file.
    """
    path, head = folder / f"{plan.name}.json", plan.identity() | {"budgets": list(budgets)}
    if path.is_file() and not differences(found := read_row(path, CURVE), head):
        return found
    found = head | {"points": []}
    for point in training_curve(plan, load_reward(head["reward"]), budgets, work, say):
        found["points"].append({"equivalents": point.equivalents, "kl": point.kl,
                                "proxy": point.proxy.round(5).tolist(), "gold": point.gold.round(5).tolist()})
        say(f"{plan.name}: {point.equivalents} calls, proxy {point.proxy.mean():.3f}, gold {point.gold.mean():.3f}")
    found |= {"hardware": hardware(), "versions": versions()}
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    return found


def points_of(curve: dict[str, Any]) -> list[Point]:
    """The points of a stored curve."""
    return [Point(p["equivalents"], p["kl"], np.array(p["proxy"]), np.array(p["gold"])) for p in curve["points"]]


def means(scores: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means by prompt of proxy and gold."""
    return scores[0].mean(1), scores[1].mean(1)


def fit_training(points: Sequence[Point], seed: int = 0) -> GaoFit:
    """R(d) = d (alpha - beta log d), d = sqrt(KL), on the gain in gold over the first point, by prompt.

    Raises:
        ValueError: fewer than two points beyond the first with different KL.
    """
    start = points[0].gold
    gain = np.stack([point.gold - start for point in points[1:]], 1)
    return fit_gao([point.kl for point in points[1:]], gain, "rl", seed)
