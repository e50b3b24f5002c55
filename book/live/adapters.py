"""The adapters that the page offers, and the command that takes them from the measured survey.

    PYTHONPATH=book python -m live.adapters draft ddpo
    surveylib align draft --out runs/bright --reward brightness --scale toy --set epochs=24 --set lr=0.002
    PYTHONPATH=book python -m live.adapters --run runs/bright --name bright --title "DRaFT on brightness" --hacked

Each is a folder: LoRA weights in diffusers' format (half precision) and ``card.json``:

======================  ==============================================================================
``technique``           name in the registry; ``title``, ``label``: how the page calls it, long and short
``chapter``             its chapter, as the catalog spells it
``reward``              what it was trained on; ``seed``, ``setting``, ``epochs``, ``calls``
``model_hash``          of the model that it fits; a test asks for new adapters when the model changes
``line``                one sentence; ``figures``: what was measured; ``hacked``: whether it cheats
======================  ==============================================================================
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from surveylib import catalog
from surveylib.alignment.run import ADAPTER, Recipe, read_recipe
from surveylib.diffusion.lora import WEIGHT_FILE, load_lora, lora_strength, save_lora
from surveylib.diffusion.zoo import load_model
from surveylib.evaluation.drawing import draw_plain
from surveylib.evaluation.report import chosen_settings
from surveylib.evaluation.rows import artefact_hash, read_rows
from surveylib.rewards.registry import load_reward
from surveylib.techniques.registry import technique_class
from surveylib.worlds.shapes.judge import judge
from surveylib.worlds.shapes.suites import suite

ADAPTERS = Path(__file__).resolve().parent / "adapters"
CARD = "card.json"
NEEDED = ("technique", "title", "label", "chapter", "reward", "seed", "line", "hacked")


@dataclass(frozen=True)
class Adapter:
    """A folder and its card."""

    folder: Path
    card: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def label(self) -> str:
        """Short title."""
        return self.card["label"]


def shipped(folder: Path = ADAPTERS) -> list[Adapter]:
    """The adapters of a folder: by the share of test pictures that pass, what hacked its reward last.

    Raises:
        ValueError: a card that lacks something, or weights that are missing.
    """
    found = []
    for path in sorted(folder.glob(f"*/{CARD}")):
        card = json.loads(path.read_text(encoding="utf-8"))
        lacking = [key for key in NEEDED if key not in card]
        if lacking or not (path.parent / WEIGHT_FILE).is_file():
            raise ValueError(f"{path.parent.name}: the adapter lacks {', '.join(lacking) or WEIGHT_FILE}")
        found.append(Adapter(path.parent, card))
    return sorted(found, key=lambda a: (a.card["hacked"], -a.card.get("figures", {}).get("pass", [0, 0])[1], a.name))


def store(weights: Path, folder: Path, card: dict[str, Any]) -> None:
    """Write an adapter in half precision, metadata kept, and its card.

    Args:
        weights: a file of `save_lora`. folder: of the new adapter.
    """
    with safe_open(weights, framework="pt") as file:
        tensors = {key: file.get_tensor(key).to(torch.float16) for key in file.keys()}  # noqa: SIM118 (no mapping)
        described = file.metadata()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHT_FILE, metadata=described)
    (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def entry(technique: str) -> tuple[str, str]:
    """(name, chapter) of a technique in the catalog.

    Raises:
        ValueError: no card's module is this technique's.
    """
    for card in catalog.cards():
        if card.module and card.module.rpartition(".")[2] == technique:
            return card.name, card.chapter
    raise ValueError(f"{technique}: no card of the catalog names a module of this technique")


def chosen_row(technique: str, rows: Path, seed: int) -> dict[str, Any]:
    """The tested row of a technique: the setting that the measured survey chose.

    Raises:
        ValueError: not tested yet.
    """
    found = read_rows(rows)
    row = found.get(f"{technique}-seed{seed}-{chosen_settings(found).get(technique)}", {})
    if "test" not in row:
        raise ValueError(f"{technique} has no tested row with seed {seed} in {rows}: `surveylib measure --technique "
                         f"{technique}` makes one")
    return row


def from_measurement(technique: str, rows: Path, work: Path, target: Path, seed: int = 0) -> Path:
    """Take the chosen checkpoint of a measured technique into ``target/<technique>``; returns the folder.

    Raises:
        ValueError: no tested row, or one whose checkpoint is gone or was measured with other code.
    """
    from surveylib.evaluation.budgeted import train
    from surveylib.evaluation.protocol import Budget, Protocol
    from surveylib.evaluation.rows import Plan, differences

    row = chosen_row(technique, rows, seed)
    protocol = Protocol(**{k: tuple(v) if isinstance(v, list) else v for k, v in row["protocol"].items()})
    plan = Plan(technique, row["setting"], seed, row["scale"], Budget(**row["budget"]), protocol)
    folder = work / plan.run_folder
    if differences(row, plan.identity()) or not (folder / "checkpoint").is_dir():
        raise ValueError(f"{folder} holds no checkpoint of this row and this code: measure {technique} again")
    trained = train(plan.recipe, row["budget"]["training"], folder)
    weights = save_lora(trained.model, folder / ADAPTER)
    store(weights, target / technique, measured_card(row, rows, trained.epochs))
    return target / technique


def measured_card(row: dict[str, Any], rows: Path, epochs: int) -> dict[str, Any]:
    """The card of a measured adapter."""
    name, chapter = entry(row["technique"])
    base = json.loads((rows / f"base-seed{row['seed']}-{row['model']}.json").read_text())["test"]["means"]
    means = row["test"]["means"]
    figures = {key: [round(m[key]["value"], 3) for m in (base, means)] for key in ("proxy", "gold", "pass")}
    calls = row["training_run"]["ledger"]["equivalents"]
    kind = "learned reward" if "reward" in technique_class(row["technique"]).needs else "preferences"
    line = (f"Trained on the {kind} {row['reward']}. Of the survey's test pictures {figures['pass'][1]:.0%} show what "
            f"was asked for, of the base model's {figures['pass'][0]:.0%}.")
    return {"technique": row["technique"], "title": name, "label": name, "chapter": chapter, "reward": row["reward"],
            "model_hash": row["hashes"]["model"], "seed": row["seed"], "setting": row["setting"],
            "epochs": epochs, "calls": calls, "line": line,
            "figures": figures, "hacked": False}


def from_run(run: Path, target: Path, card: dict[str, Any]) -> Path:
    """Take the adapter of a finished `surveylib align` run; returns its folder.

    Raises:
        ValueError: the run is not finished. FileNotFoundError: no run there.
    """
    recipe = read_recipe(run)
    weights = run / ADAPTER / WEIGHT_FILE
    if not weights.is_file():
        raise ValueError(f"{run} has no adapter yet: `surveylib resume {run}` goes on with it")
    _, chapter = entry(recipe.technique)
    figures = figures_of(recipe, run / ADAPTER)
    (low, high), (before, after) = figures[recipe.signal], figures["pass"]
    line = (f"Trained on {recipe.signal} alone, which goes from {low:.2f} to {high:.2f}; pictures of held-out prompts "
            f"that show what was asked for go from {before:.0%} to {after:.0%}.")
    full = {"technique": recipe.technique, "chapter": chapter, "reward": recipe.signal, "seed": recipe.seed,
            "model_hash": artefact_hash(recipe.preset().model), "setting": {**recipe.config, **recipe.training},
            "line": line, "figures": figures, **card}
    store(weights, target, full)
    return target


def figures_of(recipe: Recipe, adapter: Path, per_category: int = 8) -> dict[str, list[float]]:
    """What the optimised reward and the judge say of held-out prompts, without and with an adapter: [base, adapter]."""
    prompts = suite("held-out", per_category)
    texts, reward, found = [p.text for p in prompts], load_reward(recipe.signal), {recipe.signal: [], "pass": []}
    for strength in (0.0, 1.0):
        model = load_model(recipe.preset().model)
        load_lora(model, adapter)
        with lora_strength(model, strength):
            pictures, _ = draw_plain(model, texts, seed=recipe.seed)
        found[recipe.signal].append(round(float(reward.score(pictures, texts).mean()), 3))
        found["pass"].append(round(sum(v.passed for v in judge(pictures, texts)) / len(texts), 3))
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Take trained adapters into the book's page.")
    parser.add_argument("techniques", nargs="*", help="measured techniques")
    parser.add_argument("--rows", type=Path, default=Path("book/measurements"))
    parser.add_argument("--work", type=Path, default=Path("out/measure"))
    parser.add_argument("--run", type=Path, help="folder of a run of `surveylib align` instead")
    for name in ("--name", "--title"):
        parser.add_argument(name, help="of the run's card")
    parser.add_argument("--hacked", action="store_true")
    given = parser.parse_args()
    if given.run:
        card = {"title": given.title, "label": given.title, "hacked": given.hacked}
        print(from_run(given.run, ADAPTERS / given.name, card))
    for technique in given.techniques:
        print(from_measurement(technique, given.rows, given.work, ADAPTERS))


if __name__ == "__main__":
    main()
