"""What the rows say together: one line a technique over its seeds, ratings, break-even numbers, data for figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from surveylib.evaluation.arena import Place, arena
from surveylib.evaluation.intervals import Mean, clustered_mean
from surveylib.evaluation.rows import BASE, ROWS, Row, need_rows, stale_reasons
from surveylib.evaluation.scoring import plain
from surveylib.evaluation.win_rate import outcomes, tie_of
from surveylib.feedback.choice import NoFiniteFit

PRIOR = 2.0  # of the strengths in the arena, in nats: only felt by techniques that (almost) always win or lose
COLUMNS = ("technique", "kind", "setting", "seeds", "proxy", "gold", "gain over base", "pass", "win rate", "diversity",
           "KL of path", "held out", "FID to base", "training calls", "calls a picture", "decodes a picture",
           "reward calls a picture", "minutes", "seconds a picture", "notes")


@dataclass(frozen=True, eq=False)
class Report:
    """Everything a page shows.

    Attributes:
        lines: one dict a technique, base first, then by "gain over base": the difference in gold (`yardstick` where
            there is none) from the base model's pictures of the same seeds, since not all techniques need have the same
            seeds. Means are `Mean`, numbers plain, missing None. "gain" holds such differences by score, "gain by seed"
            their values seed by seed. "win rate" is by gold with `win_rate.TIE`, by another yardstick without a tie.
        arena: places by the same, or () where fewer than two techniques were tested on the same pictures.
        break_even: dicts technique, sampler, pictures: how many pictures make training as cheap as searching.
        figures: name -> list of dicts, plain numbers (see `figure_data`).
        stale: file -> what changed since. untested: files validated only.
    """

    lines: list[dict[str, Any]]
    arena: tuple[Place, ...]
    break_even: list[dict[str, Any]]
    figures: dict[str, list[dict[str, Any]]]
    stale: dict[str, list[str]]
    untested: list[str]

    def table(self) -> list[list[str]]:
        """`COLUMNS` as text, row by row."""
        return [[text(line.get(column)) for column in COLUMNS] for line in self.lines]

    def markdown(self) -> str:
        """The table for a page."""
        rows = [list(COLUMNS), ["---"] * len(COLUMNS), *self.table()]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"

    def as_json(self) -> str:
        """All of it."""
        lines = [plain(line) for line in self.lines]
        places = [vars(place) for place in self.arena]
        return json.dumps({"lines": lines, "arena": places, "break_even": self.break_even, "figures": self.figures,
                           "stale": self.stale, "untested": self.untested}, indent=1)


def report(folder: str | Path = ROWS) -> Report:
    """Reads all rows of a folder. Out-of-date rows are shown and marked.

    Raises:
        FileNotFoundError: no row there. ValueError: a damaged row, or techniques measured in different ways.
    """
    rows = need_rows(Path(folder))
    old = {name: reasons for name, row in rows.items() if (reasons := stale_reasons(row))}
    best = chosen_settings(rows)
    tested = {name: row for name, row in rows.items()
              if "test" in row and row["setting"] == best.get(row["technique"], row["setting"])}
    chosen = sorted({row["technique"] for row in tested.values() if row["technique"] != BASE})
    bases = {(row["setting"], row["seed"]): row for row in tested.values() if row["technique"] == BASE}
    check_comparable(tested)
    groups = {}
    for name, row in tested.items():
        key = f"{BASE} ({row['setting']})" if row["technique"] == BASE else row["technique"]
        groups.setdefault(key, {})[name] = row
    score = yardstick(tested.values())
    lines = [line_of(title, list(group.values()), bases, [n for n in group if n in old], score)
             for title, group in groups.items()]
    ranks = {line["technique"]: line["gain over base"] for line in lines if line["kind"] != BASE}
    if None in ranks.values():  # no base model was measured with some
        ranks = {title: pooled(list(group.values()), score) for title, group in groups.items()}
    lines.sort(key=lambda line: -ranks[line["technique"]].value if line["kind"] != BASE else -math.inf)
    return Report(lines, ratings(tested, chosen, bases, score), break_even(lines), figure_data(tested, bases), old,
                  [name for name in rows if name not in tested and not _was_beaten(name, rows)])


def yardstick(rows: Collection[Row]) -> str:
    """The score that ranks: "gold", where only people could say the first held-out reward, and "proxy" where there is
    neither. What was optimised shows a gain for whoever fools it."""
    shared = [name for name in next(iter(rows), {"test": {"scores": {}}})["test"]["scores"]
              if all(name in row["test"]["scores"] for row in rows)]
    held_out = [name for name in shared if name not in ("proxy", "gold", "pass")]
    return "gold" if "gold" in shared else (held_out or ["proxy"])[0]


def chosen_settings(rows: dict[str, Row]) -> dict[str, str]:
    """Technique -> its setting with the best validation by its first seed: a test of another one, done before this one
    was tried, does not count any more."""
    best: dict[str, Row] = {}
    for row in sorted((r for r in rows.values() if "validation" in r), key=lambda row: row["seed"]):
        old = best.get(row["technique"])
        if old is None or (row["seed"] == old["seed"] and proxy_of(row) > proxy_of(old)):
            best[row["technique"]] = row
    return {technique: row["setting"] for technique, row in best.items()}


def proxy_of(row: Row) -> float:
    """Mean proxy on validation prompts."""
    return row["validation"]["proxy"]["value"]


def check_comparable(rows: dict[str, Row]) -> None:
    """Raises where tested rows do not share scale, test prompts and protocol."""
    for key in ("scale", "protocol"):
        values = {json.dumps(row[key], sort_keys=True) for row in rows.values()}
        if len(values) > 1:
            raise ValueError(f"rows with different {key} do not compare: {'; '.join(sorted(values))[:300]}. "
                             "Keep them in different folders")


def _was_beaten(name: str, rows: dict[str, Row]) -> bool:
    """Whether another setting of the technique was tested: then this one is done."""
    return any("test" in row and row["technique"] == rows[name]["technique"] for row in rows.values())


def line_of(title: str, rows: Sequence[Row], bases: dict, old: Sequence[str], score: str) -> dict[str, Any]:
    """One technique over its seeds; `score` decides the win rate. Pictures of all seeds are pooled; intervals are
    clustered by prompt: they hold for the trainings that were run, and know nothing of other ones."""
    first = rows[0]
    training = [row["training_run"]["ledger"] for row in rows if "training_run" in row]
    calls = [row["test"]["ledger"]["calls_per_picture"] for row in rows]
    seconds = [row["test"]["ledger"]["wall"] / len(row["test"]["scores"]["proxy"]) for row in rows]
    line: dict[str, Any] = {
        "technique": title, "kind": first["kind"], "setting": "/".join(sorted({row["setting"] for row in rows})),
        "seeds": len(rows), "proxy": pooled(rows, "proxy"), "gold": pooled(rows, "gold"),
        "pass": pooled(rows, "pass"),
        "win rate": compared(rows, bases, score, partial(outcomes, tie=tie_of(score))),
        "diversity": average(rows, "diversity"), "KL of path": average(rows, "path_kl"),
        "FID to base": average(rows, "fid_to_base"), "calls a picture": float(np.mean(calls)),
        "decodes a picture": a_picture(rows, "decodes"), "reward calls a picture": a_picture(rows, "reward_calls"),
        "training calls": float(np.mean([t["equivalents"] for t in training])) if training else None,
        "minutes": float(np.mean([t["wall"] for t in training])) / 60 if training else None,
        "seconds a picture": float(np.mean(seconds)),
    }
    line["gain"] = {name: gain for name in first["test"]["scores"]
                    if (gain := compared(rows, bases, name, np.subtract)) is not None}
    line["gain by seed"] = {name: {str(row["seed"]): compared([row], bases, name, np.subtract).value for row in rows}
                            for name in line["gain"]}
    line["gain over base"] = line["gain"].get(score)
    line["held out"] = {name: pooled(rows, name).numbers() for name in first["test"]["scores"]
                        if name not in ("proxy", "gold", "pass")}
    line["by category"] = by_category(rows)
    if all(base := [base_of(row, bases) for row in rows]):  # over the same seeds, which not all techniques share
        line["change by category"] = {name: round(share - by_category(base)[name], 4)
                                      for name, share in line["by category"].items()}
    notes = ["out of date"] if old else []
    if first["kind"] == "sampling" and max(calls) > first["budget"]["calls_per_picture"]:
        notes.append(f"over the budget of {first['budget']['calls_per_picture']} calls")
    line["notes"] = "; ".join(notes)
    return line


def by_category(rows: Sequence[Row]) -> dict[str, float]:
    """Share of pictures that pass, by category of prompts, mean over seeds."""
    return {name: round(float(np.mean([row["test"]["by_category"]["pass"][name]["value"] for row in rows])), 4)
            for name in rows[0]["test"]["by_category"].get("pass", {})}


def pooled(rows: Sequence[Row], name: str) -> Mean | None:
    """Mean of a score over the pictures of all seeds."""
    if any(name not in row["test"]["scores"] for row in rows):
        return None
    values = np.concatenate([row["test"]["scores"][name] for row in rows])
    return clustered_mean(values, np.concatenate([row["test"]["clusters"] for row in rows]))


def direction(line: dict[str, Any], score: str) -> int:
    """1 where a technique raises a score, -1 where it lowers it, 0 where the rows do not say.

    The interval over prompts must exclude zero and, of a trained technique, every training must have moved the score to
    the same side: the interval is that of the trainings at hand, another training may end elsewhere.
    """
    gain, seeds = line["gain"][score], line["gain by seed"][score].values()
    for sign in (1, -1):
        beyond = min(sign * gain.low, sign * gain.high) > 0
        if beyond and (line["kind"] != "training" or all(sign * value > 0 for value in seeds)):
            return sign
    return 0


def a_picture(rows: Sequence[Row], name: str) -> float | None:
    """A count of the ledger over the test pictures; None where a row's ledger has no such count."""
    ledgers = [row["test"]["ledger"] for row in rows]
    if any(name not in ledger for ledger in ledgers):
        return None
    return sum(ledger[name] for ledger in ledgers) / sum(len(row["test"]["scores"]["proxy"]) for row in rows)


def base_of(row: Row, bases: dict) -> Row | None:
    """The base row of the same model and seed."""
    return bases.get((row["model"], row["seed"]))


def compared(rows: Sequence[Row], bases: dict, name: str, how: Callable) -> Mean | None:
    """Mean of how(score, base model's score), picture by picture from the same noise, over the pictures of all seeds.

    None for the base model itself, or where a base row or the score is missing.
    """
    pairs = [(row, base_of(row, bases)) for row in rows if row["technique"] != BASE]
    if not pairs or any(base is None or name not in row["test"]["scores"] for row, base in pairs):
        return None
    found = [how(row["test"]["scores"][name], base["test"]["scores"][name]) for row, base in pairs]
    return clustered_mean(np.concatenate(found), np.concatenate([row["test"]["clusters"] for row, _ in pairs]))


def average(rows: Sequence[Row], name: str) -> float | None:
    """Mean over seeds of a number of the test, or of a mean's value; None where a row has none."""
    values = [row["test"].get(name) for row in rows]
    if any(value is None for value in values):
        return None
    return float(np.mean([value["value"] if isinstance(value, dict) else value for value in values]))


def ratings(rows: dict[str, Row], chosen: Sequence[str], bases: dict, score: str) -> tuple[Place, ...]:
    """Arena by a score, with its tie, over the seeds that all techniques of the commonest model share."""
    models = [row["model"] for row in rows.values() if row["technique"] != BASE]
    if not models:
        return ()
    model = max(sorted(set(models)), key=models.count)
    by_name = {name: {row["seed"]: row for row in rows.values() if row["technique"] == name and row["model"] == model}
               for name in chosen}
    by_name = {BASE: {seed: row for (m, seed), row in bases.items() if m == model},
               **{name: found for name, found in by_name.items() if found}}
    seeds = sorted(set.intersection(*(set(found) for found in by_name.values())))
    if len(by_name) < 2 or not seeds:
        return ()
    scores = {name: np.concatenate([found[s]["test"]["scores"][score] for s in seeds])
              for name, found in by_name.items()}
    clusters = np.concatenate([by_name[BASE][s]["test"]["clusters"] for s in seeds])
    try:
        return arena(scores, clusters, prior=PRIOR, tie=tie_of(score)).places
    except NoFiniteFit:
        return ()


def break_even(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures after which training has cost less than searching: training calls / extra calls of a picture.

    The extra calls are those of the test-time method over those of the trained model's plain sampling; methods that
    cost no more than it have no such number.
    """
    found = []
    for trained in (line for line in lines if line["kind"] == "training"):
        for sampler in (line for line in lines if line["kind"] == "sampling"):
            extra = sampler["calls a picture"] - trained["calls a picture"]
            found.append({"technique": trained["technique"], "sampler": sampler["technique"],
                          "pictures": math.ceil(trained["training calls"] / extra) if extra > 0 else None})
    return found


def figure_data(rows: dict[str, Row], bases: dict) -> dict[str, list[dict[str, Any]]]:
    """"points": one dict a row, for gold against proxy, KL, diversity, cost. "curves": reward over training calls."""
    points, curves = [], []
    for name, row in rows.items():
        test = row["test"]
        means = {key: value["value"] for key, value in test["means"].items()}
        base = base_of(row, bases)
        point = {"row": name, "technique": row["technique"], "kind": row["kind"], "seed": row["seed"], **means,
                 "gold_low": test["means"].get("gold", {}).get("low"),
                 "gold_high": test["means"].get("gold", {}).get("high"),
                 "path_kl": test.get("path_kl", {}).get("value"), "fid_to_base": test.get("fid_to_base"),
                 "diversity": test.get("diversity", {}).get("value"),
                 "distance_to_base": test.get("distance_to_base", {}).get("value"),
                 "calls_per_picture": test["ledger"]["calls_per_picture"],
                 "training_calls": row.get("training_run", {}).get("ledger", {}).get("equivalents", 0),
                 "sheet": test["sheet"]["file"]}
        if base is not None:
            point["gain"] = {key: value - base["test"]["means"][key]["value"] for key, value in means.items()
                             if key in base["test"]["means"]}
        points.append(point)
        history = row.get("training_run", {}).get("history", [])
        curves += [{"row": name, "technique": row["technique"], "seed": row["seed"], **epoch} for epoch in history]
    return {"points": points, "curves": curves}


def text(value: Any) -> str:
    """A cell: a mean with its interval, a number in three figures, "–" for nothing."""
    if value is None or value in ("", {}):
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {text(mean['value'])}" for name, mean in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
