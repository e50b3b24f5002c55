"""Put a pre-trained model among the shipped ones, with a model card made of what was measured.

    python -m surveylib.worlds.shapes.pretrain.release shapes-sd --run runs/shapes-sd --hardware "2 CPU cores"

The card's numbers come from the run's `metrics.jsonl`, from the judge and from a timing made here; `--hardware` and
`--note` are typed in. The folder is made in the run's own (`RUN/release/NAME`) and takes the place of the shipped one
when all is measured: a run that stops before leaves the shipped model as it was.
A new model's scores do not say yet which judge gave them: `python -m surveylib.evaluation.rejudge shapes-sd` scores a
shipped model again and adds the judge's version, and so it does after a change of the judge.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

from surveylib.diffusion.zoo import VOCABULARY_FILE, load_model
from surveylib.worlds.shapes import suites
from surveylib.worlds.shapes.caption_choice import caption_choice
from surveylib.worlds.shapes.data import FLAWS, example, stream
from surveylib.worlds.shapes.pretrain import clip
from surveylib.worlds.shapes.pretrain.autoencoder import psnr
from surveylib.worlds.shapes.pretrain.text import vocabulary_text
from surveylib.worlds.speed import seconds_for_64

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
KINDS = {
    "shapes-sd": "StableDiffusionPipeline, epsilon prediction, 8 x 8 x 8 latents of 64 x 64 pictures",
    "shapes-sd3": "StableDiffusion3Pipeline, flow matching, 8 x 8 x 8 latents of 64 x 64 pictures",
}
ORIGINS = {
    "shapes-sd": "Trained from nothing on rendered scenes of coloured shapes",
    "shapes-sd3": "Trained on rendered scenes of coloured shapes and on what an earlier `shapes-sd` predicted there, "
                  "with its text encoder to start from,",
}
SETTINGS = {
    "shapes-sd": {"default_guidance": 3.0, "default_steps": 20},
    "shapes-sd3": {"max_sequence_length": 8, "default_guidance": 3.0, "default_steps": 20},
}


def training_facts(run: Path) -> dict[str, float]:
    """Steps and minutes of a run, from the last line of its metrics."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {"steps": last["step"], "minutes": round(last["seconds"] / 60, 1)}


@torch.no_grad()
def reconstruction(model, n: int = 512, seed: int = 90_001) -> float:
    """Mean PSNR in dB of the autoencoder on `n` training-like pictures it has not seen."""
    pictures, _ = next(stream(n, seed))
    decoded = torch.cat([model.decode(model.encode_images(part), clamp=True) for part in pictures.split(64)])
    return psnr(decoded, pictures).mean().item()


def table_of(scores: suites.Scores) -> dict[str, dict[str, float]]:
    """Rates as plain numbers."""
    return {
        name: {"rate": round(r.rate, 4), "standard error": round(r.standard_error, 4), "pictures": r.n}
        for name, r in scores.table.items()
    }


def flaw_shares(n: int = 4000, seed: int = 90_002) -> dict[str, float]:
    """Share of `n` drawn training examples that have each flaw of `FLAWS`; less than tried for those of captions."""
    rng = np.random.default_rng(seed)
    examples = [example(rng) for _ in range(n)]
    return {flaw: round(sum(flaw in e.flaws for e in examples) / n, 4) for flaw in FLAWS}


def measure(folder: Path, run: Path, hardware: str, per_category: int = 110) -> dict:
    """All facts of the card of the model in `folder`, whose name is the model's; per_category: held-out prompts of a
    category, 4/11 of it on the other suite."""
    name, model = folder.name, load_model(folder.absolute())
    facts = {"name": name, "kind": KINDS[name], "hardware": hardware, "training": training_facts(run / "run")}
    facts["parameters"] = {k: sum(p.numel() for p in v.parameters()) for k, v in model.pipeline.components.items()
                           if isinstance(v, torch.nn.Module)}
    facts["flaws"] = flaw_shares()
    facts["psnr"] = round(reconstruction(model), 2)
    facts["seconds for 64 pictures at 20 steps"] = round(seconds_for_64(model), 2)
    return facts | scored(model, per_category)


def scored(model, per_category: int = 110) -> dict:
    """What the judge says of a model: four pictures a prompt of both suites, and the plain call beside ours.

    per_category: held-out prompts of a category, 4/11 of it on the other suite.
    """
    facts = {"prompts": {"held-out": per_category, "generalisation": round(per_category * 4 / 11)}}
    for suite, prompts in facts["prompts"].items():
        scores = suites.score_model(model, suites.suite(suite, prompts), progress=True)
        facts[suite] = {"quality": round(scores.quality, 4), "table": table_of(scores)}
    few = suites.suite("held-out", per_category=min(32, per_category))
    both = [suites.score_model(painter, few, progress=True).table["overall"] for painter in (model, model.pipeline)]
    facts["plain call"] = {"ours": round(both[0].rate, 4), "plain": round(both[1].rate, 4), "pictures": both[0].n}
    return facts


def _flaw_line(flaw: str, shares: dict[str, float] | None) -> str:
    """A line of the card: the rate at which a flaw is tried, and the measured share where the facts have it."""
    if shares is None:
        return f"- {flaw}: {100 * FLAWS[flaw]:.0f} %"
    return f"- {flaw}: tried on {100 * FLAWS[flaw]:.0f} % of the examples, {100 * shares[flaw]:.1f} % have it"


def card(facts: dict) -> str:
    """The model card as Markdown."""
    name, training = facts["name"], facts["training"]
    rates = "\n".join(_flaw_line(flaw, facts.get("flaws")) for flaw in FLAWS)
    parts = ", ".join(f"{k} {v / 1e6:.2f} M" for k, v in facts["parameters"].items())
    tables = []
    for suite in ("held-out", "generalisation"):
        rows = "\n".join(
            f"| {category} | {100 * r['rate']:.1f} % | {100 * r['standard error']:.1f} | {r['pictures']} |"
            for category, r in facts[suite]["table"].items()
        )
        tables.append(f"### Prompts: {suite}\n\n| category | pass | s.e. | pictures |\n|---|---|---|---|\n{rows}\n\n"
                      f"Mean picture quality {facts[suite]['quality']:.3f} (flawless renderings score about 1).\n")
    both = facts["plain call"]
    plain = (f"A plain `pipe(prompt)`, with diffusers' default guidance and steps, passes {100 * both['plain']:.1f} % "
             f"overall where these settings pass {100 * both['ours']:.1f} % ({both['pictures']} pictures each, same "
             "noise). With the same settings the two are the same pictures.")
    note = f"\n- {facts['note']}" if facts.get("note") else ""
    judge = f" Judge's version: {facts['judge']}." if facts.get("judge") else ""
    settings = ", ".join(f"{k} {v}" for k, v in SETTINGS[name].items())
    return f"""---
license: mit
library_name: diffusers
---
# {name}

{facts['kind']}. {ORIGINS[name]} by `surveylib.worlds.shapes.pretrain`.

- Parameters: {parts}.
- Training: {training['steps']} steps, {training['minutes']} minutes on {facts['hardware']}; seed 0.{note}
- Autoencoder: {facts['psnr']:.1f} dB mean PSNR on 512 pictures it has not seen.
- Speed: {facts['seconds for 64 pictures at 20 steps']} seconds for 64 pictures at 20 steps on {facts['hardware']}.
- Settings of the scores below: {settings}.

## Misaligned on purpose

The training data are flawed at these rates, so that the model has something to be aligned about:

{rates}

## Scores

The judge of the Shapes world reads each picture and passes it when everything the prompt names is there and nothing
else. Four pictures a prompt, seed 0. "overall" is the mean of GenEval's six categories. Standard errors are clustered
by prompt.{judge}

{chr(10).join(tables)}
{plain}

Repeat: `surveylib judge {name} --per-category {facts['prompts']['held-out']}` and
`surveylib judge {name} --suite generalisation --per-category {facts['prompts']['generalisation']}`.
"""


CLIP_CARD = """---
license: mit
library_name: transformers
---
# shapes-clip

CLIPModel, trained from nothing on rendered scenes of coloured shapes by contrast of pictures and captions, {negatives}
captions with one changed attribute beside each, by `surveylib.worlds.shapes.pretrain.clip`. Pictures of 64 x 64 pixels,
patches of 8, width 128, unit embeddings of 128 numbers.

- Parameters: {parameters:.2f} M. Logit scale {scale:.1f}.
- Training: {steps} steps of {batch} pictures, {minutes} minutes on {hardware}; seed 0.{note}
- Linear heads that read each patch, the scene, the caption and what it binds to each shape helped the training and
  were dropped.
- The training captions say what was drawn; the pictures have the flaws of the other models' data.

## Scores

{n} clean renderings of held-out prompts, each with its caption and fifteen captions in which one attribute differs.
"right of 16" is how often the right caption scores highest. The other rows compare it with one wrong caption of a kind;
in a swap two things exchange their colours, so that the words are the same.

| negatives | right | comparisons |
|---|---|---|
{rows}

Repeat: `python -m surveylib.worlds.shapes.caption_choice`.
"""


def staged(run: Path, name: str, trained: str) -> Path:
    """A copy of the trained folder in the run's own, `RUN/release/NAME`; an older one there goes."""
    target = run / "release" / name
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(run / trained, target))


def ship(folder: Path) -> None:
    """Put a finished folder in the place of the shipped model of its name; if copying fails, the old one stays.

    Raises:
        FileNotFoundError: its scores or its card are missing; nothing is changed.
    """
    for name in ("scores.json", "README.md"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: measure the model before it is shipped")
    target = CHECKPOINTS / folder.name
    # Beside the folder of models and on the same disk: what lies among them is taken for a model.
    new, old = (CHECKPOINTS.parent / f"{folder.name}.{word}" for word in ("new", "old"))
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder, new)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def release_clip(run: Path, hardware: str, note: str | None, questions: int = 2000) -> None:
    """Measure a trained shapes-clip, write scores and card, and put it among the shipped models."""
    target = staged(run, "shapes-clip", "model")
    model, processor = CLIPModel.from_pretrained(target).eval(), CLIPProcessor.from_pretrained(target)
    scores = caption_choice(model, processor, questions)
    facts = {"name": "shapes-clip", "hardware": hardware, "training": training_facts(run / "run"), "scores": scores}
    (target / "scores.json").write_text(json.dumps(facts, indent=1) + "\n")
    rows = "\n".join(f"| {kind} | {100 * r['rate']:.1f} % | {r['n']} |" for kind, r in scores.items())
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    text = CLIP_CARD.format(parameters=parameters, scale=model.logit_scale.exp().item(), hardware=hardware, rows=rows,
                            note=f"\n- {note}" if note else "", n=questions, negatives=clip.NEGATIVES,
                            batch=clip.CONFIG.batch, **facts["training"])
    (target / "README.md").write_text(text)
    ship(target)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*sorted(KINDS), "shapes-clip"])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--per-category", type=int, default=110, help="held-out prompts a category")
    parser.add_argument("--note", help="one sentence about the run, for the card")
    args = parser.parse_args()
    if args.name == "shapes-clip":
        release_clip(args.run, args.hardware, args.note)
        return
    target = staged(args.run, args.name, "pipeline")
    (target / "surveylib.json").write_text(json.dumps(SETTINGS[args.name], indent=2) + "\n")
    facts = measure(target, args.run, args.hardware, args.per_category) | ({"note": args.note} if args.note else {})
    (target / "scores.json").write_text(json.dumps(facts, indent=1) + "\n")
    (target / "README.md").write_text(card(facts))
    ship(target)
    (CHECKPOINTS / VOCABULARY_FILE).write_text(vocabulary_text())


if __name__ == "__main__":
    main()
