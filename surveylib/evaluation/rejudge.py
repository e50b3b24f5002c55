"""Score a shipped model of the Shapes world again, as after a change of the judge, and write its card anew.

    python -m surveylib.evaluation.rejudge shapes-sd

The scores get the judge's version beside them (`rows.rule_hash`, as in result rows), so that scores of an older judge
can be told. What the judge does not decide (training, parameters, PSNR, seconds) stays as it was measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from surveylib.diffusion.zoo import load_model
from surveylib.evaluation.rows import JUDGE, rule_hash
from surveylib.runs.checkpoint import write_atomically
from surveylib.worlds.shapes.pretrain.release import CHECKPOINTS, KINDS, card, scored


def judge_version() -> str:
    """16 hexadecimal digits of the judge's source and of all that it imports from the Shapes world."""
    return rule_hash(*JUDGE)


def rejudge(name: str, folder: Path | None = None, per_category: int | None = None) -> dict[str, Any]:
    """Write scores.json and README.md of a shipped model with the judge as it is now.

    Args:
        name: a shipped text-to-image model, "shapes-sd".
        folder: of scores.json and README.md; default: the model's own.
        per_category: held-out prompts a category; default: as many as before. Four pictures a prompt, seed 0.

    Returns:
        The facts that were written.

    Raises:
        FileNotFoundError: the folder has no scores.json: `release` writes the first one.
    """
    folder = CHECKPOINTS / name if folder is None else Path(folder)
    facts = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    before = facts.get("prompts", {}).get("held-out", 110)
    facts |= scored(load_model(name), per_category or before)
    facts["judge"] = judge_version()
    write_atomically(folder / "scores.json", json.dumps(facts, indent=1) + "\n")
    write_atomically(folder / "README.md", card(facts))
    return facts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=sorted(KINDS))
    args = parser.parse_args()
    overall = rejudge(args.name)["held-out"]["table"]["overall"]
    print(f"{args.name}: {100 * overall['rate']:.1f} % (s.e. {100 * overall['standard error']:.1f}) of "
          f"{overall['pictures']} held-out pictures pass")


if __name__ == "__main__":
    main()
