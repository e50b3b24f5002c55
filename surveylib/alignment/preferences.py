"""Preference data by name, for recipes and the command line.

==========================  =================================================================================
name                        what
==========================  =================================================================================
``shapes-small``            the shipped records of the Shapes world (simulated people)
``file.parquet``, ``.jsonl``  records in the library's one schema, such as the annotation widget writes
``pickapic_v1`` ...         a public data set (`surveylib.feedback.datasets.CARDS`), its first records, streamed
``tiny-...``                a few pictures of the model itself, labelled by brightness: for rehearsals
==========================  =================================================================================
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from torch import Tensor

from surveylib.diffusion.model import DiffusionModel
from surveylib.feedback.datasets import CARDS, load
from surveylib.feedback.records import read_records
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.preference.data import RecordedPreferences, from_records, sampled
from surveylib.worlds.shapes import preferences as shapes

SMALL = Path(shapes.__file__).with_name("small_preferences.parquet")
SUFFIXES = (".parquet", ".jsonl")
ALIASES = {"pickapic": "pickapic_v1"}
PROMPTS = ("a cat", "a dog", "a bird", "a fish")
MOST = 10_000  # records of a public data set that are kept in memory


def load_preferences(name: str, kind: str, model: DiffusionModel, most: int = MOST) -> RecordedPreferences:
    """Preference data of a kind.

    Args:
        name: see the module's table. kind: "pairs", "rankings" or "binary". model: its pictures' size is what records
            are fitted to. most: records read of a public data set.

    Raises:
        TechniqueError: an unknown name, or no record of that kind. FileNotFoundError, ConnectionError: says what to
        download.
    """
    size = getattr(model, "resolution", (None,))[0]
    if name.startswith("tiny-"):
        k = {"pairs": 2, "rankings": 3, "binary": 1}[kind]
        return sampled(model, PROMPTS, _brightness, kind=kind, k=k, steps=2, guidance=1.0)
    if name == "shapes-small":
        records = [record for record in read_records(SMALL) if record.kind in ("pair", "ranking", "binary")]
        return from_records(records, kind, size=size)
    if name.endswith(SUFFIXES):
        if not Path(name).is_file():
            raise FileNotFoundError(f"no preference records at {name}")
        return from_records(read_records(name), kind, size=size)
    key = ALIASES.get(name, name)
    if key not in CARDS:
        raise TechniqueError(f"unknown preference data {name!r}: shapes-small, a file ending in "
                             f"{' or '.join(SUFFIXES)}, or one of {', '.join(k for k, c in CARDS.items() if c.module)}")
    return from_records(islice(load(key), most), kind, size=size, on_error="skip")


def _brightness(pictures: Tensor, prompts: list[str]) -> Tensor:
    return pictures.flatten(1).mean(1)
