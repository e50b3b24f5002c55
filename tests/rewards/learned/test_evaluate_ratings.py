"""Correlations with mean ratings: what they are, what they resample, what they refuse."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from surveylib.rewards.learned.aesthetic import RatingData
from surveylib.rewards.learned.evaluate_ratings import evaluate_ratings, resampled_prompts


class Brightness:
    name = "brightness"

    def score(self, images, prompts):
        return images.mean((1, 2, 3))


def data(noise=0.0, n=60, prompts=15, seed=0):
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(n, generator=generator)
    images = level[:, None, None, None].expand(n, 3, 4, 4).contiguous()
    rating = level**3 + noise * torch.randn(n, generator=generator)
    ids = torch.arange(n) % prompts
    return RatingData(images, torch.arange(n), [f"p{i}" for i in ids.tolist()], ids, rating, torch.ones(n)), level


@pytest.mark.truth
def test_a_monotone_score_has_rank_correlation_one_and_a_smaller_linear_one():
    rated, level = data()
    report = evaluate_ratings(Brightness(), rated, expected=rated.rating)
    assert [report.spearman.value, report.spearman.low, report.spearman.high] == pytest.approx([1, 1, 1])
    assert report.ceiling == pytest.approx(1) and report.spearman.n == 60
    assert report.pearson.value == pytest.approx(np.corrcoef(level, rated.rating)[0, 1], abs=1e-6) and \
        report.pearson.value < 0.98


@pytest.mark.truth
def test_rank_correlation_is_pearsons_of_ranks_and_its_interval_holds_it():
    rated, level = data(noise=0.3)
    report = evaluate_ratings(Brightness(), rated, expected=level.numpy())
    by_hand = np.corrcoef(rankdata(level.numpy()), rankdata(rated.rating.numpy()))[0, 1]
    assert report.spearman.value == pytest.approx(by_hand, abs=1e-6) == report.ceiling
    assert report.spearman.low < by_hand < report.spearman.high
    assert report.numbers()["spearman"]["pictures"] == 60


@pytest.mark.truth
def test_whole_prompts_are_resampled():
    groups = np.array([0, 1, 0, 2, 1, 2, 2])
    for seed in range(20):
        rows = resampled_prompts(groups, np.random.default_rng(seed))
        counts = np.bincount(rows, minlength=7)
        assert counts[0] == counts[2] and counts[1] == counts[4] and counts[3] == counts[5] == counts[6]
        assert counts[0] + counts[1] + counts[3] == 3


def test_what_has_no_order_is_refused():
    rated, _ = data()
    rated.rating[:] = 0.5
    with pytest.raises(ValueError, match="two different ratings"):
        evaluate_ratings(Brightness(), rated)
    rated, _ = data()
    rated.images[:] = 0.5
    with pytest.raises(ValueError, match="no order"):
        evaluate_ratings(Brightness(), rated)
    with pytest.raises(ValueError, match="3 expected ratings for 60 pictures"):
        evaluate_ratings(Brightness(), data()[0], expected=[1, 2, 3])
