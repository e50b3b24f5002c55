import math

import pytest
import torch

from surveylib.worlds.gaussian.grid import Grid, GridDensity
from surveylib.worlds.gaussian.mixture import MIXTURES, GaussianMixture, cross, make_mixture, ring, two_peaks

LEVELS = [(1.0, 0.0), (0.9, math.sqrt(0.19)), (0.3, 0.7), (0.0, 1.0)]  # VP, flow, and both ends


def points(mixture, n=20):
    return 1.5 * torch.randn(n, mixture.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("a, s", LEVELS)
@pytest.mark.parametrize("name", MIXTURES)
def test_score_is_the_gradient_of_the_log_density(name, a, s):
    mixture = make_mixture(name)
    x = points(mixture).requires_grad_()
    gradient = torch.autograd.grad(mixture.log_prob(x, a, s).sum(), x)[0]
    torch.testing.assert_close(mixture.score(x.detach(), a, s), gradient)


@pytest.mark.parametrize("name", MIXTURES)
def test_density_is_that_of_torch_distributions(name):
    mixture, (a, s) = make_mixture(name), (0.6, 0.5)
    covariance = a**2 * mixture.covariances + s**2 * torch.eye(mixture.dim)
    components = torch.distributions.MultivariateNormal(a * mixture.means, covariance)
    reference = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), components)
    x = points(mixture)
    torch.testing.assert_close(mixture.log_prob(x, a, s), reference.log_prob(x))
    torch.testing.assert_close(mixture.responsibilities(x, a, s).sum(1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("a, s", [(0.9, 0.4), (0.3, 0.7)])
@pytest.mark.parametrize("name", ["two-peaks", "cross"])
def test_posterior_mean_and_covariance_are_the_integrals(name, a, s):
    mixture = make_mixture(name)
    grid = Grid(-5, 5, 2000 if mixture.dim == 1 else 200, mixture.dim)
    for x in points(mixture, 3):
        likelihood = -((x - a * grid.points) ** 2).sum(1) / (2 * s**2)
        posterior = GridDensity(grid, mixture.log_prob(grid.points) + likelihood)
        mean, noise = mixture.posterior_mean_and_noise(x[None], a, s)
        torch.testing.assert_close(mean[0], posterior.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(noise[0], (x - a * posterior.mean) / s, rtol=1e-4, atol=1e-3)
        covariance = mixture.posterior_covariance(x[None], a, s)[0]
        torch.testing.assert_close(covariance, posterior.covariance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MIXTURES)
def test_tweedie(name):
    mixture, (a, s) = make_mixture(name), (0.7, 0.6)
    x = points(mixture)
    torch.testing.assert_close(mixture.posterior_mean(x, a, s), (x + s**2 * mixture.score(x, a, s)) / a)
    mean, noise = mixture.posterior_mean_and_noise(x, a, s)
    torch.testing.assert_close(a * mean + s * noise, x)
    torch.testing.assert_close(mean, mixture.posterior_mean(x, a, s))


def test_posterior_mean_at_both_ends():
    mixture = two_peaks()
    x = points(mixture)
    torch.testing.assert_close(mixture.posterior_mean(x, 1.0, 0.0), x)
    torch.testing.assert_close(mixture.posterior_mean(x, 0.0, 1.0), mixture.mean.expand_as(x))


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_have_the_moments(name):
    mixture = make_mixture(name)
    x, k = mixture.sample_labelled(40000, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double().mean(0), mixture.mean, rtol=0, atol=0.03)
    covariance = x.double().T.cov().reshape(mixture.covariance.shape)
    torch.testing.assert_close(covariance, mixture.covariance, rtol=0, atol=0.04)
    torch.testing.assert_close(torch.bincount(k) / 40000, mixture.weights.float(), rtol=0, atol=0.01)
    torch.testing.assert_close(x, mixture.sample(40000, torch.Generator().manual_seed(0)))


def test_levels_and_weights_of_each_sample():
    mixture = two_peaks()
    x = torch.tensor([[0.2], [0.2]])
    a, s = torch.tensor([0.9, 0.2]), torch.tensor([0.3, 0.8])
    weights = torch.stack([mixture.mask("left"), mixture.mask("any")]).double().log() + mixture.log_weights
    both = mixture.posterior_mean(x, a, s, weights)
    torch.testing.assert_close(both[:1], mixture.restrict("left").posterior_mean(x[:1], 0.9, 0.3))
    torch.testing.assert_close(both[1:], mixture.posterior_mean(x[1:], 0.2, 0.8))


def test_names_restrict_and_empty_prompts():
    mixture = GaussianMixture([[-1.0], [0.0], [1.0]], [0.1] * 3, [1, 2, 1], ["low", "low", "high"])
    assert mixture.mask("low").tolist() == [True, True, False]
    assert mixture.mask("").all() and mixture.mask("any").all()
    low = mixture.restrict("low")
    torch.testing.assert_close(low.weights, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    assert low.names == ["low", "low"]
    assert len(set(ring().names)) == 8 and cross().dim == 2


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: two_peaks().mask("middle"), "left, right and 'any'"),
        (lambda: make_mixture("moons"), "spread, two-peaks, ring, cross"),
        (lambda: two_peaks().log_prob(torch.zeros(3)), r"\(batch, 1\)"),
        (lambda: GaussianMixture([0.0, 1.0], [1.0, 1.0]), "components, dimensions"),
        (lambda: GaussianMixture([[0.0], [1.0]], [1.0]), "covariances must be"),
        (lambda: GaussianMixture([[0.0], [1.0]], [1.0, 1.0], [1.0, -1.0]), "positive numbers"),
        (lambda: GaussianMixture([[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
        (lambda: GaussianMixture([[0.0]], [1.0], names=["a", "b"]), "2 names for 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
