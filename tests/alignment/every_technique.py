"""What the tests of sharded weights start: every technique that trains, on the tiny model of its full-scale preset.

    python -m torch.distributed.run --nproc-per-node=2 -m alignment.every_technique OUT CHANGED [technique ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from surveylib.alignment.run import Recipe, run
from surveylib.techniques.contract import Sampler
from surveylib.techniques.registry import technique_class, technique_names


def trained() -> list[str]:
    """Names of the techniques that train."""
    return [name for name in technique_names() if not issubclass(technique_class(name), Sampler)]


def main() -> None:
    """Each in a folder of its own under OUT; CHANGED is JSON, fields of the recipe."""
    torch.set_num_threads(1)
    out, changed, names = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:] or trained()
    for name in names:
        list(run(Recipe(name, "rehearsal", **changed), out / name, tensorboard=False))


if __name__ == "__main__":
    main()
