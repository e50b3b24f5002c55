"""Best-of-N against brute force, and the law of over-optimisation on planted constants."""

from itertools import combinations

import numpy as np
import pytest

from surveylib.rewards.learned.overoptimisation import (
    best_of,
    best_of_n,
    fit_best_of_n,
    fit_gao,
    kl_of,
    subset_weights,
)

RNG = np.random.default_rng(0)


@pytest.mark.truth
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    proxy, gold = RNG.normal(size=(2, 3, 5))
    brute = [[gold[p][max(s, key=lambda i: proxy[p][i])] for s in combinations(range(5), n)] for p in range(3)]
    assert np.allclose(best_of(proxy, gold, n), np.mean(brute, 1))


@pytest.mark.truth
def test_equal_proxies_are_chosen_between_at_random():
    proxy, gold = np.array([[1.0, 2.0, 2.0, 2.0]]), np.array([[5.0, 1.0, 2.0, 6.0]])
    for n in (2, 3):
        brute = []
        for subset in combinations(range(4), n):
            top = max(proxy[0][i] for i in subset)
            brute.append(np.mean([gold[0][i] for i in subset if proxy[0][i] == top]))
        assert best_of(proxy, gold, n)[0] == pytest.approx(np.mean(brute))


@pytest.mark.truth
def test_best_of_n_is_unbiased():
    """Few samples estimate what many give: the proxy of the best of n normals has the known mean."""
    proxy = RNG.normal(size=(20_000, 4))
    assert best_of(proxy, proxy, 2).mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)
    assert best_of(proxy, proxy, 3).mean() == pytest.approx(1.5 / np.sqrt(np.pi), abs=0.02)
    assert best_of(proxy, proxy, 1).mean() == pytest.approx(proxy.mean())


@pytest.mark.truth
def test_kl_is_that_of_the_best_of_n_uniforms():
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    for n in (2, 5, 30):
        density = n * u ** (n - 1)
        assert kl_of(n) == pytest.approx((density * np.log(density)).mean(), abs=1e-4)
    assert kl_of(1) == 0 and subset_weights(6, 6).tolist() == [0, 0, 0, 0, 0, 1]


def planted(alpha, beta, form, noise=0.0, prompts=200):
    kl = kl_of(np.arange(1, 65))
    d = np.sqrt(kl)
    bend = d**2 if form == "best-of-n" else d * np.log(np.where(d > 0, d, 1))
    return kl, (alpha * d - beta * bend)[None] + noise * RNG.normal(size=(prompts, len(kl)))


@pytest.mark.truth
@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_planted_constants_are_recovered(form):
    fit = fit_gao(*planted(1.3, 0.4, form), form)
    assert (fit.alpha, fit.beta) == (pytest.approx(1.3), pytest.approx(0.4)) and fit.r_squared == pytest.approx(1)
    d = np.linspace(0.01, 20, 200_001)
    assert fit.peak == pytest.approx(d[fit.predict(d).argmax()], rel=1e-3)
    noisy = fit_gao(*planted(1.3, 0.4, form, noise=1.0), form)
    assert noisy.alpha_interval[0] < 1.3 < noisy.alpha_interval[1]
    assert noisy.beta_interval[0] < 0.4 < noisy.beta_interval[1]
    assert 0 < noisy.beta_interval[1] - noisy.beta_interval[0] < 0.4


def test_a_proxy_that_is_wrong_at_the_top_overoptimises():
    proxy = RNG.normal(size=(300, 64))
    gold = proxy - 0.45 * np.maximum(proxy, 0) ** 2
    curves = best_of_n(proxy, gold, n=[1, 2, 4, 8, 16, 32, 64])
    fit = fit_best_of_n(curves)
    assert (np.diff(curves.proxy) > 0).all() and 0 < curves.gold.argmax() < 6
    assert fit.beta > 0 and 0 < fit.peak < np.sqrt(curves.kl[-1])
    assert (curves.gold_interval[0] <= curves.gold).all() and (curves.gold <= curves.gold_interval[1]).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="both be"):
        best_of_n(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN"):
        best_of_n(np.full((2, 3), np.nan), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="n=4"):
        best_of_n(np.zeros((2, 3)), np.zeros((2, 3)), n=[4])
    with pytest.raises(ValueError, match="at least two different"):
        fit_gao([0.0, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="best-of-n, rl"):
        fit_gao([0.0, 1.0, 2.0], [0.0, 1.0, 1.0], "ppo")
    with pytest.raises(ValueError, match="n=2"):
        fit_best_of_n(best_of_n(np.eye(4), np.eye(4), n=[2, 3]))
