"""Train the shipped reward models of the Shapes world, each with a card made of what was measured.

    python -m surveylib.rewards.learned.toy --out runs/rewards --hardware "2 CPU cores"

==================  ===========================  ==============================================================
name                head                         learned from
==================  ===========================  ==============================================================
shapes-pickscore    PickScore (the proxy)        pairs of a pool of twelve people (twin of Pick-a-Pic)
shapes-imagereward  ImageReward (held out)       rankings of twelve other people, other prompts and pictures
shapes-aesthetic    aesthetic (prompt-blind)     mean votes of forty people on looks (twin of AVA)
==================  ===========================  ==============================================================

None of them sees the gold utility. Tests are pairs (of the aesthetic reward: mean votes) on held-out prompts and on the
generalisation suite, answered by the same people; the ceiling takes their choice probabilities (their expected votes),
exact but for drift over time. Copy the folders `model` to surveylib/rewards/learned/checkpoints under the reward's name
to ship them (`--ship`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from surveylib.feedback.pairs import PairData, to_pairs
from surveylib.rewards.learned.aesthetic import RatingData, to_ratings
from surveylib.rewards.learned.evaluate import evaluate_reward, margins
from surveylib.rewards.learned.evaluate_ratings import evaluate_ratings
from surveylib.rewards.learned.model import RewardModel
from surveylib.rewards.learned.store import DESCRIPTION, TENSORS, load_learned
from surveylib.rewards.learned.train import PRESETS, RewardConfig, train_reward
from surveylib.rewards.learned.trunk import SHAPES_CLIP, load_trunk
from surveylib.runs.checkpoint import write_atomically
from surveylib.worlds.shapes.annotators import Pool, gold_utility, make_pool
from surveylib.worlds.shapes.caption_choice import KINDS
from surveylib.worlds.shapes.data import change_one, scene_for
from surveylib.worlds.shapes.looks import look
from surveylib.worlds.shapes.preferences import make_twin
from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, is_held_out, parse, realise, sample_spec
from surveylib.worlds.shapes.render import render

PICTURES = 4  # of each prompt
TEST_PROMPTS = 150
SUITES = ("held-out", "generalisation")


@dataclass(frozen=True)
class ToyReward:
    """What one shipped reward is made of.

    head, options, unlock: of the model. twin: of `preferences.make_twin`; kind: which of its records.
    pool, seed: of the people and of prompts and pictures. people: how many answer.
    """

    head: str
    twin: str
    kind: str
    pool: int
    seed: int
    options: dict = field(default_factory=dict)
    unlock: tuple[int, int] = (2, 1)
    preset: str = "toy"
    people: int = 12


REWARDS = {
    "shapes-pickscore": ToyReward("pickscore", "pickapic", "pair", pool=0, seed=0, unlock=(2, 0)),
    "shapes-imagereward": ToyReward("imagereward", "imagereward", "ranking", pool=1, seed=1000, unlock=(1, 0),
                                    options={"hidden": (64, 16)}, preset="toy-scalar"),
    "shapes-aesthetic": ToyReward("aesthetic", "ava", "rating", pool=2, seed=2000, unlock=(2, 0),
                                  options={"hidden": (64, 16), "tokens": True}, preset="toy-scalar", people=40),
}  # fmt: skip


def category_of(prompt: str) -> str:
    """Category of a prompt; "other" for richer combinations."""
    return parse(prompt).category or "other"


def training_data(spec: ToyReward, prompts: int, pictures: str) -> tuple[PairData | RatingData, PairData | None]:
    """(examples, validation pairs or None), no prompt in both."""
    pool = make_pool(spec.people, seed=spec.pool)
    records = make_twin(spec.twin, prompts, PICTURES, spec.seed, pictures, "train", pool)
    records = [record for record in records if record.kind == spec.kind]
    if spec.kind == "rating":
        return to_ratings(records), None
    return to_pairs(records).split(0.1, spec.seed)


def test_records(spec: ToyReward, twin: str, split: str, pictures: str, prompts: int = TEST_PROMPTS):
    """(records of another seed on a suite of `SUITES`, the people who answered)."""
    pool = make_pool(spec.people, seed=spec.pool)
    return make_twin(twin, prompts, PICTURES, spec.seed + 7, pictures, split, pool), pool


@torch.no_grad()
def expected_votes(data: RatingData, pool: Pool) -> tuple[Tensor, Tensor]:
    """(what the people judge when they vote on looks, mean over them; picture quality), (M,) each in [0, 1]."""
    seen = look(data.images[data.row], data.prompts)
    return torch.stack([person.dimensions(seen)["aesthetics"] for person in pool.annotators]).mean(0), \
        seen.quality.overall


@torch.no_grad()
def choice_probabilities(pairs: PairData, pool: Pool) -> Tensor:
    """(M,) probability that a random person of the pool prefers the first, given that the answer is no tie."""
    keys = torch.stack([torch.cat([pairs.first, pairs.second]), pairs.prompt_ids.repeat(2)], 1)
    unique, where = keys.unique(dim=0, return_inverse=True)
    text = dict(zip(pairs.prompt_ids.tolist(), pairs.prompts))
    seen = look(pairs.images[unique[:, 0]], [text[i] for i in unique[:, 1].tolist()])
    shares = []
    for person in pool.annotators:
        first, second = person.utility(seen)[where].chunk(2)
        shares.append(person.pair_probabilities(first, second))  # (M, 3): first, tie, second
    wins, _, losses = torch.stack(shares).mean(0).unbind(-1)
    return wins / (wins + losses)


@torch.no_grad()
def gold_accuracy(reward, pairs: PairData) -> float:
    """How often the reward and the gold utility order a pair alike (pairs of equal gold left out)."""
    gold = torch.empty(0)
    for side in (pairs.first, pairs.second):
        gold = torch.cat([gold, gold_utility(pairs.images[side], pairs.prompts)])
    difference = gold[: len(pairs)] - gold[len(pairs) :]
    keep = difference.abs() > 1e-6
    agree = torch.sign(margins(reward, pairs)[keep]) * torch.sign(difference[keep])
    return (0.5 + 0.5 * agree).mean().item()


def attribute_pairs(kind: str, n: int = 200, seed: int = 0) -> tuple[list[str], Tensor, Tensor]:
    """Held-out prompts, clean pictures (n, 3, 64, 64) of them, and pictures in which one attribute is wrong.

    Args:
        kind: of the change, one of `caption_choice.KINDS` or "swap" (two things exchange their colours). Both pictures
            of a pair are drawn from the same random numbers, so that the rest stays alike where it can.

    Raises:
        ValueError: an unknown kind, or n below 1.
    """
    if kind not in (*KINDS, "swap") or n < 1:
        raise ValueError(f"kind {kind!r}, n {n}: kind is one of {', '.join((*KINDS, 'swap'))}; n is at least 1")
    rng = np.random.default_rng(seed)
    prompts, right, wrong = [], [], []
    while len(prompts) < n:
        category = (*ALL_CATEGORIES, None)[rng.integers(len(ALL_CATEGORIES) + 1)]
        spec = sample_spec(category, rng, background=0.5)
        twice = len({group.shape for group in spec.groups}) < len(spec.groups)
        if not is_held_out(spec) or spec.unseen_pair or twice or (other := change_one(spec, rng, kind)) is None:
            continue
        shared = int(rng.integers(2**32))
        prompts.append(realise(spec, rng))
        right.append(scene_for(spec, np.random.default_rng(shared)))
        wrong.append(scene_for(other, np.random.default_rng(shared)))
    return prompts, render(right), render(wrong)


@torch.no_grad()
def attribute_accuracy(reward, n: int = 200, seed: int = 0) -> dict[str, dict]:
    """How often a reward puts the right picture of `attribute_pairs` above the wrong one; equal scores count one half.

    Returns:
        {kind: {"rate", "pairs"}} for each kind of change, "swap" last.
    """
    table = {}
    for kind in (*KINDS, "swap"):
        prompts, right, wrong = attribute_pairs(kind, n, seed)
        above = torch.sign(reward.score(right, prompts) - reward.score(wrong, prompts))
        table[kind] = {"rate": round((0.5 + 0.5 * above).mean().item(), 4), "pairs": n}
    return table


def score(reward, spec: ToyReward, split: str, pictures: str, validation: PairData | None) -> dict:
    """The numbers of one suite: a report of pairs with the agreement with gold, or of ratings with that with quality.
    """
    if spec.kind == "rating":
        records, pool = test_records(spec, spec.twin, split, pictures)
        data = to_ratings(records)
        expected, quality = expected_votes(data, pool)
        found = evaluate_ratings(reward, data, expected).numbers()
        with_quality = evaluate_ratings(reward, replace(data, rating=quality), resamples=1).spearman.value
        return found | {"spearman with quality": round(with_quality, 4)}
    records, pool = test_records(spec, "pickapic", split, pictures)
    pairs = to_pairs(records)
    report = evaluate_reward(reward, pairs, validation, category_of, choice_probabilities(pairs, pool).numpy())
    return report.numbers() | {"agreement with gold": round(gold_accuracy(reward, pairs), 4)}


PAIR_PROTOCOL = """\
Pairs without a tie; score ties count one half; intervals resample prompts. The ceiling is the mean of max(p, 1 - p)
over the people's choice probabilities; no reward can be right more often. "single annotator" is how often one person's
choice is another's."""
RATING_PROTOCOL = """\
Correlations of the score with the mean vote, over pictures of all prompts; intervals resample
prompts. The ceiling is the rank correlation of what the people judge, without chance, with the mean of their votes."""


def pair_table(got: dict) -> str:
    """Markdown table of a suite's pairs."""
    rows = [("accuracy", got["accuracy"]), ("accuracy, mean over prompts", got["accuracy by prompt"])]
    rows += [(f"accuracy: {category}", value) for category, value in got["by category"].items()]
    lines = [f"| {label} | {100 * e['value']:.1f} % | {100 * e['low']:.1f} to {100 * e['high']:.1f} | {e['pairs']} |"
             for label, e in rows]
    for label in ("ceiling", "single annotator"):
        lines.append(f"| {label} | {'unknown' if got[label] is None else f'{100 * got[label]:.1f} %'} | | |")
    lines.append(f"| agreement with gold | {100 * got['agreement with gold']:.1f} % | | |")
    lines.append(f"| calibration error | {got['calibration']['ece']:.3f} | | |")
    return "| measure | value | 95 % interval | pairs |\n|---|---|---|---|\n" + "\n".join(lines)


def rating_table(got: dict) -> str:
    """Markdown table of a suite's mean votes."""
    lines = [f"| {label} | {e['value']:.3f} | {e['low']:.3f} to {e['high']:.3f} | {e['pictures']} |" for label, e in (
        ("Spearman's rank correlation", got["spearman"]), ("Pearson's correlation", got["pearson"]))]
    lines.append(f"| ceiling of the rank correlation | {got['ceiling']:.3f} | | |")
    lines.append(f"| rank correlation with picture quality | {got['spearman with quality']:.3f} | | |")
    return "| measure | value | 95 % interval | pictures |\n|---|---|---|---|\n" + "\n".join(lines)


def card(name: str, spec: ToyReward, facts: dict) -> str:
    """The model card as Markdown."""
    table, protocol = (rating_table, RATING_PROTOCOL) if spec.kind == "rating" else (pair_table, PAIR_PROTOCOL)
    tables = [f"### Prompts: {split}\n\n{table(facts[split])}\n" for split in SUITES]
    return f"""---
license: mit
---
# {name}

A reward model of the Shapes world. Head `{spec.head}` on `{SHAPES_CLIP}` with the last {spec.unlock[0]} vision and
{spec.unlock[1]} text layers trained. Made by `python -m surveylib.rewards.learned.toy`; load it with
`surveylib.rewards.learned.load_learned("{name}")`.

- Learned from {facts['examples']} examples of the twin `{spec.twin}` ({facts['prompts']} prompts, {PICTURES} pictures
  each, source "{facts['pictures']}", pool {spec.pool} of {spec.people} people, seed {spec.seed}).
- Training: {facts['steps']} steps, {facts['seconds']:.0f} seconds on {facts['hardware']}.
- Stored: {facts['kilobytes']} kB; the rest of the trunk is named, not copied.

## Scores

{protocol}

{chr(10).join(tables)}{attribute_table(facts)}"""


def attribute_table(facts: dict) -> str:
    """The card's section on one wrong attribute; nothing for a reward that was not measured so."""
    if "one attribute" not in facts:
        return ""
    rows = "\n".join(f"| {kind} | {100 * row['rate']:.1f} % | {row['pairs']} |"
                     for kind, row in facts["one attribute"].items())
    return f"""
### One wrong attribute

How often a clean rendering of a held-out prompt scores above a rendering in which one attribute is wrong. In a swap two
things exchange their colours. Chance is 50 %; the judge of the Shapes world is asked for the same in the tests.

| wrong | right one higher | pairs |
|---|---|---|
{rows}
"""


def make(
    name: str, out: Path, prompts: int, pictures: str, hardware: str, config: RewardConfig | None = None
) -> Iterator[dict]:
    """Train one reward of `REWARDS`, score it, write `out/name/model` with scores.json and README.md; yields steps."""
    spec, folder = REWARDS[name], out / name
    examples, validation = training_data(spec, prompts, pictures)
    config = config or PRESETS[spec.preset]
    torch.manual_seed(config.seed)
    options = spec.options
    if spec.kind == "rating":
        options = options | {"centre": examples.rating.mean().item(), "spread": examples.rating.std().item()}
    model = RewardModel(load_trunk(SHAPES_CLIP, spec.unlock), spec.head, **options)
    began = time.perf_counter()
    yield from train_reward(model, examples, config, folder, validation, name)
    facts = {"name": name, "head": spec.head, "examples": len(examples), "prompts": prompts, "pictures": pictures,
             "steps": config.steps, "seconds": round(time.perf_counter() - began, 1), "hardware": hardware}
    reward = load_learned(folder / "model")
    stored = sum((folder / "model" / file).stat().st_size for file in (DESCRIPTION, TENSORS))
    facts["kilobytes"] = round(stored / 1000)
    for split in SUITES:
        facts[split] = score(reward, spec, split, pictures, validation)
    if reward.needs_prompt:
        facts["one attribute"] = attribute_accuracy(reward)
    write_atomically(folder / "model" / "scores.json", json.dumps(facts, indent=1) + "\n")
    write_atomically(folder / "model" / "README.md", card(name, spec, facts))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(REWARDS)} (default: all)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hardware", required=True, help="for the card, for example '2 CPU cores'")
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--pictures", choices=("rendered", "model", "mixed"), default="mixed")
    parser.add_argument("--ship", type=Path, help="also copy the finished folders there")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in REWARDS]
    if unknown:
        parser.error(f"unknown reward {unknown[0]!r}; known: {', '.join(REWARDS)}")
    for name in args.names or REWARDS:
        with tqdm(desc=name, mininterval=5) as bar:
            for row in make(name, args.out, args.prompts, args.pictures, args.hardware):
                bar.update(1)
                bar.set_postfix(loss=f"{row['loss']:.3f}")
        if args.ship:
            shutil.copytree(args.out / name / "model", args.ship / name, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
