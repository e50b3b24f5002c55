"""Agreement against torchmetrics, the krippendorff package and numbers worked out by hand."""

from types import SimpleNamespace

import krippendorff
import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_cohen_kappa
from torchmetrics.functional.nominal import fleiss_kappa as torchmetrics_fleiss

from surveylib.feedback.agreement import (
    agreement_table,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    labels_from_records,
    percent_agreement,
    single_human,
)

FEW = {"resamples": 20}


def noisy_labels(seed=0, units=60, annotators=4, categories=3, noise=0.4, missing=0.0):
    """(units, annotators) floats: the unit's own category, or with probability ``noise`` any."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(categories, size=(units, 1)).repeat(annotators, 1)
    labels = np.where(rng.random(truth.shape) < noise, rng.integers(categories, size=truth.shape), truth).astype(float)
    labels[rng.random(labels.shape) < missing] = np.nan
    return labels


@pytest.mark.truth
@pytest.mark.parametrize("seed", range(3))
def test_cohen_is_torchmetrics(seed):
    labels = noisy_labels(seed, annotators=2)
    expected = multiclass_cohen_kappa(*torch.tensor(labels.T).long(), num_classes=3)
    assert cohen_kappa(*labels.T, **FEW).value == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.truth
@pytest.mark.parametrize("seed", range(3))
def test_fleiss_is_torchmetrics(seed):
    labels = noisy_labels(seed)
    counts = torch.tensor(np.stack([(labels == v).sum(1) for v in range(3)], 1))
    expected = float(torchmetrics_fleiss(counts))  # its denominator has 1e-5 added
    assert fleiss_kappa(labels, **FEW).value == pytest.approx(expected, abs=3e-5)


@pytest.mark.truth
@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_alpha_is_the_krippendorff_package(level, missing):
    labels = noisy_labels(1, categories=5, missing=missing)
    expected = krippendorff.alpha(labels.T, level_of_measurement=level)
    assert krippendorff_alpha(labels, level, **FEW).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.truth
def test_alpha_of_uneven_values_is_the_krippendorff_package():
    labels = np.exp(noisy_labels(2, categories=4, missing=0.2))  # interval distances are not those of the codes
    for level in ("ordinal", "interval"):
        expected = krippendorff.alpha(labels.T, level_of_measurement=level)
        assert krippendorff_alpha(labels, level, **FEW).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.truth
def test_full_agreement_and_chance():
    same = np.tile(np.arange(3.0), 20)[:, None].repeat(3, 1)
    for row in agreement_table(same, **FEW):
        assert (row.value, row.low, row.high) == pytest.approx((1, 1, 1)), row.name
    rows = {row.name: row for row in agreement_table(noisy_labels(units=400, noise=1.0), resamples=100)}
    for name in ("Cohen's kappa", "Fleiss' kappa", "Krippendorff's alpha (nominal)"):
        assert rows[name].low < 0 < rows[name].high or abs(rows[name].value) < 0.04
    assert rows["percent agreement"].value == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.truth
def test_percent_agreement_by_hand():
    labels = [["a", "a", "b"], ["a", "a", None], ["b", None, None]]
    result = percent_agreement(labels, **FEW)
    assert result.value == pytest.approx((1 / 3 + 1) / 2)
    assert (result.units, result.labels, result.left_out) == (2, 5, 1)


@pytest.mark.truth
def test_single_human_by_hand():
    labels = [["a", "a", "b"], ["a", "a", "a"]]
    # unit 1: annotators 1 and 2 face a tie (a, b) and get 1/2 each, annotator 3 faces a, a and gets 0; unit 2: 3 of 3
    assert single_human(labels, **FEW).value == pytest.approx(4 / 6)
    assert single_human(labels, ties="drop", **FEW).value == pytest.approx(3 / 4)
    assert "2 tied majorities (1/k each)" in single_human(labels, **FEW).note


@pytest.mark.truth
def test_single_human_of_two_annotators_is_their_percent_agreement():
    labels = noisy_labels(annotators=2)
    assert single_human(labels, **FEW).value == pytest.approx(percent_agreement(labels, **FEW).value)


@pytest.mark.truth
def test_single_human_of_independent_annotators_has_its_known_value():
    """Right with probability p, against the majority of two: p³ + q³ + ... worked out below (ties give 1/2)."""
    p, q, rng = 0.8, 0.2, np.random.default_rng(0)
    labels = (rng.random((4000, 3)) < p).astype(float)
    both_right, both_wrong, split = p * p, q * q, 2 * p * q
    expected = both_right * p + both_wrong * q + split * 0.5
    result = single_human(labels, resamples=200)
    assert result.low < expected < result.high and result.high - result.low < 0.03


def test_table_always_has_the_single_human_and_models_face_the_same_majorities():
    labels = noisy_labels(missing=0.2, noise=0.3)
    truth = noisy_labels(noise=0.0)[:, 0]
    rows = {row.name: row for row in agreement_table(labels, models={"best": truth, "worst": (truth + 1) % 3}, **FEW)}
    assert "single human" in rows and "Fleiss' kappa" not in rows
    assert rows["best"].value > rows["single human"].value > rows["worst"].value
    assert "Fleiss' kappa" in {row.name for row in agreement_table(noisy_labels(), **FEW)}


@pytest.mark.truth
def test_interval_covers_and_clusters_keep_their_width():
    covered = 0
    for seed in range(60):
        labels = noisy_labels(seed, units=150, annotators=3, categories=2, noise=0.5)
        result = krippendorff_alpha(labels, resamples=100, seed=seed)
        covered += result.low <= 0.25 <= result.high  # correlation of two annotators: (1 - noise)²
    assert 51 <= covered <= 60
    labels = noisy_labels(units=100)
    clusters = np.arange(100)
    once = percent_agreement(labels, clusters=clusters, resamples=300)
    copied, copies = labels.repeat(4, 0), clusters.repeat(4)
    clustered = percent_agreement(copied, clusters=copies, resamples=300)
    assert (clustered.low, clustered.high) == pytest.approx((once.low, once.high))
    naive = percent_agreement(copied, resamples=300)
    assert 0.35 < (naive.high - naive.low) / (once.high - once.low) < 0.65


def test_one_category_only_has_no_kappa():
    rows = {row.name: row for row in agreement_table([["a", "a"], ["a", "a"]], **FEW)}
    assert np.isnan(rows["Cohen's kappa"].value) and rows["single human"].value == 1


@pytest.mark.parametrize("call, message", [
    (lambda: percent_agreement([["a"], ["b"]]), "at least two annotators"),
    (lambda: percent_agreement([["a", None], [None, "b"]]), "no unit has two labels"),
    (lambda: percent_agreement([["a", 1]]), "mix kinds"),
    (lambda: percent_agreement([["a", "b"]], clusters=[1, 2]), "2 entries for 1 units"),
    (lambda: percent_agreement([["a", "b"]], resamples=3), "resamples 3"),
    (lambda: cohen_kappa(["a"], ["a", "b"]), "1 and 2 labels"),
    (lambda: fleiss_kappa([["a", "a", None], ["a", "b", "b"]]), "krippendorff_alpha"),
    (lambda: krippendorff_alpha([["a", "b"]], "interval"), "needs numbers"),
    (lambda: krippendorff_alpha([[1, 2]], "ratio"), "choose nominal, ordinal or interval"),
    (lambda: single_human([[1, 2]], ties="keep"), "'share'"),
    (lambda: agreement_table([[0, 1]], models={"m": [2]}), "no annotator gave"),
    (lambda: agreement_table([[0, 1]], models={"m": [1, 0]}), "2 labels for 1 units"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_from_records_turn_swapped_pairs_and_count_what_is_left_out():
    def record(first, second, preference, annotator, kind="pair"):
        return SimpleNamespace(kind=kind, prompt="p", prompt_id="", images=(first, second), preference=preference,
                               annotator=annotator)

    labels, units, annotators, skipped = labels_from_records([
        record("x", "y", 1.0, "ann"), record("y", "x", 0.0, "bob"), record("x", "y", 0.0, "ann"),
        record("x", "z", 0.5, "bob"), record("x", "y", 1.0, ""), record("x", "y", None, "ann", kind="binary")])
    assert labels.tolist() == [[1.0, 1.0], [None, 0.5]] and annotators == ["ann", "bob"]
    assert units == [("p", "x", "y"), ("p", "x", "z")]
    assert skipped == {"second label by the same annotator": 1, "no annotator": 1, "kind binary": 1}
