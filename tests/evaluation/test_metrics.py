"""Metrics: known answers, and agreement with plain independent implementations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional as F

from surveylib.evaluation import metrics
from surveylib.evaluation.intervals import Mean, clustered_mean
from surveylib.evaluation.metrics.features import MetricError
from surveylib.worlds.shapes.suites import clustered_rate, suite


def cloud(n, d=6, seed=0, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# -- distances ---------------------------------------------------------------------------------------------------------
def plain_fid(x, y):
    x, y = x.numpy(), y.numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.trace(root)


def plain_mmd(x, y):
    k = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    x, y = x.tolist(), y.tolist()
    n, m = len(x), len(y)
    x, y = np.array(x), np.array(y)
    same = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same + other - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def plain_prdc(fake, real, k):
    def distance(a, b):
        return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b)))

    def balls(points):
        return [sorted(distance(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    fake, real = fake.tolist(), real.tolist()
    around_real, around_fake = balls(real), balls(fake)
    precision = np.mean([any(distance(f, r) <= ball for r, ball in zip(real, around_real)) for f in fake])
    recall = np.mean([any(distance(f, r) <= ball for f, ball in zip(fake, around_fake)) for r in real])
    density = np.mean([sum(distance(f, r) <= ball for r, ball in zip(real, around_real)) for f in fake]) / k
    coverage = np.mean([min(distance(f, r) for f in fake) <= ball for r, ball in zip(real, around_real)])
    return precision, recall, density, coverage


def test_fid_agrees_with_a_plain_one_and_is_zero_from_itself():
    x, y = cloud(200), cloud(150, seed=1, shift=0.3, scale=1.4)
    assert metrics.fid(x, y) == pytest.approx(plain_fid(x, y), rel=1e-6)
    assert metrics.fid(x, x) == pytest.approx(0, abs=1e-8)


def test_fid_of_a_shift_is_its_squared_length():
    x = cloud(100)
    assert metrics.fid(x + 2.0, x) == pytest.approx(6 * 4.0, rel=1e-9)


def test_kid_agrees_with_a_plain_one():
    x, y = cloud(20), cloud(20, seed=1, shift=0.5)
    found = metrics.kid(x, y, subsets=1, subset_size=20)
    assert found.mean == pytest.approx(plain_mmd(x, y), rel=1e-9) and found.std == 0


def test_kid_of_subsets_repeats_and_leaves_the_global_generator_alone():
    x, y = cloud(60), cloud(60, seed=1, shift=0.5)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = metrics.kid(x, y, subsets=10, subset_size=20, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert first == metrics.kid(x, y, subsets=10, subset_size=20, seed=3)
    assert first != metrics.kid(x, y, subsets=10, subset_size=20, seed=4)
    alike = metrics.kid(x, cloud(60, seed=2), subsets=20, subset_size=50).mean
    assert first.mean > 1 and abs(alike) < 0.1


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_agrees_with_a_plain_one(k):
    fake, real = cloud(25, d=3, shift=0.4, scale=0.7), cloud(30, d=3, seed=1)
    assert metrics.prdc(fake, real, k) == pytest.approx(plain_prdc(fake, real, k))
    assert metrics.prdc(real, fake, k) == pytest.approx(plain_prdc(real, fake, k))


def test_prdc_of_known_sets():
    x = cloud(30, d=3)
    same = metrics.prdc(x, x)
    assert same.precision == same.recall == same.coverage == 1
    assert metrics.prdc(x + 100, x) == (0, 0, 0, 0)
    collapsed = x[:1] + 1e-3 * cloud(30, d=3, seed=2)  # one mode of the reference: precise, no recall
    found = metrics.prdc(collapsed, x)
    assert found.precision == 1 and found.recall < 0.1 and found.coverage < 0.5


@pytest.mark.parametrize("call, needed, there", [
    (lambda x: metrics.fid(x, x), 7, 6), (lambda x: metrics.kid(x, x, subset_size=10), 10, 6),
    (lambda x: metrics.prdc(x, x, k=6), 7, 6),
])
def test_too_few_pictures_are_named(call, needed, there):
    with pytest.raises(MetricError, match=rf"at least {needed} pictures.* are {there}\b"):
        call(cloud(6))


def test_features_that_do_not_fit():
    with pytest.raises(MetricError, match="6 features of the generated and 5 of the reference"):
        metrics.prdc(cloud(20), cloud(20, d=5))
    with pytest.raises(MetricError, match="NaN"):
        metrics.prdc(cloud(20), cloud(20) * float("nan"))
    with pytest.raises(MetricError, match=r"\(N, d\)"):
        metrics.prdc(torch.zeros(4, 2, 2), cloud(20))


# -- diversity ---------------------------------------------------------------------------------------------------------
def test_vendi_of_copies_is_one_and_of_orthogonal_vectors_n():
    assert metrics.vendi(cloud(1).repeat(7, 1)) == pytest.approx(1)
    assert metrics.vendi(3 * torch.eye(5, dtype=torch.float64)) == pytest.approx(5)
    assert metrics.vendi(torch.eye(4).repeat_interleave(3, 0)) == pytest.approx(4)  # more rows than features


def test_vendi_agrees_with_a_plain_one():
    x = cloud(9, d=4)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    values = [v for v in np.linalg.eigvals(unit @ unit.T / 9).real if v > 1e-12]
    assert metrics.vendi(x) == pytest.approx(math.exp(-sum(v * math.log(v) for v in values)))


def test_diversity_is_counted_within_prompts():
    axes = torch.eye(4, dtype=torch.float64)
    features, prompts = axes[[0, 0, 1, 2]], ["a", "a", "b", "b"]
    assert metrics.vendi_by_prompt(features, prompts).value == pytest.approx(1.5)  # 1 and 2
    assert metrics.pairwise_distance(features, prompts).value == pytest.approx(0.5)  # 0 and 1
    assert metrics.pairwise_distance(axes[[0, 0, 1]], ["a"] * 3).value == pytest.approx(2 / 3)
    with pytest.raises(MetricError, match="2 pictures a prompt; 'b' has 1"):
        metrics.vendi_by_prompt(features, ["a", "a", "a", "b"])


def test_distance_to_base():
    axes = torch.eye(3, dtype=torch.float64)
    assert metrics.distance_to_base(2 * axes, axes, list("abc")).value == pytest.approx(0)
    assert metrics.distance_to_base(axes[[0, 1]], axes[[0, 2]], list("ab")).value == pytest.approx(0.5)
    assert metrics.distance_to_base(-axes, axes, list("abc")).value == pytest.approx(2)
    with pytest.raises(MetricError, match="3 pictures and 2 of the base"):
        metrics.distance_to_base(axes, axes[:2], list("abc"))
    with pytest.raises(MetricError, match="picture 1 are all zero"):
        metrics.vendi(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


# -- features and faithfulness -----------------------------------------------------------------------------------------
def test_clip_features_are_the_trunks_embeddings():
    from surveylib.rewards.learned.trunk import load_trunk

    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = metrics.extract(metrics.clip_features(), images, batch=2)
    expected = load_trunk("shapes-clip")(images, ["a red circle"] * 5).image
    assert found.shape == (5, 128) and found.dtype == torch.float64
    assert torch.allclose(found.float(), F.normalize(expected, dim=-1), atol=1e-5)


def test_an_extractor_must_return_rows():
    with pytest.raises(MetricError, match=r"\(2, 3, 4, 4\) for 2 pictures"):
        metrics.extract(lambda images: images, torch.zeros(2, 3, 4, 4))
    with pytest.raises(MetricError, match="0 pictures"):
        metrics.extract(lambda images: images.flatten(1), torch.zeros(0, 3, 4, 4))


def test_faithfulness_of_drawn_scenes():
    from surveylib.worlds.shapes.data import scene_for
    from surveylib.worlds.shapes.render import render

    prompts = suite("held-out", per_category=3)
    rng = np.random.default_rng(0)
    pictures = torch.cat([render([scene_for(p.spec, rng)]) for p in prompts])
    right = metrics.faithfulness(pictures, prompts)
    assert right.pass_rate.value == 1 and right.passes["overall"].value == 1 and right.soft_score.value > 0.9
    wrong = metrics.faithfulness(pictures.roll(3, 0), prompts)  # pictures of another category
    assert wrong.pass_rate.value < 0.2 and wrong.soft_score.value < right.soft_score.value
    assert list(right.passes)[-1] == "overall" and right.passes["size"].n == 3
    right_clip = metrics.clip_scores(pictures, [p.text for p in prompts])
    assert right_clip.mean() > metrics.clip_scores(pictures.roll(3, 0), [p.text for p in prompts]).mean() + 0.1
    with pytest.raises(MetricError, match="21 pictures and 2 prompts"):
        metrics.faithfulness(pictures, prompts[:2])


# -- intervals ---------------------------------------------------------------------------------------------------------
def test_clustered_mean_agrees_with_the_rates_of_the_suites():
    rng = np.random.default_rng(0)
    y, g = rng.random(40) < 0.3, rng.integers(0, 9, 40).astype(str)
    found, expected = clustered_mean(y, g), clustered_rate(y, g)
    assert found.value == expected.rate and found.standard_error == pytest.approx(expected.standard_error)


def test_copies_of_a_value_add_nothing_to_a_clustered_mean():
    y = np.random.default_rng(0).normal(size=12)
    once, thrice = clustered_mean(y, range(12)), clustered_mean(np.repeat(y, 3), np.repeat(range(12), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high)) and thrice.n == 36


def test_the_interval_covers():
    """95 % intervals of 12 clusters of 4, with a large effect of the cluster: between 92 and 98 of 100."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        y = rng.normal(size=(12, 1)) + 0.3 * rng.normal(size=(12, 4))
        found = clustered_mean(y.flatten(), np.repeat(np.arange(12), 4))
        hits += found.low <= 0 <= found.high
    assert 925 <= hits <= 975


def test_means_go_to_json_and_back():
    one = clustered_mean([1.0, 2.0], ["a", "a"])
    assert one.numbers()["low"] is None and math.isnan(Mean.of(one.numbers()).low)
    with pytest.raises(ValueError, match="value 1 is not finite"):
        clustered_mean([1.0, float("nan")], "ab")
    with pytest.raises(ValueError, match="3 prompts for 2 values"):
        clustered_mean([1.0, 2.0], "abc")
