"""Preference data by name, for recipes and the command line.

==========================  =================================================================================
name                        what
==========================  =================================================================================
``shapes-small``            the shipped records of the Shapes world (simulated people)
``shapes-own``              pictures of the model itself over training prompts, answered by the learned proxy
``file.parquet``, ``.jsonl``  records in the library's one schema, such as the annotation widget writes
``pickapic_v1`` ...         a public data set (`surveylib.feedback.datasets.CARDS`), its first records, streamed; where
                            likes are wanted, a decided pair gives a liked and a disliked picture
``hpd_v3:FOLDER`` ...       one that is read from its raw files
``own:pickscore`` ...       pictures of the model itself over training prompts, answered by a reward model
``tiny-...``                a few pictures of the model itself, labelled by brightness: for rehearsals
==========================  =================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from surveylib.diffusion.model import DiffusionModel
from surveylib.feedback.datasets import CARDS, from_files, load
from surveylib.feedback.record import Record
from surveylib.feedback.records import read_records
from surveylib.rewards.contract import Reward
from surveylib.rewards.registry import check_reward, load_reward
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.preference.data import RecordedPreferences, from_records, sampled
from surveylib.worlds.shapes import preferences as shapes

SMALL = Path(shapes.__file__).with_name("small_preferences.parquet")
SUFFIXES = (".parquet", ".jsonl")
ALIASES = {"pickapic": "pickapic_v1"}
PROMPTS = ("a cat", "a dog", "a bird", "a fish")
MOST = 10_000  # records of a public data set that are kept in memory
OWN_PROMPTS = {"pairs": 160, "rankings": 80, "binary": 320}  # 320 pictures of each kind
OWN_PROXY = "shapes-pickscore"
OWN = "own:"
OWN_PICTURES = 1000  # of "own:...": stored with their paths, in memory
PICTURES_OF_A_PROMPT = {"pairs": 2, "rankings": 4, "binary": 1}


def load_preferences(
    name: str, kind: str, model: DiffusionModel, most: int = MOST, prompts: Sequence[str] = ()
) -> RecordedPreferences:
    """Preference data of a kind.

    Args:
        name: see the module's table. kind: "pairs", "rankings" or "binary". model: its pictures' size is what records
            are fitted to. most: records read of a public data set. prompts: what "own:..." draws, the first
            `OWN_PICTURES` pictures' worth.

    Raises:
        TechniqueError: an unknown name, or no record of that kind. FileNotFoundError, ConnectionError: says what to
        download.
    """
    size = getattr(model, "resolution", (None,))[0]
    if name.startswith("tiny-"):
        k = {"pairs": 2, "rankings": 3, "binary": 1}[kind]
        return sampled(model, PROMPTS, _brightness, kind=kind, k=k, steps=2, guidance=1.0)
    if name == "shapes-own":
        return own_preferences(model, kind)
    if name.startswith(OWN):
        k = PICTURES_OF_A_PROMPT[kind]
        return sampled(model, list(prompts)[: OWN_PICTURES // k], load_reward(name.removeprefix(OWN), model.device),
                       kind=kind, k=k, steps=25, batch=8)
    if name == "shapes-small":
        records = [record for record in read_records(SMALL) if record.kind in ("pair", "ranking", "binary")]
        return from_records(records, kind, size=size)
    if name.endswith(SUFFIXES):
        check_preferences(name)
        return from_records(read_records(name), kind, size=size)
    key, place = public(name)
    records = islice(load(key, *place), most)
    if kind == "binary" and "binary" not in CARDS[key].kinds:
        records = liked_and_disliked(records)
    return from_records(records, kind, size=size, on_error="skip")


def check_preferences(name: str) -> None:
    """Refuses a name that `load_preferences` cannot load, as far as that can be told without a model or the network.

    Raises:
        TechniqueError: an unknown name. ValueError: "own:..." of a reward that is none. FileNotFoundError: no such file
        or folder; says what to download.
    """
    if name.startswith("tiny-") or name in ("shapes-own", "shapes-small"):
        return
    if name.startswith(OWN):
        check_reward(name.removeprefix(OWN))
    elif name.endswith(SUFFIXES):
        if not Path(name).is_file():
            raise FileNotFoundError(f"no preference records at {name}")
    else:
        key, place = public(name)
        if from_files(key):
            load(key, *place)


def public(name: str) -> tuple[str, tuple[str, ...]]:
    """A public data set's "key" or "key:FOLDER" as (key, () or (FOLDER,)).

    Raises:
        TechniqueError: an unknown name; lists the known ones. ValueError: a set without a loader.
    """
    key, _, place = name.partition(":")
    key = ALIASES.get(key, key)
    if key not in CARDS:
        raise TechniqueError(f"unknown preference data {name!r}: shapes-small, a file ending in "
                             f"{' or '.join(SUFFIXES)}, own:<reward>, or one of "
                             f"{', '.join(k for k, c in CARDS.items() if c.module)}")
    return key, (place,) if place else ()


def liked_and_disliked(records: Iterable[Record]) -> Iterator[Record]:
    """Likes out of pairs: the preferred picture is liked, the other not.

    Ours: Diffusion-KTO's code calls a picture of Pick-a-Pic liked if it won any of its comparisons.

    A tie says nothing about either picture and stays a pair, which who wants likes leaves out and counts; so do
    records of other kinds.
    """
    for record in records:
        if record.kind != "pair" or record.preference == 0.5:
            yield record
            continue
        for index, image in enumerate(record.images):
            yield replace(record, kind="binary", images=(image,), models=record.models[index : index + 1],
                          preference=None, liked=(record.preference > 0.5) == (index == 0))


def own_preferences(
    model: DiffusionModel, kind: str, n: int | None = None, *, reward: Reward | None = None, temperature: float = 0.5,
    steps: int = 12, seed: int = 0,
) -> RecordedPreferences:
    """The model's own pictures over training prompts of the Shapes world; a function of the seed.

    Pairs are answered by Bradley-Terry on the proxy, likes by a logistic curve about its mean, rankings without chance
    (4 pictures a prompt).

    Args:
        n: prompts; None takes `OWN_PROMPTS`. reward: the proxy; None loads `OWN_PROXY`. temperature: in units of the
            proxy. steps: of the sampler DDIM(1).

    Raises:
        TechniqueError: an unknown kind.
    """
    if kind not in OWN_PROMPTS:
        raise TechniqueError(f"unknown kind of preference data {kind!r}; allowed: {', '.join(OWN_PROMPTS)}")
    prompts = [prompt.text for prompt in shapes.prompts_of("train", OWN_PROMPTS[kind] if n is None else n, seed)]
    return sampled(model, prompts, load_reward(OWN_PROXY) if reward is None else reward, kind=kind,
                   k=PICTURES_OF_A_PROMPT[kind], temperature=temperature, steps=steps, seed=seed)


def _brightness(pictures: Tensor, prompts: list[str]) -> Tensor:
    return pictures.flatten(1).mean(1)
