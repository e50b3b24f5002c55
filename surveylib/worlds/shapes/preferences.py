"""Toy twins of the public preference data sets, made on demand from simulated annotators.

| twin | kind | who answers | what is like the original |
|---|---|---|---|
| `pickapic` | pair, ties | one person a prompt | the winner stays, the other picture is replaced |
| `hpdv2` | ranking | five people a prompt | all pictures of a prompt ranked, the answers kept apart |
| `imagereward` | ranking, ratings 1-7 | one person a prompt | ratings in three dimensions, then a ranking |
| `richhf` | rich | one person a picture | heatmaps, misaligned words, four scores |
| `simulacra` | rating 1-10 | one person a picture | whole numbers |
| `visionprefer` | ratings 1-5 | the AI annotator | three aspects (harmlessness has no counterpart in Shapes) |
| `ava` | rating 1-10 | everybody, each picture | votes on looks alone; their mean is what is learned |
| `mhp` | pair | one person a prompt | one record a dimension: overall, aesthetics, alignment, detail |
| `binary` | binary | one person a picture | like or dislike |

The originals and their papers are on the cards of `surveylib.feedback.datasets`. Prompts are those of `suites`: "train"
for training records, "held-out" for test records, "generalisation" apart from both. The records of `mhp` answer
different questions: take one dimension (`record.extra["dimension"]`) before making pairs of them.

Make one:  python -m surveylib.worlds.shapes.preferences --twin pickapic --prompts 100 --seed 0 --out pairs.parquet
The small one that is shipped (300 pairs, 60 records of every other kind but `ava`): the command `SMALL_COMMAND`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from surveylib.feedback.records import Record, RecordList, write_records
from surveylib.worlds.shapes.annotators import AI, Pool, make_pool
from surveylib.worlds.shapes.answers import AnswerSheet, Shown
from surveylib.worlds.shapes.looks import look
from surveylib.worlds.shapes.sources import SOURCES, Source, source
from surveylib.worlds.shapes.suites import SUITES, SuitePrompt, suite

SMALL_COMMAND = ("python -m surveylib.worlds.shapes.preferences --twin small --pictures mixed --seed 0 "
                 "--out surveylib/worlds/shapes/small_preferences.parquet")
CROWD = 5  # people who rank the same pictures in the twin of HPD v2
PEOPLE = 12  # size of the default pool
PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Task:
    """One prompt's pictures (rows of what is shown) with the sheets of all annotators."""

    rows: tuple[int, ...]
    people: tuple[AnswerSheet, ...]
    number: int  # of the prompt

    def person(self, turn: int = 0) -> AnswerSheet:
        """Annotators take prompts, and pictures of a prompt, in turn."""
        return self.people[(self.number + turn) % len(self.people)]


def _pickapic(task: Task) -> Iterable[Record]:
    sheet, kept, pairs = task.person(), task.rows[0], len(task.rows) - 1
    for new in task.rows[1:]:
        record = sheet.pair(kept, new, extra={"num_example_per_prompt": pairs})
        yield record
        kept = new if record.preference == 0 else kept


def _hpdv2(task: Task) -> Iterable[Record]:
    for turn in range(min(CROWD, len(task.people))):
        yield task.person(turn).ranking(task.rows)


def _imagereward(task: Task) -> Iterable[Record]:
    names = {"overall_rating": "overall", "image_text_alignment_rating": "faithfulness", "fidelity_rating": "quality"}
    for row in task.rows:
        yield task.person().ratings(row, names, 1, 7)
    yield task.person().ranking(task.rows)


def _richhf(task: Task) -> Iterable[Record]:
    return (task.person(turn).rich(row) for turn, row in enumerate(task.rows))


def _simulacra(task: Task) -> Iterable[Record]:
    return (task.person(turn).rating(row, 1, 10) for turn, row in enumerate(task.rows))


def _ava(task: Task) -> Iterable[Record]:
    for row in task.rows:
        for turn in range(len(task.people)):
            yield task.person(turn).rating(row, 1, 10, dimension="aesthetics")


def _visionprefer(task: Task) -> Iterable[Record]:
    names = {"prompt-following": "faithfulness", "aesthetic": "aesthetics", "fidelity": "quality"}
    return (task.person().ratings(row, names, 1, 5) for row in task.rows)


def _mhp(task: Task) -> Iterable[Record]:
    names = {"overall": "overall", "aesthetics": "aesthetics", "alignment": "faithfulness", "detail": "detail"}
    for first, second in zip(task.rows[::2], task.rows[1::2]):
        for name, dimension in names.items():
            yield task.person().pair(first, second, dimension, extra={"dimension": name})


def _binary(task: Task) -> Iterable[Record]:
    return (task.person(turn).binary(row) for turn, row in enumerate(task.rows))


# name -> (what is asked about a prompt's pictures, fewest pictures, whether the AI annotator answers)
TWINS: dict[str, tuple[Callable[[Task], Iterable[Record]], int, bool]] = {
    "pickapic": (_pickapic, 2, False),
    "hpdv2": (_hpdv2, 2, False),
    "imagereward": (_imagereward, 2, False),
    "richhf": (_richhf, 1, False),
    "simulacra": (_simulacra, 1, False),
    "visionprefer": (_visionprefer, 1, True),
    "ava": (_ava, 1, False),
    "mhp": (_mhp, 2, False),
    "binary": (_binary, 1, False),
}
# twin -> (prompts, pictures a prompt) of the small data set: 300 pairs, 60 records of each other
# twin. `ava` is left out: its point is many votes.
SMALL = {"pickapic": (100, 4), "hpdv2": (12, 4), "imagereward": (12, 4), "richhf": (30, 2), "simulacra": (30, 2),
         "visionprefer": (30, 2), "mhp": (15, 2), "binary": (30, 2)}


def prompts_of(split: str, n: int, seed: int = 0) -> list[SuitePrompt]:
    """The first `n` prompts of a suite, categories in turn, in an order drawn by the seed.

    Raises:
        ValueError: unknown split, or n < 1.
    """
    if split not in SUITES:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SUITES)}")
    if n < 1:
        raise ValueError(f"n_prompts={n} must be at least 1")
    by_category: dict[str, list[SuitePrompt]] = {}
    for prompt in suite(split, per_category=max(-(-n // 4), 20), seed=seed):
        by_category.setdefault(prompt.category, []).append(prompt)
    rng = np.random.default_rng([seed, SUITES.index(split)])
    shuffled = [[prompts[i] for i in rng.permutation(len(prompts))] for prompts in by_category.values()]
    return [prompt for prompt in chain(*zip_longest(*shuffled)) if prompt is not None][:n]


def _check(name: str, images_per_prompt: int) -> None:
    if name not in TWINS:
        raise ValueError(f"unknown twin {name!r}; known: {', '.join(TWINS)}")
    if images_per_prompt < TWINS[name][1]:
        raise ValueError(f"images_per_prompt={images_per_prompt}; {name} needs at least {TWINS[name][1]}")


def _different(shown: Shown, rows: range, skipped: Counter[str]) -> tuple[int, ...]:
    """The rows of one prompt, without pictures that are byte for byte an earlier one."""
    by_picture: dict[bytes, int] = {}
    for row in rows:
        by_picture.setdefault(shown.picture(row), row)
    skipped["equal pictures"] += len(rows) - len(by_picture)
    return tuple(by_picture.values())


def _shown(name: str, prompts: list[SuitePrompt], start: int, k: int, seed: int, split: str, draw: Source) -> Shown:
    """The pictures of some prompts, the first of which is number `start`."""
    pictures = draw(prompts, k, seed)
    if not len(pictures.images) == len(pictures.models) == len(prompts) * k:
        raise ValueError(f"the source gave {len(pictures.images)} pictures and {len(pictures.models)} models for "
                         f"{len(prompts)} prompts with {k} each; {len(prompts) * k} are needed")
    ids = tuple(f"{split}-{seed}-{start + i}" for i in range(len(prompts)) for _ in range(k))
    texts = [prompt.text for prompt in prompts for _ in range(k)]
    return Shown(look(pictures.images, texts), pictures.models, ids, f"shapes-{name}-{split}")


def make_twin(
    name: str,
    n_prompts: int,
    images_per_prompt: int = 4,
    seed: int = 0,
    pictures: str | Source = "rendered",
    split: str = "train",
    pool: Pool | None = None,
    progress: bool = False,
) -> RecordList:
    """Records in the manner of a public data set; a function of the arguments.

    Args:
        name: one of `TWINS`.
        n_prompts: prompts, drawn from the suite `split` ("train", "held-out", "generalisation").
        images_per_prompt: pictures of each prompt.
        pictures: "rendered" (cheap), "model" (samples of shapes-sd), "mixed" (both in turn), or a function (prompts,
            pictures a prompt, seed) -> `sources.Pictures`.
        pool: who answers; default: `make_pool(12)`, and the AI annotator for "visionprefer".
        progress: show a bar.

    Returns:
        A `RecordList`. `skipped` counts what was left out: "equal pictures" (a picture that its prompt already has,
        byte for byte) and "prompt with too few different pictures".

    Raises:
        ValueError: unknown twin, split or source, too few prompts or pictures, or a source that returns another number
            of pictures than asked.
    """
    _check(name, images_per_prompt)
    draw = source(pictures) if isinstance(pictures, str) else pictures
    pool = pool or (Pool((AI,)) if TWINS[name][2] else make_pool(PEOPLE))
    prompts, records = prompts_of(split, n_prompts, seed), RecordList()
    answered = {who.name: 0 for who in pool.annotators}
    bar = tqdm(total=n_prompts, disable=not progress, desc=name)
    for start in range(0, n_prompts, PROMPTS_AT_ONCE):
        part = prompts[start : start + PROMPTS_AT_ONCE]
        shown = _shown(name, part, start, images_per_prompt, seed, split, draw)
        sheets = tuple(AnswerSheet(who, shown, seed, answered[who.name]) for who in pool.annotators)
        for i in range(len(part)):
            rows = _different(shown, range(i * images_per_prompt, (i + 1) * images_per_prompt), records.skipped)
            if len(rows) < TWINS[name][1]:
                records.skipped["prompt with too few different pictures"] += 1
                continue
            records += TWINS[name][0](Task(rows, sheets, start + i))
        answered = {sheet.annotator.name: sheet.answered for sheet in sheets}
        bar.update(len(part))
    records.skipped += Counter()  # drops zeros
    bar.close()
    return records


def make_small(seed: int = 0, pictures: str | Source = "mixed", split: str = "train",
               progress: bool = False) -> RecordList:
    """The small data set of all twins (`SMALL`), prompt by prompt: twins of one seed share prompts and pictures, and a
    parquet file stores a picture that comes again nearby for little."""
    records = RecordList()
    for name, (n, k) in SMALL.items():
        twin = make_twin(name, n, k, seed, pictures, split, progress=progress)
        records += twin
        records.skipped += twin.skipped
    records.sort(key=lambda record: int(record.prompt_id.rsplit("-", 1)[1]))
    return records


def main(arguments: list[str] | None = None) -> None:
    """The command line: make a twin and write it."""
    parser = argparse.ArgumentParser(description="Make a toy twin of a preference data set.")
    parser.add_argument("--twin", required=True, choices=[*TWINS, "small"])
    parser.add_argument("--prompts", type=int, default=100, help="number of prompts (small has its own)")
    parser.add_argument("--images", type=int, default=4, help="pictures a prompt (small has its own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="train", choices=SUITES)
    parser.add_argument("--pictures", default="rendered", choices=list(SOURCES))
    parser.add_argument("--out", type=Path, required=True, help="a .parquet or .jsonl file")
    options = parser.parse_args(arguments)
    if options.out.suffix not in (".parquet", ".jsonl"):
        parser.error(f"--out {options.out}: write a .parquet or a .jsonl file")
    if options.twin == "small":
        records = make_small(options.seed, options.pictures, options.split, progress=True)
    else:
        records = make_twin(options.twin, options.prompts, options.images, options.seed, options.pictures,
                            options.split, progress=True)
    count = write_records(records, options.out)
    for reason, times in records.skipped.items():
        print(f"left out: {times} ({reason})")
    print(f"{count} records, {options.out.stat().st_size / 1e6:.2f} MB: {options.out}")


if __name__ == "__main__":
    main()


__all__ = ["CROWD", "SMALL", "SMALL_COMMAND", "TWINS", "make_small", "make_twin", "prompts_of"]
