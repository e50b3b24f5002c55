"""How far annotators agree: percent, Cohen's kappa, Fleiss' kappa, Krippendorff's alpha, and "single human".

Labels come as an array (N, A): N units (a pair of pictures, a picture) by A annotators; None or NaN is missing. Any
values serve as categories; ordinal and interval alpha need numbers. Every number has a percentile bootstrap interval
over units, or over clusters of units such as prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

Level = Literal["nominal", "ordinal", "interval"]
Ties = Literal["share", "drop"]


@dataclass(frozen=True)
class Agreement:
    """A measure with its bootstrap interval.

    Attributes:
        name: of the measure. value: 1 is full agreement; for kappa and alpha 0 is chance. low, high: the interval.
        units, labels: how many entered; ``left_out`` units had too few labels to compare.
        note: what has to be said beside the number.
    """

    name: str
    value: float
    low: float
    high: float
    units: int
    labels: int
    left_out: int = 0
    note: str = ""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as counts. Build one with `read_labels`.

    Attributes:
        codes: (N, A) int64, place of each label in ``values``, -1 where missing. values: (V,) the categories, sorted.
        cluster: (N,) int64.
    """

    codes: np.ndarray
    values: np.ndarray
    cluster: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(N, V), how many annotators gave each value."""
        return np.stack([(self.codes == v).sum(1) for v in range(len(self.values))], 1)


def read_labels(labels: Any, clusters: Sequence[Any] | None = None) -> Labels:
    """Check an array (N, A) of labels and turn it into codes.

    Raises ValueError: not two-dimensional, fewer than two annotators, no unit with two labels, labels of mixed kinds,
    clusters not one a unit.
    """
    table = np.array(labels, dtype=object)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(f"labels have shape {table.shape}: give (units, annotators) with at least two annotators")
    missing = np.array([[x is None or x != x for x in row] for row in table], dtype=bool).reshape(table.shape)
    if not ((~missing).sum(1) >= 2).any():
        raise ValueError("no unit has two labels: agreement needs two annotators for the same unit")
    try:
        values = np.array(sorted(set(table[~missing])))
    except TypeError as error:
        raise ValueError(f"labels mix kinds that cannot be ordered: {set(map(type, table[~missing]))}") from error
    codes = np.full(table.shape, -1)
    codes[~missing] = np.searchsorted(values, np.array(list(table[~missing]), dtype=values.dtype))
    if clusters is not None and len(clusters) != len(table):
        raise ValueError(f"clusters has {len(clusters)} entries for {len(table)} units: give one for each")
    cluster = np.arange(len(table)) if clusters is None else \
        np.unique([str(c) for c in clusters], return_inverse=True)[1]
    return Labels(codes, values, cluster)


def pair_shares(counts: np.ndarray) -> np.ndarray:
    """(N,) share of a unit's pairs of labels that agree, Σ_v n_v (n_v - 1) / (n (n - 1)); NaN under two labels."""
    n = counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n >= 2, (counts * (counts - 1)).sum(1) / (n * (n - 1)), np.nan)


def percent_of(counts: np.ndarray, weight: np.ndarray) -> float:
    """Mean over units of the share of agreeing pairs of annotators. ``weight`` (N,): how often a unit counts."""
    shares = pair_shares(counts)
    there = ~np.isnan(shares)
    return float(_ratio((weight[there] * shares[there]).sum(), weight[there].sum()))


def cohen_of(joint: np.ndarray) -> float:
    """(p_o - p_e) / (1 - p_e) of a table (V, V) of counts of (first annotator's, second annotator's) label."""
    p = joint / joint.sum()
    expected = float((p.sum(0) * p.sum(1)).sum())
    return float(_ratio(np.trace(p) - expected, 1 - expected))


def fleiss_of(counts: np.ndarray, weight: np.ndarray) -> float:
    """(P̄ - P̄_e) / (1 - P̄_e): P̄ the mean share of agreeing pairs, P̄_e = Σ_v p_v² of the pooled label shares."""
    pooled = weight @ counts
    expected = float(((pooled / pooled.sum()) ** 2).sum())
    return float(_ratio(percent_of(counts, weight) - expected, 1 - expected))


def alpha_of(counts: np.ndarray, weight: np.ndarray, values: np.ndarray, level: Level) -> float:
    """1 - D_o / D_e with coincidences o_cd = Σ_units n_c (n_d - [c = d]) / (n - 1); see `krippendorff_alpha`."""
    n = counts.sum(1)
    there = n >= 2
    scaled = counts[there] * (weight[there] / (n[there] - 1))[:, None]
    coincidence = scaled.T @ counts[there] - np.diag(scaled.sum(0))  # (V, V)
    margin = coincidence.sum(0)
    distance = squared_distance(margin, values, level)
    observed = (coincidence * distance).sum()
    expected = (np.outer(margin, margin) * distance).sum() / (margin.sum() - 1)
    return float(_ratio(expected - observed, expected))


def squared_distance(margin: np.ndarray, values: np.ndarray, level: Level) -> np.ndarray:
    """δ² between values, (V, V): nominal [c ≠ d]; interval (c - d)²; ordinal (Σ_{g=c..d} n_g - (n_c + n_d)/2)²."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level not in ("ordinal", "interval"):
        raise ValueError(f"unknown level {level!r}: choose nominal, ordinal or interval")
    if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
        raise ValueError(f"level {level!r} needs numbers as labels, not {values[0]!r}: use level 'nominal'")
    place = np.cumsum(margin) - margin / 2 if level == "ordinal" else values.astype(float)
    return (place[:, None] - place[None, :]) ** 2


def majority_credit(codes: np.ndarray, judged: np.ndarray, categories: int, ties: Ties) -> tuple[np.ndarray, int]:
    """Credit of ``judged`` (N,) against the majority of ``codes`` (N, A), (N,), and how many majorities were tied.

    1 for the majority's label, 0 for another; where k labels lead together 1/k if it is one of them (``share``) or NaN
    (``drop``). NaN where either side has no label.
    """
    counts = np.stack([(codes == v).sum(1) for v in range(categories)], 1)
    most = counts.max(1)
    leaders = (counts == most[:, None]).sum(1)
    known = (judged >= 0) & (most > 0)
    is_leader = counts[np.arange(len(codes)), np.clip(judged, 0, None)] == most
    credit = np.where(known, is_leader / leaders, np.nan)
    tied = known & (leaders > 1)
    if ties == "drop":
        credit[tied] = np.nan
    elif ties != "share":
        raise ValueError(f"unknown ties {ties!r}: choose 'share' (1/k among k leading labels) or 'drop'")
    return credit, int(tied.sum())


def _ratio(top: float, bottom: float) -> float:
    """top / bottom, NaN where the bottom is 0: one category only, so that chance explains everything."""
    return float(top / bottom) if abs(bottom) > 1e-12 else float("nan")


def resampled(
    statistic: Callable[[np.ndarray], float], cluster: np.ndarray, *, resamples: int, level: float, seed: int
) -> tuple[float, float, float]:
    """(value, low, high): the statistic of unit weights (N,), and its percentile interval over resampled clusters.

    Resamples in which it is not defined (NaN) are left out; where more than half are, the interval is NaN.
    """
    if not 0 < level < 1 or resamples < 20:
        raise ValueError(f"level {level} must be between 0 and 1, and resamples {resamples} at least 20")
    rng, count = np.random.default_rng(seed), int(cluster.max()) + 1
    value = statistic(np.ones(len(cluster)))
    drawn = np.array([statistic(rng.multinomial(count, np.full(count, 1 / count))[cluster].astype(float))
                      for _ in range(resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < resamples / 2:
        return value, float("nan"), float("nan")
    return value, *map(float, np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))


def percent_agreement(
    labels: Any, *, clusters: Sequence[Any] | None = None, resamples: int = 500, confidence: float = 0.95, seed: int = 0
) -> Agreement:
    """Mean over units of the share of pairs of annotators that gave the same label. Units under two labels left out."""
    data = read_labels(labels, clusters)
    counts = data.counts
    return _agreement("percent agreement", lambda w: percent_of(counts, w), data, resamples, confidence, seed)


def cohen_kappa(
    first: Sequence[Any], second: Sequence[Any], *, clusters: Sequence[Any] | None = None, resamples: int = 500,
    confidence: float = 0.95, seed: int = 0,
) -> Agreement:
    """Cohen's kappa of two annotators, κ = (p_o - p_e) / (1 - p_e) (Cohen 1960, Educ. Psychol. Meas. 20).

    p_o is the share of units with equal labels, p_e = Σ_v p_v q_v of the two annotators' own label shares. Units that
    one of them did not label are left out and counted. NaN where both gave one and the same label throughout.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} labels: give two labels for each unit")
    data = read_labels(list(zip(first, second)), clusters)
    statistic = _cohen_statistic(data.codes, len(data.values))
    return _agreement("Cohen's kappa", statistic, data, resamples, confidence, seed)


def _cohen_statistic(codes: np.ndarray, categories: int) -> Callable[[np.ndarray], float]:
    """Unit weights -> kappa of the two columns, over units that both labelled."""
    both = (codes >= 0).all(1)
    cell = codes[both, 0] * categories + codes[both, 1]

    def statistic(weight: np.ndarray) -> float:
        joint = np.bincount(cell, weight[both], minlength=categories**2).reshape(categories, categories)
        return cohen_of(joint) if joint.sum() > 0 else float("nan")

    return statistic


def mean_cohen_kappa(
    labels: Any, *, clusters: Sequence[Any] | None = None, resamples: int = 500, confidence: float = 0.95, seed: int = 0
) -> Agreement:
    """Mean of Cohen's kappa over all pairs of annotators who share a unit and for whom it is defined (Light 1971)."""
    data = read_labels(labels, clusters)
    pairs = [(i, j) for i, j in combinations(range(data.codes.shape[1]), 2)
             if ((data.codes[:, i] >= 0) & (data.codes[:, j] >= 0)).any()]
    statistics = [_cohen_statistic(data.codes[:, pair], len(data.values)) for pair in pairs]

    def mean(weight: np.ndarray) -> float:
        kappas = np.array([statistic(weight) for statistic in statistics])
        return float(np.nanmean(kappas)) if not np.isnan(kappas).all() else float("nan")

    return _agreement("Cohen's kappa", mean, data, resamples, confidence, seed,
                      note=f"mean over {len(pairs)} pairs of annotators" if len(pairs) > 1 else "")


def fleiss_kappa(
    labels: Any, *, clusters: Sequence[Any] | None = None, resamples: int = 500, confidence: float = 0.95, seed: int = 0
) -> Agreement:
    """Fleiss' kappa, κ = (P̄ - P̄_e) / (1 - P̄_e) (Fleiss 1971, Psychol. Bull. 76).

    Every unit needs the same number of labels, at least two, not necessarily by the same annotators.

    Raises ValueError: units with different numbers of labels (use Krippendorff's alpha).
    """
    data = read_labels(labels, clusters)
    counts = data.counts
    sizes = Counter(counts.sum(1).tolist())
    if len(sizes) > 1:
        raise ValueError(f"Fleiss' kappa needs the same number of labels for every unit, found {dict(sizes)} "
                         "(labels: units); use krippendorff_alpha, which takes missing labels")
    return _agreement("Fleiss' kappa", lambda w: fleiss_of(counts, w), data, resamples, confidence, seed)


def krippendorff_alpha(
    labels: Any, level: Level = "nominal", *, clusters: Sequence[Any] | None = None, resamples: int = 500,
    confidence: float = 0.95, seed: int = 0,
) -> Agreement:
    """Krippendorff's alpha, α = 1 - D_o / D_e, with missing labels (Krippendorff 2011, Computing Krippendorff's Alpha).

    With n_uc labels c in unit u and n_u >= 2 labels there: coincidences o_cd = Σ_u n_uc (n_ud - [c=d]) / (n_u - 1),
    margins n_c = Σ_d o_cd, n = Σ_c n_c; D_o = Σ o_cd δ²_cd / n; D_e = Σ n_c n_d δ²_cd / (n (n - 1)).
    δ² by ``level``: nominal [c≠d], interval (c - d)², ordinal (Σ_{g=c..d} n_g - (n_c + n_d)/2)².
    """
    data = read_labels(labels, clusters)
    counts = data.counts
    squared_distance(np.ones(len(data.values)), data.values, level)  # an unknown level fails here
    return _agreement(f"Krippendorff's alpha ({level})", lambda w: alpha_of(counts, w, data.values, level), data,
                      resamples, confidence, seed)


def single_human(
    labels: Any, *, ties: Ties = "share", clusters: Sequence[Any] | None = None, resamples: int = 500,
    confidence: float = 0.95, seed: int = 0,
) -> Agreement:
    """Leave-one-annotator-out accuracy: each annotator's label against the majority of the others, over all labels.

    The ceiling to hold a reward model's accuracy against: who passes it predicts the majority better than one human.
    A tied majority of the others gives 1/k where the label is one of the k that lead (``share``), or the label is left
    out (``drop``); the note says how many were tied. With two annotators it is their percent agreement.
    """
    data = read_labels(labels, clusters)
    return _against_majority("single human", data, None, ties, resamples, confidence, seed)


def _against_majority(
    name: str, data: Labels, judged: np.ndarray | None, ties: Ties, resamples: int, confidence: float, seed: int
) -> Agreement:
    """Accuracy of ``judged`` (N,) codes, or of the left-out annotator for None, against all others' majorities."""
    credits, tied = [], 0
    for a in range(data.codes.shape[1]):
        there = data.codes[:, a]
        label = there if judged is None else np.where(there >= 0, judged, -1)
        credit, count = majority_credit(np.delete(data.codes, a, 1), label, len(data.values), ties)
        credits.append(credit)
        tied += count
    credit = np.stack(credits, 1)  # (N, A)
    judgements = (~np.isnan(credit)).sum(1)
    total = np.nansum(credit, 1)
    said = "1/k each" if ties == "share" else "left out"
    note = f"against the majority of the others; {tied} tied majorities ({said})"
    return _agreement(name, lambda w: _ratio(w @ total, w @ judgements), data, resamples, confidence, seed, note)


def _agreement(
    name: str, statistic: Callable[[np.ndarray], float], data: Labels, resamples: int, confidence: float, seed: int,
    note: str = "",
) -> Agreement:
    """Value, interval and counts of a statistic of unit weights."""
    given = (data.codes >= 0).sum(1)
    value, low, high = resampled(statistic, data.cluster, resamples=resamples, level=confidence, seed=seed)
    return Agreement(name, value, low, high, units=int((given >= 2).sum()), labels=int(given[given >= 2].sum()),
                     left_out=int((given < 2).sum()), note=note)


def agreement_table(
    labels: Any, *, level: Level = "nominal", models: dict[str, Sequence[Any]] | None = None, ties: Ties = "share",
    clusters: Sequence[Any] | None = None, resamples: int = 500, confidence: float = 0.95, seed: int = 0,
) -> list[Agreement]:
    """Rows: percent, mean Cohen's kappa, Fleiss' kappa where it applies, Krippendorff's alpha, and "single human".

    Args:
        labels: (N, A) as everywhere here. level: of Krippendorff's alpha.
        models: name -> (N,) labels by a reward model. Each adds a row, measured against the same leave-one-out
            majorities as the single human, so that the two can be compared.
        ties: among the others' votes, see `single_human`.

    Fleiss' kappa has no row where units have different numbers of labels. "single human" always has one.
    """
    options = {"clusters": clusters, "resamples": resamples, "confidence": confidence, "seed": seed}
    data = read_labels(labels, clusters)
    rows = [percent_agreement(labels, **options), mean_cohen_kappa(labels, **options)]
    if len(set((data.codes >= 0).sum(1).tolist())) == 1:
        rows.append(fleiss_kappa(labels, **options))
    rows += [krippendorff_alpha(labels, level, **options), single_human(labels, ties=ties, **options)]
    for name, predicted in (models or {}).items():
        if len(predicted) != len(data.codes):
            raise ValueError(f"model {name!r} has {len(predicted)} labels for {len(data.codes)} units: one for each")
        place = {value: v for v, value in enumerate(data.values.tolist())}
        unknown = [x for x in predicted if x not in place]
        if unknown:
            raise ValueError(f"model {name!r} gives {unknown[0]!r}, which no annotator gave: labels are {list(place)}")
        codes = np.array([place[x] for x in predicted])
        rows.append(_against_majority(name, data, codes, ties, resamples, confidence, seed))
    return rows


def labels_from_records(records: Iterable[Any]) -> tuple[np.ndarray, list[tuple], list[str], Counter[str]]:
    """Labels (N, A) of pair records: the preference for the unit's first picture, None where missing.

    A unit is a prompt and two pictures, in whichever order they were shown; a swapped pair has 1 - preference. Returns
    the labels, the units, the annotators, and counts of what was left out: other kinds, no annotator, a second label
    for a unit by the same annotator (the first one stays).
    """
    skipped: Counter[str] = Counter()
    units: dict[tuple, dict[str, float]] = {}
    for record in records:
        if record.kind != "pair" or not record.annotator:
            skipped[f"kind {record.kind}" if record.kind != "pair" else "no annotator"] += 1
            continue
        first, second = record.images
        swapped = str(first) > str(second)
        key = (record.prompt_id or record.prompt, *((second, first) if swapped else (first, second)))
        given = units.setdefault(key, {})
        if record.annotator in given:
            skipped["second label by the same annotator"] += 1
            continue
        given[record.annotator] = 1 - record.preference if swapped else record.preference
    annotators = sorted({name for given in units.values() for name in given})
    table = [[given.get(name) for name in annotators] for given in units.values()]
    labels = np.array(table, dtype=object).reshape(len(units), len(annotators))
    return labels, list(units), annotators, skipped
